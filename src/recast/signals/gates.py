"""Gates: on which prompts may the group's gradient add to the likelihood? With two controls.

    L = 1/n sum_x [ L_NLL(x) + lambda gate(x) L_GRPO(x) ],      gate(x) in {0, 1}

L is a mean over all prompts, open or not. Only the rollouts behind an open gate reach the actor,
which divides by what it gets; so their advantages are multiplied by the share of tokens that are
theirs, and the gradient is that of the mean over all. L_NLL and L_GRPO are means over tokens.

`random_gate` opens without looking, at a given rate; `fixed_mix` is always open. Both are controls
for AdaGRPO (arXiv 2606.08480): the first says what a gate gains by being shut, the second what the
mixture gains without one.

Differs from the paper: it compares with fixed mixtures, the random gate is ours. Its form of GRPO
could not be recovered; here it is that of `grpo`.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from recast.signals.grpo import require_eps, standardise
from recast.types import LARGEST_FACTOR, RolloutGroups, Signal, require_range


def random_gate(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    rate: float = 0.12,
    grpo_weight: float = 1.0,
    eps: float = 1e-6,
) -> Signal:
    """Open with probability `rate`, drawn per row; 0.12 is the share that AdaGRPO admits.

    >>> import torch
    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3], [2]], [[3], [2]]], [[[3]], [[3]]], seed=3)
    >>> groups.uniforms("random_gate", 1)[:, 0]
    tensor([0.4690, 0.6539], dtype=torch.float64)
    >>> signal = random_gate(groups, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), rate=0.5)
    >>> signal.keep.any(1), signal.advantages[0, :, 0]  # half of the tokens: GRPO's 0.7071 / 2
    (tensor([ True, False]), tensor([ 0.3536, -0.3536]))
    """
    require_range("rate", rate, 0, 1)
    gate = groups.uniforms("random_gate", 1)[:, 0] < rate
    return gated(groups, rewards, gate, grpo_weight=grpo_weight, eps=eps)


def fixed_mix(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    grpo_weight: float = 0.3,
    eps: float = 1e-6,
) -> Signal:
    """Likelihood plus `grpo_weight` times GRPO on every prompt.

    >>> import torch
    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [2, 8]]], [[[3, 8]]])
    >>> signal = fixed_mix(groups, torch.tensor([[1.0, 0.0]]))
    >>> signal.advantages[..., 0], signal.nll_weight  # 0.3 * 0.7071
    (tensor([[ 0.2121, -0.2121]]), tensor([1.]))
    """
    gate = groups.exists.new_ones(len(rewards))
    return gated(groups, rewards, gate, grpo_weight=grpo_weight, eps=eps)


def gated(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    gate: Bool[Tensor, " B"],
    *,
    grpo_weight: float,
    eps: float,
) -> Signal:
    """Likelihood weight 1 everywhere, standardised rewards where the gate is open."""
    require_range("grpo_weight", grpo_weight, 0, LARGEST_FACTOR)
    require_eps(eps)
    keep = groups.exists & gate[:, None]
    counted = groups.loss_mask
    admitted = int((counted & keep[..., None]).sum()) / max(int(counted.sum()), 1)
    advantages = standardise(rewards, groups.exists, eps) * keep
    return Signal(
        groups=groups,
        advantages=(grpo_weight * admitted * advantages)[..., None],
        keep=keep,
        nll_weight=rewards.new_ones(len(rewards)),
        metrics={"gate/admitted_frac": float(gate.float().mean())},
    )
