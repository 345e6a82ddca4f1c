"""Judging: `evaluate`, `stratify`, `ground` and `feasible`."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, get_args

from recast.config.check import (
    MOST_STEPS,
    check_seed,
    check_settings,
    check_threads,
    within,
)
from recast.config.think import ThinkConfig
from recast.errors import require

Level = Literal["item", "sid", "popular_item"]
"""What a place of a list is: an item, a semantic ID, or the most popular item of each one."""


METRICS = ("hr", "pass", "first_pass", "recall", "ndcg")
VALID_METRICS = ("ndcg@10", "hr@10")
"""What a validation logs unless other metrics are named."""
_MOST_LISTED = 1000


def split_metric(name: str) -> tuple[str, int]:
    """Name and k of a metric.

    >>> split_metric("ndcg@10")
    ('ndcg', 10)
    """
    metric, k = name.split("@")
    return metric, int(k)


def check_metrics(names: list[str]) -> None:
    """Raise `RecastError` for a metric of validation that there is none of, with the nearest."""
    remedy = f"name one or more, such as {' '.join(VALID_METRICS)}"
    require(bool(names), "valid_metrics", names, remedy)
    for name in names:
        metric, _, k = str(name).partition("@")
        near = get_close_matches(metric, METRICS, n=1, cutoff=0.3) or ["ndcg"]
        is_cut = k.isascii() and k.isdecimal() and len(k) < 5 and 1 <= int(k) <= _MOST_LISTED
        size = int(k) if is_cut else 10
        remedy = f"did you mean {f'{near[0]}@{size}'!r}? give one of {', '.join(METRICS)}, then @ "
        remedy += f"and a whole number from 1 to {_MOST_LISTED}"
        fits = metric in METRICS and is_cut and k == str(size)
        require(fits, "valid_metrics", name, remedy)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`recast evaluate`: rank the whole catalogue for every row of a split."""

    data: str
    """Folder made by `recast prepare`."""
    output: str
    """Folder to create."""
    policy: str | None = None
    """Folder of the policy (it carries its catalogue), or of one of `recast baselines`."""
    predictions: str | None = None
    """In place of a policy: lists that MiniOneRec's evaluate.py or OpenOneRec's benchmark wrote
    (`TASK/test_generated.json`, or the folder of all tasks), of the semantic IDs of `catalog`."""
    catalog: str | None = None
    """The policy's catalogue with new items, made by `recast tokenize --extend`, in its place."""
    split: Literal["valid", "test"] = "test"
    """Whose rows are ranked."""
    beam_width: int = 50
    """Beams per row, of published lists at most; metrics at k need k."""
    at: list[int] = field(default_factory=list)
    """Every k of the metrics, such as 1,3,5,10; unset: HR at 1, 5, 10, 50, NDCG at 5, 10."""
    levels: list[Level] = field(default_factory=lambda: ["item", "sid"])
    """Of item, sid and popular_item: what stands in the list."""
    decoder: Literal["beam", "d3", "mixture"] = "beam"
    """By the policy alone, or with a guide that reads no text: by D3's sum of log-probabilities, or
    by the mixture of both distributions."""
    guide: str | None = None
    """For d3 and mixture: item_knn, item_knn:FOLDER or another of `recast baselines`, a policy
    (such as one of other codes), or module:function."""
    alpha: float | None = None
    """For d3 and mixture: weight of the policy, the guide gets the rest; unset: the best of 0, 0.1
    ... 1 by NDCG@10 on up to 2,000 validation rows."""
    exact_rows: int | None = None
    """Rows whose whole catalogue is scored, to see whether the beams lose a target; unset: as many
    as a tenth of the ranking costs, at most 500; 0: none."""
    invalid_rows: int = 1000
    """Rows decoded without the trie, by the policy alone, to measure the invalid rate."""
    think: ThinkConfig = field(default_factory=ThinkConfig)
    """Thoughts before the items, as in `--think.thoughts 1`."""
    seed: int = 0
    """Seed of the thoughts, of the resampling of users and of the order of equally popular
    items."""
    device: str = "cpu"
    """Where the policy computes, as torch names it: cpu, cuda, cuda:1."""
    threads: int | None = None
    """Torch threads; unset: measured."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_seed(self.seed)
        check_threads(self)
        within(self, 1, 10 * MOST_STEPS, "invalid_rows")
        within(self, 1, MOST_STEPS, "beam_width")
        within(self, 0, 10 * MOST_STEPS, "exact_rows")
        require(all(k >= 1 for k in self.at), "at", self.at, "give whole numbers of 1 or more")
        fits = all(k <= MOST_STEPS for k in self.at)
        require(fits, "at", self.at, f"give whole numbers of {MOST_STEPS} or less")
        require(
            bool(self.levels),
            "levels",
            self.levels,
            "give one or more of " + ", ".join(get_args(Level)),
        )
        most = max(self.at, default=10)
        need = f"metrics at {most} need {most} or more"
        if self.at:
            need += f": set beam_width to {most}, or leave {most} out of at"
        require(self.beam_width >= most, "beam_width", self.beam_width, need)
        fits = self.alpha is None or 0 <= self.alpha <= 1
        require(fits, "alpha", self.alpha, "give a weight from 0 to 1")
        if self.decoder != "beam":
            need = f"decoder {self.decoder} needs one: the folder of a policy of one-level "
            need += "semantic IDs (`recast tokenize --num_levels 1`, then `recast sft`), "
            need += "item_knn or another of `recast baselines`, or module:function"
            require(self.guide is not None, "guide", self.guide, need)
        else:
            remedy = "it belongs to the decoders with a guide: set decoder to d3 or mixture, or "
            remedy += "leave it out"
            require(self.guide is None, "guide", self.guide, remedy)
            require(self.alpha is None, "alpha", self.alpha, remedy)
        if self.think.thoughts is not None:
            self._check_thoughts()
        if self.predictions is None:
            need = "give the folder of a policy or of a baseline, or --predictions with lists"
            require(self.policy is not None, "policy", self.policy, need)
        else:
            self._check_predictions()

    def _check_thoughts(self) -> None:
        """What has no meaning behind thoughts."""
        self.think.require_share(self.beam_width)
        remedy = "a guide ranks without a thought: leave think.thoughts out, or the guide"
        require(self.decoder == "beam", "decoder", self.decoder, remedy)
        remedy = "the whole catalogue is scored behind prompts, not behind thoughts: leave it out"
        require(not self.exact_rows, "exact_rows", self.exact_rows, remedy)

    def _check_predictions(self) -> None:
        """Nothing is decoded: what says how is refused."""
        remedy = "published lists are judged without a policy: leave out one of the two"
        require(self.policy is None, "policy", self.policy, remedy)
        need = "published lists need the catalogue of their semantic IDs: give that of `recast "
        need += "tokenize` on this data"
        require(self.catalog is not None, "catalog", self.catalog, need)
        remedy = "published lists are decoded already: leave it out"
        require(self.decoder == "beam", "decoder", self.decoder, remedy)
        require(not self.exact_rows, "exact_rows", self.exact_rows, remedy)
        require(self.think.thoughts is None, "think.thoughts", self.think.thoughts, remedy)


@dataclass(frozen=True, kw_only=True)
class StratifyConfig:
    """`recast stratify`: where would a ranker move the logged item within the policy's rollouts?"""

    data: str
    """Folder made by `recast prepare`."""
    policy: str
    """Folder of the policy (it carries its catalogue)."""
    ranker: str
    """item_knn, item_knn:FOLDER or another of `recast baselines`, a policy, or module:function."""
    output: str
    """Folder to create."""
    split: Literal["valid", "test"] = "valid"
    """Whose rows are looked at."""
    rows: int = 2000
    """Rows, a seeded sample of the split."""
    group_size: int = 32
    """Beams per row; the logged item joins them."""
    prompts_per_step: int = 32
    """Rows rolled out together, at least: each takes its negatives from the others."""
    tau: float = 0.25
    """The logged item is well placed among this share of the beams."""
    rho: float = 0.5
    """A negative is suppressed below this share of the beams."""
    num_negatives: int = 5
    """Negatives per row."""
    seed: int = 0
    """Seed of the batches, the negatives and the resampling of users."""
    threads: int | None = None
    """Torch threads; unset: measured."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_seed(self.seed)
        check_threads(self)
        within(self, 2, 10 * MOST_STEPS, "rows")
        within(self, 2, 4096, "group_size", "prompts_per_step")
        within(self, 1, 4096, "num_negatives")
        require(0 < self.tau <= 1, "tau", self.tau, "give a share above 0, up to 1")
        require(0 <= self.rho <= 1, "rho", self.rho, "give a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class GroundConfig:
    """`recast ground`: rank real items by the free text that an LLM wrote for each row."""

    data: str
    """Folder made by `recast prepare`."""
    catalog: str
    """Folder made by `recast tokenize`, with its text embeddings."""
    texts: str
    """CSV or Parquet file with the columns `row_id` and `text`, one line per row of the split."""
    output: str
    """Folder to create."""
    encoder: str | None = None
    """Hugging Face encoder folder, or `minilm`; unset: the one the catalogue was made with."""
    gamma: float = 0.0
    """Pull towards popular items, from 0 (none) to 100."""
    split: Literal["valid", "test"] = "test"
    """Whose rows the texts were written for."""
    seed: int = 0
    """Seed of the order of equal items and of the resampling of users."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_seed(self.seed)
        require(0 <= self.gamma <= 100, "gamma", self.gamma, "give a power from 0 to 100")


@dataclass(frozen=True, kw_only=True)
class FeasibleConfig:
    """`recast feasible`: can printed tables of HR and NDCG with one target per row be?"""

    tables: str
    """File with tables in Markdown or CSV, a method a line, under heads such as HR@5 and NDCG@5."""
    num_rows: int | None = None
    """Test rows, of which HR is then a share: for tables that count places, no means over seeds."""

    def __post_init__(self) -> None:
        check_settings(self)
        within(self, 1, 10**9, "num_rows")
