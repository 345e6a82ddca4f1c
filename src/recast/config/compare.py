"""Methods against each other, over seeds: `compare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recast.config.check import MOST_STEPS, check_settings, check_trackio, within
from recast.config.expected import check_expected
from recast.config.rows import take_rows
from recast.config.step import StepConfig
from recast.errors import require

MOST_SEEDS = 100


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """`recast compare`: several methods from one start, over seeds, in one table."""

    data: str
    """Folder made by `recast prepare`."""
    policy: list[str]
    """Folder of the policy that all start from, or one for every seed: then SFT is reseeded too."""
    output: str
    """Folder to create. One that the same comparison began goes on, with more seeds or methods
    too."""
    methods: list[str] = field(default_factory=lambda: ["recast", "openonerec_rl"])
    """Names of methods, and of rows that `rl` describes; `sft_continued` and the start are rows of
    the table all the same."""
    rl: dict[str, Any] = field(default_factory=dict)
    """Row -> its own settings of `recast rl`, or a YAML file of them, as in `mine: {method: recast,
    signal: "my.py:signal"}`; a row without a method has that of its name."""
    seeds: int = 3
    """Runs of each method, with the seeds 0, 1, ..."""
    group_sizes: list[int] = field(default_factory=lambda: [16])
    """Rollouts per prompt; each is a row of its own."""
    lrs: list[float] = field(default_factory=lambda: [1e-5, 3e-5, 1e-4])
    """Learning rates that each row tries with seed 0; the other seeds take the one with the best
    validation NDCG@10."""
    steps: int = 150
    """Rollout batches per run, each followed by its update."""
    prompts_per_step: int = 32
    """Prompts per step: the same ones in the same order for all methods of a seed."""
    eval_every: int = 25
    """Steps between validations: the curves' resolution."""
    valid_rows: int = 2000
    """Validation rows (a seeded sample) by which rates are chosen and curves drawn."""
    sampler: str | None = None
    """How all methods with rollouts roll out, a name; unset: each its own."""
    ranker: str | None = None
    """For methods that need one, as in `recast rl`."""
    embeddings: str | None = None
    """For rewards that need them: the folder of `recast tokenize` with its text embeddings."""
    mini_batch_rows: int | None = None
    """Kept rollouts per optimizer step, as the releases make them; unset: one step per rollout
    batch, which compares methods with the same number of steps."""
    beam_width: int = 50
    """Beams per test row."""
    device: str = "cpu"
    """Where the policies compute, as torch names it: cpu, cuda, cuda:1."""
    workers: int | None = None
    """Runs at once, each with one thread; unset: one per core that this process may use, on another
    device than the CPU one."""
    trackio: str | None = None
    """Project of trackio that gets the metrics of all runs too, as in `recast rl`."""
    expected: dict[str, Any] = field(default_factory=dict)
    """Row -> metric -> [least, most]: what a recipe is held to, as in `recast: {item/ndcg@10: [.1,
    .12]}`."""
    verify: bool = False
    """Fail unless every value that is `expected` is inside its band."""

    def __post_init__(self) -> None:
        check_settings(self)
        names = [name.strip() for some in self.methods for name in some.split(",")]
        object.__setattr__(self, "methods", names)
        for name in ("policy", "methods", "group_sizes", "lrs"):
            values = getattr(self, name)
            require(bool(values), name, values, "give one or more")
            is_once = name == "policy" or len(set(values)) == len(values)
            require(is_once, name, values, "one is there twice, name each once")
        check_trackio(self)
        within(self, 1, MOST_SEEDS, "seeds")
        within(self, 1, 1024, "workers")
        within(self, 10, MOST_STEPS, "beam_width")
        within(self, 1, MOST_STEPS, "steps", "eval_every")
        within(self, 1, 10 * MOST_STEPS, "valid_rows")
        within(self, 1, 2**24, "mini_batch_rows")
        fits = len(self.policy) in (1, self.seeds)
        need = f"give one, or one for each of the {self.seeds} seeds"
        require(fits, "policy", self.policy, need)
        for size in self.group_sizes:
            StepConfig(  # refuses it
                data=self.data,
                policy=self.policy[0],
                group_size=size,
                prompts_per_step=self.prompts_per_step,
            )
        for lr in self.lrs:
            require(0 < lr <= 1, "lrs", self.lrs, "give positive rates of 1 or less")
        told = {f"{lr:g}" for lr in self.lrs}  # names of folders
        require(
            len(told) == len(self.lrs), "lrs", self.lrs, "two are alike in six digits, give one"
        )
        check_expected(self)
        take_rows(self)

    def method_of(self, name: str) -> str:
        """The method of one of `methods`."""
        return str(self.rl.get(name, {}).get("method", name))
