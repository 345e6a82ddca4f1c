"""Training: `sft` and `rl`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from recast.config.check import (
    MOST_RANKS,
    MOST_ROWS,
    MOST_STEPS,
    MOST_WINDOW,
    Shown,
    check_rate,
    check_seed,
    check_settings,
    check_splits,
    check_threads,
    check_trackio,
    check_weights,
    within,
)
from recast.config.evaluation import VALID_METRICS, check_metrics
from recast.config.model import ModelConfig
from recast.config.prompt import PromptConfig
from recast.config.step import Precision, StepConfig
from recast.errors import LogprobSpace, require, require_range

Schedule = Literal["cosine", "linear", "constant"]
"""Of the learning rate after its warm-up."""

LossOn = Literal["answer", "all"]
"""Tokens of a rendered row that supervised training learns."""

Keep = Literal["best", "last"]
"""Which weights a run leaves in `policy/`."""


class ModelDefaults(NamedTuple):
    """What of `SFTConfig` hangs on the kind of model where it is left open."""

    lr: float
    """Peak rate."""
    dropout: float
    """Of the embeddings."""
    layer_dropout: float
    """Of the blocks."""
    ema: float
    """Decay of the average of the weights."""


NEW_MODEL = ModelDefaults(lr=1.5e-3, dropout=0.3, layer_dropout=0.3, ema=0.998)
"""For random weights, which learn the histories by heart (docs/log.md)."""

MOST_FULL = 1024
"""Items with tokens of their own that the loss goes over whole: about as many as three levels of
codes have, so it costs as much, and whoever reads the policy without the trie finds its order."""

GIVEN_MODEL = ModelDefaults(lr=1e-4, dropout=0.1, layer_dropout=0.0, ema=0.0)
"""For the model of `model.path`, which is tuned for fewer steps."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """`recast sft`: next-item training on the training period, or on its oldest part alone."""

    data: str
    """Folder made by `recast prepare`."""
    catalog: str
    """Folder made by `recast tokenize`."""
    output: str
    """Folder to create."""
    resume: bool = False
    """Go on in `output` with the newest whole checkpoint of the same run."""
    checkpoint_s: float = 60.0
    """Seconds between two checkpoints, at least; longer where they would cost 2 % of the run."""
    fsdp_size: int = 1
    """Ranks that share one copy of the weights, their gradients and the optimizer (FSDP2); of more
    ranks such groups are replicas of each other (HSDP). 1: each has a copy."""
    splits: list[Shown] = field(default_factory=lambda: ["train"])
    """Whose events it learns from: train, or train,rl; RL draws its prompts from rl all the same,
    which it then has seen."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the policy, or the model to start from."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """How the prompts of `model.path` are rendered, kept with the policy; `recast rl` and `recast
    evaluate` render the same."""
    logprob_space: LogprobSpace | None = None
    """What the loss is normalised over: the whole vocabulary (full), the level's codes (level) or
    the children that the trie has (trie). The policy is validated and ranked in it. Unset: that of
    the policy it starts from, else trie where the last token is one of more than 1,024 items, else
    full."""
    window: int = 20
    """Items per training window; a prompt holds the latest `window - 1` of a history."""
    epochs: int = 16
    """Passes over all windows, at most: validation NDCG@10 stops it earlier. 0: nothing is trained,
    the policy is the model with the names of the items, for RL to start from."""
    batch_windows: int = 64
    """Windows per optimizer step."""
    lr: float | None = None
    """Peak learning rate, behind a linear warm-up over 5 % of the steps; 0: what is no row of a
    semantic ID stays as it is; unset: 1.5e-3, with model.path 1e-4."""
    sid_lr: float | None = None
    """Of the rows of semantic IDs, with model.path; unset: `lr`."""
    schedule: Schedule = "cosine"
    """Of the rate after the warm-up: to zero (cosine, linear) or none (constant)."""
    max_steps: int | None = None
    """Optimizer steps, at most; the schedule then ends with them."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    negatives: int | None = None
    """Items that stand for all others in the loss, drawn anew for every step; of one-level
    semantic IDs (SASRec)."""
    backwards_frac: float = 0.0
    """Share of the training windows read backwards: where co-occurrence says more than order."""
    crop_frac: float = 0.0
    """Share of the training windows that begin at a random item of theirs, so that the policy also
    learns from the latest items alone."""
    dropout: float | None = None
    """On the token embeddings, in SFT only; unset: 0.3, with model.path 0.1."""
    layer_dropout: float | None = None
    """On the output of every attention and feed-forward block, in SFT only; unset: 0.3, with
    model.path 0."""
    ema: float | None = None
    """Decay per step of an average of the weights, which is validated and kept in their place; 0:
    none; unset: 0.998, with model.path 0."""
    patience: int = 5
    """Validations without a better NDCG@10 before training stops."""
    keep: Keep = "best"
    """Weights in `policy/`: of the epoch of the best validation NDCG@10, or of the last one."""
    valid_rows: int = 2000
    """Validation rows (a seeded sample) used for early stopping."""
    valid_metrics: list[str] = field(default_factory=lambda: list(VALID_METRICS))
    """What each validation logs at item level, as for `recast rl`; ndcg@10, which decides, is among
    them."""
    task_weights: dict[str, Any] = field(default_factory=dict)
    """How often each task of the data is read, as in `--task_weights.NAME 2`, 0: never; unset: by
    its rows. sid_to_title, title_to_sid, titles_to_sid and plain_text come beside them: so many
    rows for each of the data's, whose own tasks have weight 1 together if none is named."""
    plain_text: str | None = None
    """File of chats or texts, of which a tenth tells before and after the run what the policy can
    still say; task_weights.plain_text trains on the others."""
    loss_on: LossOn = "answer"
    """Of rendered rows the loss is on the answer alone, or on all tokens behind the first."""
    micro_batch_tokens: int | None = None
    """Tokens per pass, at most; unset: what fits into half of the free memory."""
    pass_tokens: int | None = None
    """Tokens that take as long as one more pass: what padding is weighed against; unset:
    measured."""
    seed: int = 0
    """Seed of the weights, the windows and the dropout."""
    device: str = "cpu"
    """Where the policy computes, as torch names it: cpu, cuda, cuda:1."""
    precision: Precision = "float32"
    """Of the matrix products; bfloat16 is faster where the hardware has it."""
    threads: int | None = None
    """Torch threads; unset: measured."""
    trackio: str | None = None
    """Project of trackio that gets the metrics too (`pip install "recast-rl[trackio]"`); unset:
    none."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_seed(self.seed)
        check_threads(self)
        check_trackio(self)
        self._check_rates()
        within(self, 0, 100, "weight_decay")
        within(self, 1, MOST_STEPS, "max_steps")
        within(self, 0, MOST_STEPS, "checkpoint_s")
        within(self, 0, 10_000, "epochs")
        within(self, 1, 10_000, "patience")
        within(self, 1, 65536, "batch_windows")
        within(self, 1, 10 * MOST_STEPS, "valid_rows")
        within(self, 1, 2**24, "pass_tokens", "negatives", "micro_batch_tokens")
        within(self, 1, MOST_RANKS, "fsdp_size")
        check_weights(self.task_weights)
        within(self, 2, MOST_WINDOW, "window")
        whole = self.negatives is None or self.logprob_space in (None, "full")
        need = "negatives stand for the whole vocabulary: give full, or leave negatives out"
        require(whole, "logprob_space", self.logprob_space, need)
        check_metrics(self.valid_metrics)
        need = "add ndcg@10, which stops the training and chooses the epoch"
        require("ndcg@10" in self.valid_metrics, "valid_metrics", self.valid_metrics, need)
        check_splits(self)
        for name in ("backwards_frac", "crop_frac"):
            share = getattr(self, name)
            require(0 <= share <= 1, name, share, "give a share from 0 to 1")
        for name, what in (("ema", "decay"), ("dropout", "rate"), ("layer_dropout", "rate")):
            share = getattr(self, name)
            fits = share is None or 0 <= share < 1
            require(fits, name, share, f"give a {what} from 0 up to 1")

    def _check_rates(self) -> None:
        if self.lr != 0:
            check_rate(self, "lr")
        if self.sid_lr != 0:
            check_rate(self, "sid_lr")
        remedy = "a new model has one rate, leave it out or give model.path"
        require(self.sid_lr is None or self.model.path is not None, "sid_lr", self.sid_lr, remedy)
        moves = self.lr != 0 or bool(self.sid_lr)
        require(moves, "lr", self.lr, "nothing is trained, give sid_lr a positive rate")

    @property
    def resolved(self) -> ModelDefaults:
        """These settings, those left open by the kind of model."""
        kind = NEW_MODEL if self.model.path is None else GIVEN_MODEL
        given = {name: getattr(self, name) for name in ModelDefaults._fields}
        return kind._replace(**{k: value for k, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class RLConfig(StepConfig):
    """`recast rl`: post-train a policy with one method."""

    output: str
    """Folder to create."""
    resume: bool = False
    """Go on in `output` with the newest whole checkpoint of the same run."""
    checkpoint_s: float = 60.0
    """Seconds between two checkpoints, at least; longer where they would cost 2 % of the run."""
    fsdp_size: int = 1
    """Ranks that share one copy of the weights, their gradients and the optimizer (FSDP2); of more
    ranks such groups are replicas of each other (HSDP). 1: each has a copy."""
    steps: int = 150
    """Rollout batches, each followed by its update."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises."""
    schedule: Schedule = "constant"
    """Of the rate after them: to zero (cosine, linear) or none (constant)."""
    ref_every: int | None = None
    """Steps after which the reference moves to the policy, again and again; unset: it stays what
    the run starts from."""
    ref_mix: float = 1.0
    """How far it then moves: 1 all the way, below 1 it is an exponential average of policies."""
    eval_every: int = 50
    """Steps between validations."""
    patience: int | None = None
    """Validations without a better NDCG@10 before training stops, that of the start counts as the
    first; unset: it never does."""
    keep: Keep = "last"
    """Weights in `policy/`: of the last step, or of the best validation NDCG@10 (the start's if
    none is better)."""
    valid_rows: int = 2000
    """Validation rows (a seeded sample) for the curve; they choose nothing without `patience` and
    `keep` best."""
    valid_metrics: list[str] = field(default_factory=lambda: list(VALID_METRICS))
    """What each validation logs at item level: hr, pass, first_pass, recall or ndcg at a k, as in
    `--valid_metrics hr@1 hr@10 ndcg@10`; a k above 32 lists as many beams."""
    valid_thoughts: int | None = None
    """Thoughts before the items of a validation row, with the sampler's limit and prefix, drawn as
    `recast evaluate --think.thoughts` draws them; unset: 1 where the sampler thinks; 0: none."""
    plain_text: str | None = None
    """File of chats or texts, of which a tenth tells before and after the run what the policy can
    still say."""

    save_every: int | None = None
    """Steps between policies that are kept in `steps/`, the last one among them; each with its hits
    and its invalid and malformed beams in decoding without the trie. Unset: none."""
    trackio: str | None = None
    """Project of trackio that gets the metrics too (`pip install "recast-rl[trackio]"`); unset:
    none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0, MOST_STEPS, "warmup_steps", "checkpoint_s")
        within(self, 1, MOST_STEPS, "steps", "eval_every", "patience", "ref_every", "save_every")
        within(self, 1, MOST_RANKS, "fsdp_size")
        self._check_reference()
        check_trackio(self)
        within(self, 1, 10 * MOST_STEPS, "valid_rows")
        check_metrics(self.valid_metrics)
        within(self, 0, 4096, "valid_thoughts")
        chooses = self.patience is not None or self.keep == "best"
        fits = not chooses or "ndcg@10" in self.valid_metrics
        need = "add ndcg@10, by which patience stops and keep best chooses"
        require(fits, "valid_metrics", self.valid_metrics, need)
        most = MOST_ROWS // self.prompts_per_step
        remedy = f"with prompts_per_step {self.prompts_per_step} give {most} or less"
        require(self.steps <= most, "steps", self.steps, remedy)
        fits = self.save_every is None or self.save_every <= self.steps
        need = f"the run has {self.steps} steps, give that or fewer"
        require(fits, "save_every", self.save_every, need)

    def _check_reference(self) -> None:
        """Of a reference that moves."""
        require_range("ref_mix", self.ref_mix, 0, 1, above=True)
        if self.ref_every is None:
            need = "it belongs to ref_every, give one"
            require(self.ref_mix == 1, "ref_mix", self.ref_mix, need)
            return
        need = "with lora.rank the reference is the policy without adapters, leave one of them out"
        require(self.lora.rank is None, "ref_every", self.ref_every, need)
        need = f"it would never move in {self.steps} steps, give fewer than these"
        require(self.ref_every < self.steps, "ref_every", self.ref_every, need)
