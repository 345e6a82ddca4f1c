"""Methods: frozen values that name samplers, a reward, a signal and a loss with their defaults.

Changing a method is one line: `METHODS["mine"] = replace(METHODS["recast"], signal=my_signal)`, and
`mine` is a method like the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import get_args

from jaxtyping import Float
from torch import Tensor

from recast import losses, rewards, signals
from recast.config import LossAgg
from recast.methods.names import nearest
from recast.types import LogprobSpace, Loss, RecastError, Signal, require


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way of turning rollouts into an update."""

    summary: str
    paper: str = ""
    """arXiv id; empty for ours."""
    label: str
    """Name in tables."""
    samplers: tuple[str, ...] = ("sample", "beam", "dynamic")
    """Samplers that can serve it, the first by default; none: it needs no rollouts."""
    reward: Callable[..., Float[Tensor, "B G"]] = rewards.first_hit
    signal: Callable[..., Signal]
    loss: Loss = losses.ppo_clip
    space: LogprobSpace = "full"
    """`trie` where the method's formula needs probabilities over the allowed children."""
    lr: float = 3e-5
    """Ours, for models below a million parameters; OpenOneRec's 2e-6 belongs to 1.7 billion."""
    kl_coef: float = 0.001
    """OpenOneRec's run_grpo.sh, `low_var_kl`."""
    loss_agg: LossAgg = "token-mean"
    """Of a loss per token and of the KL; `seq-mean-token-mean` where the source averages every
    rollout first, which is another number for items of unequal lengths."""
    nll_coef: float = 0.0
    """Likelihood anchor: weight of the target's likelihood, added for every prompt."""
    add_gt: bool = False
    """Overwrite the last rollout of every group by the target, whether or not it was hit."""
    min_group_size: int = 2
    list_length: int = 1
    """Items per list, for samplers of lists."""
    fill_batch: bool = False
    """Roll out further prompts until the batch is full of groups whose rewards differ."""

    def __post_init__(self) -> None:
        """Raise `RecastError` for a value that no run could use."""
        for name in ("reward", "signal", "loss"):
            require(callable(getattr(self, name)), name, getattr(self, name), "give a function")
        named = isinstance(self.samplers, tuple) and all(isinstance(x, str) for x in self.samplers)
        require(named, "samplers", self.samplers, "give a tuple of names, () for no rollouts")
        needs_none = bool(self.samplers) or self.min_group_size == 0
        remedy = "a method without samplers has 0, its signal gets no rollouts"
        require(needs_none, "min_group_size", self.min_group_size, remedy)
        spaces = get_args(LogprobSpace)
        require(self.space in spaces, "space", self.space, f"choose one of {', '.join(spaces)}")
        ways = get_args(LossAgg)
        require(self.loss_agg in ways, "loss_agg", self.loss_agg, f"choose {' or '.join(ways)}")
        require(isinstance(self.add_gt, bool), "add_gt", self.add_gt, "give True or False")
        require(0 < self.lr < inf, "lr", self.lr, "give a positive rate")
        for name in ("kl_coef", "nll_coef"):
            value = getattr(self, name)
            require(0 <= value < inf, name, value, "give 0 or more")

    @property
    def sampler(self) -> str | None:
        return self.samplers[0] if self.samplers else None


_THINKING = ("sample", "beam", "dynamic", "think", "openonerec")
"""Of methods with one advantage per rollout and no likelihood."""

METHODS: dict[str, Method] = {
    "openonerec_rl": Method(
        summary="GRPO on every rollout, the baseline of OpenOneRec",
        paper="2512.24762",
        label="GRPO",
        samplers=_THINKING,
        signal=signals.grpo,
    ),
    "recast": Method(
        summary="repair all-zero groups, contrast the boundary pair",
        paper="2604.22169",
        label="ReCast",
        samplers=_THINKING,
        reward=rewards.set_ratio,
        signal=signals.recast,
    ),
    "recast_repair_only": Method(
        summary="ablation of recast: repair, then GRPO on the whole group",
        paper="2604.22169",
        label="ReCast, repair only",
        samplers=_THINKING,
        reward=rewards.set_ratio,
        signal=signals.repair_only,
    ),
    "recast_boundary_only": Method(
        summary="ablation of recast: the boundary pair of groups that hit, no repair",
        paper="2604.22169",
        label="ReCast, boundary only",
        samplers=_THINKING,
        reward=rewards.set_ratio,
        signal=signals.boundary_only,
    ),
    "recast_levels": Method(
        summary="repair, then one soft negative for every level of the target's path",
        label="ReCast, levels",
        reward=rewards.set_ratio,
        signal=signals.recast_levels,
    ),
    "recast_adaptive": Method(
        summary="repair whose weight recedes as groups become trainable by themselves",
        label="ReCast, adaptive",
        samplers=_THINKING,
        reward=rewards.set_ratio,
        signal=signals.recast_adaptive,
    ),
    "rere": Method(
        summary="constrained beams, punish the more probable wrong items more",
        paper="2510.12211",
        label="ReRe",
        samplers=("beam", "sample", "dynamic", "think", "openonerec"),
        reward=rewards.ranking,
        signal=partial(signals.grpo, eps=1e-4),
        loss=losses.reinforce,
        loss_agg="seq-mean-token-mean",
    ),
    "rere_anchored": Method(
        summary="rere with a likelihood anchor",
        label="ReRe, anchored",
        samplers=("beam", "sample", "dynamic"),
        reward=rewards.ranking,
        signal=partial(signals.grpo, eps=1e-4),
        loss=losses.reinforce,
        loss_agg="seq-mean-token-mean",
        nll_coef=0.1,
    ),
    "minionerec": Method(
        summary="the same trainer as rere, on semantic IDs",
        paper="2510.24431",
        label="MiniOneRec",
        samplers=("beam", "sample", "dynamic", "think", "openonerec"),
        reward=rewards.ranking,
        signal=partial(signals.grpo, eps=1e-4),
        loss=losses.reinforce,
        loss_agg="seq-mean-token-mean",
    ),
    "adagrpo": Method(
        summary="likelihood, plus GRPO where the policy is unsure and the ranker is not",
        paper="2606.08480",
        label="AdaGRPO",
        reward=rewards.collaborative,
        signal=partial(signals.adagrpo, tau=0.5, rho=0.25),
        kl_coef=0.0,
    ),
    "random_gate": Method(
        summary="control of adagrpo: a gate that opens at random, at a given rate",
        label="Random gate",
        reward=rewards.collaborative,
        signal=signals.random_gate,
        kl_coef=0.0,
    ),
    "fixed_mix": Method(
        summary="control of adagrpo: likelihood plus a fixed share of GRPO, no gate",
        label="Fixed mix",
        reward=rewards.collaborative,
        signal=signals.fixed_mix,
        kl_coef=0.0,
    ),
    "ungated": Method(
        summary="control of adagrpo: the gate always open",
        label="Ungated",
        reward=rewards.collaborative,
        signal=partial(signals.fixed_mix, grpo_weight=1.0),
        kl_coef=0.0,
    ),
    "sft_continued": Method(
        summary="control: the target's likelihood on the same prompts, no rollouts",
        label="SFT continued",
        samplers=(),
        signal=signals.likelihood,
        kl_coef=0.0,
        min_group_size=0,
    ),
    "reward_weighted": Method(
        summary="control: the target's likelihood weighted by exp(reward / lam), no rollouts",
        paper="2603.10279",
        label="Reward-weighted SFT",
        samplers=(),
        signal=signals.reward_weighted,
        kl_coef=0.0,
        min_group_size=0,
    ),
    "nll_on_all_zero": Method(
        summary="control of recast: GRPO, and the target's likelihood where nothing was hit",
        label="NLL on all-zero",
        signal=signals.nll_on_all_zero,
    ),
    "dr_grpo": Method(
        summary="GRPO without division by the deviation or the length",
        paper="2503.20783",
        label="Dr. GRPO",
        signal=signals.dr_grpo,
        loss=losses.dr_grpo,
        kl_coef=0.0,
    ),
    "dapo": Method(
        summary="clip-higher, token mean, batches filled with groups whose rewards differ",
        paper="2503.14476",
        label="DAPO",
        samplers=("sample", "think"),
        signal=signals.grpo,
        loss=partial(losses.ppo_clip, dual_clip=inf),
        kl_coef=0.0,
        fill_batch=True,
    ),
    "gspo": Method(
        summary="GRPO with one clipped ratio per sequence",
        paper="2507.18071",
        label="GSPO",
        samplers=_THINKING,
        signal=signals.grpo,
        loss=losses.gspo,
        kl_coef=0.0,
    ),
    "ecpo": Method(
        summary="GRPO whose ratio is capped early for negatives (OneRec)",
        paper="2506.13695",
        label="ECPO",
        samplers=_THINKING,
        signal=signals.grpo,
        loss=losses.ecpo,
        kl_coef=0.0,
    ),
    "gbpo": Method(
        summary="GRPO with the ratio bounded by the gradient of cross-entropy (OneRec-V2)",
        paper="2508.20900",
        label="GBPO",
        samplers=_THINKING,
        signal=signals.grpo,
        loss=losses.gbpo,
        kl_coef=0.0,
    ),
    "riser": Method(
        summary="GRPO where the group hit, SimPO pairs against the target where it failed",
        paper="2602.00632",
        label="RISER",
        samplers=("dynamic", "sample", "beam"),
        signal=signals.riser,
    ),
    "vstar": Method(
        summary="sibling-relative advantages, one per prefix of the trie",
        paper="2602.10699",
        label="V-STAR",
        samplers=("beam", "sample", "dynamic"),
        signal=signals.vstar,
        space="trie",
    ),
    "sage": Method(
        summary="objectives of a list, standardised before they are added",
        paper="2601.21452",
        label="SAGE",
        samplers=("lists",),
        list_length=4,
        signal=signals.sage,
        loss=losses.sage_clip,
        kl_coef=0.0,
    ),
    "rank_grpo": Method(
        summary="a return and a baseline for every rank of a list",
        paper="2510.20150",
        label="Rank-GRPO",
        samplers=("lists",),
        list_length=4,
        signal=signals.rank_grpo,
        loss=partial(losses.gspo, clip_low=0.06, clip_high=0.08),
    ),
    "gflowgr": Method(
        summary="rollouts in proportion to their reward: trajectory balance over the trie",
        paper="2506.16114",
        label="GFlowGR",
        samplers=("sample", "beam"),
        reward=rewards.gflow,
        signal=signals.identity,
        loss=losses.trajectory_balance,
        space="trie",
        kl_coef=0.0,
        nll_coef=1.0,
    ),
    "dpo": Method(
        summary="DPO on pairs of the target and each wrong rollout",
        paper="2305.18290",
        label="DPO",
        signal=partial(signals.identity, add_target=True, distinct=True),
        loss=losses.dpo,
        kl_coef=0.0,
    ),
    "s_dpo": Method(
        summary="softmax DPO: the target against all wrong rollouts at once",
        paper="2406.09215",
        label="S-DPO",
        signal=partial(signals.identity, add_target=True, distinct=True),
        loss=losses.s_dpo,
        kl_coef=0.0,
    ),
    "gumbel_pg": Method(
        summary="unbiased policy gradient on items drawn without replacement",
        paper="1903.06059",
        label="Gumbel top-k",
        samplers=("gumbel",),
        signal=signals.gumbel_pg,
        space="trie",
        kl_coef=0.0,
    ),
}


def find_method(name: str) -> Method:
    """The method of that name; `RecastError` with the nearest name otherwise."""
    if name not in METHODS:
        raise RecastError(
            f"method is {name!r}: {nearest(name, METHODS)}choose one of {', '.join(METHODS)}"
        )
    return METHODS[name]


def require_group(method: Method, group_size: int, name: str) -> None:
    """Raise `RecastError` for fewer rollouts than a method learns from."""
    need = f"method {name!r} needs {method.min_group_size} rollouts or more per prompt"
    require(group_size >= method.min_group_size, "group_size", group_size, need)
