"""What a step of post-training hangs on: shared by `rl`, which makes many, and `inspect`, one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from recast.config.check import (
    MOST_ROLLOUTS,
    MOST_STEPS,
    check_rate,
    check_seed,
    check_settings,
    check_threads,
    check_weights,
    within,
)
from recast.config.model import LoRAConfig
from recast.errors import LogprobSpace, require

Precision = Literal["float32", "bfloat16"]
"""Of the matrix products; weights, sums and the optimizer are in float32."""

KLRollouts = Literal["kept", "weighted"]
"""Which rollouts the KL is taken over: all that are kept, or those with an advantage."""

KLEstimator = Literal["k1", "k2", "k3", "abs"]
"""What the KL is estimated by, as verl names it."""

LossAgg = Literal["token-mean", "seq-mean-token-mean"]
"""Of losses per token and of the KL, as verl names it: a mean over all tokens that count, or over
those of each rollout first, so that long and short items weigh the same."""


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """One method on the prompts of one policy."""

    data: str
    """Folder made by `recast prepare`."""
    policy: str
    """Folder of the policy to start from (it carries its catalogue)."""
    catalog: str | None = None
    """The policy's catalogue with new items, made by `recast tokenize --extend`, in its place."""
    method: str = "recast"
    """Name of a method, see `recast methods`."""
    sampler: str | None = None
    """How to roll out, a name or module:function; unset: the method's own."""
    reward: str | None = None
    """A reward in place of the method's own, a name or module:function."""
    signal: str | None = None
    """A signal in place of the method's own, a name or module:function."""
    loss: str | None = None
    """A loss in place of the method's own, a name or module:function."""
    sampler_args: dict[str, Any] = field(default_factory=dict)
    """Parameters of the sampler, as in `--sampler_args.oversample 2`."""
    reward_args: dict[str, Any] = field(default_factory=dict)
    """Parameters of the reward, as in `--reward_args.form paper`."""
    signal_args: dict[str, Any] = field(default_factory=dict)
    """Parameters of the signal, as in `--signal_args.w 2`."""
    loss_args: dict[str, Any] = field(default_factory=dict)
    """Parameters of the loss, as in `--loss_args.clip_high 0.3`."""
    ranker: str | None = None
    """For methods that need one: item_knn (fitted on train alone), item_knn:FOLDER or another of
    `recast baselines`, a policy (one of one-level semantic IDs is the fastest), or
    module:function."""
    embeddings: str | None = None
    """For rewards that need them: the folder of `recast tokenize` with its text embeddings."""
    target_is_best: bool = True
    """Refuse a reward that gives another item more than a target; one that reads a ranker may."""
    nll_coef: float | None = None
    """Likelihood anchor: weight of the target's likelihood, added for every prompt; unset: the
    method's own."""
    add_gt: bool | None = None
    """Overwrite the last rollout of every group by the target; unset: the method's own."""
    group_size: int = 16
    """Rollouts per prompt; lists per prompt for methods that roll out lists."""
    list_length: int | None = None
    """Items per list, for methods that roll out lists; unset: the method's own."""
    prompts_per_step: int = 32
    """Prompts per step."""
    max_rollout_batches: int = 10
    """Rollout batches per step, at most, of methods that fill the batch with mixed groups."""
    lr: float | None = None
    """Learning rate, at its peak; unset: the method's own."""
    task_weights: dict[str, Any] = field(default_factory=dict)
    """How often each task of the data is drawn, as in `--task_weights.NAME 2`, 0: never; unset: by
    its rows."""
    kl_coef: float | None = None
    """Weight of KL(policy || reference); unset: the method's own."""
    kl_rollouts: KLRollouts = "kept"
    """Rollouts the KL is taken over: all that are kept (kept), or only those with an advantage, so
    that the others need not be sent through the models (weighted)."""
    kl_estimator: KLEstimator = "k3"
    """What the KL is estimated by, per token."""
    loss_agg: LossAgg | None = None
    """Mean of losses per token and of the KL over all tokens (token-mean), or over those of each
    rollout first (seq-mean-token-mean); unset: the method's own."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    mini_batch_rows: int | None = None
    """Kept rollouts per optimizer step: one pass over disjoint parts of the batch; unset: all."""
    updates_per_rollout: int = 1
    """How often the whole batch is learned from; 1 without mini-batches makes the ratio exactly
    1."""
    logprob_space: LogprobSpace | None = None
    """Log-probabilities over the whole vocabulary (full), the level's codes (level) or the allowed
    children (trie); unset: the one that the method needs, or that the policy was trained in."""
    micro_batch_tokens: int | None = None
    """Distinct tokens per pass through a model, at most; unset: what fits into half of the free
    memory."""
    pass_tokens: int | None = None
    """Tokens that take as long as one more pass: what padding is weighed against; unset:
    measured."""
    seed: int = 0
    """Seed of the prompts' order and of the rollouts."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Train adapters in place of all weights, as in `--lora.rank 8`."""
    device: str = "cpu"
    """Where the policy computes, as torch names it: cpu, cuda, cuda:1."""
    precision: Precision = "float32"
    """Of the matrix products; bfloat16 is faster where the hardware has it."""
    threads: int | None = None
    """Torch threads; unset: measured."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_seed(self.seed)
        check_threads(self)
        check_rate(self, "lr")
        within(self, 0, 1000, "kl_coef", "nll_coef")
        within(self, 1, 65536, "prompts_per_step")
        within(self, 1, 1000, "updates_per_rollout", "max_rollout_batches")
        within(self, 1, 2**24, "micro_batch_tokens", "pass_tokens", "mini_batch_rows")
        within(self, 1, 4096, "group_size", "list_length")
        check_weights(self.task_weights)
        # Sizes that are sensible alone may not be so together.
        lists = self.prompts_per_step * (self.list_length or 1)
        most = max(MOST_ROLLOUTS // lists, 1)
        remedy = f"with prompts_per_step {self.prompts_per_step} give {most} or less"
        require(lists * self.group_size <= MOST_ROLLOUTS, "group_size", self.group_size, remedy)
        norm = self.max_grad_norm
        require(norm > 0, "max_grad_norm", norm, "give a positive norm, .inf for none")
        fits = norm <= MOST_STEPS or norm == math.inf
        require(fits, "max_grad_norm", norm, f"give {MOST_STEPS} or less, .inf for none")
