"""Adaptive repair (ours): the anchor recedes as the policy learns to hit by itself.

    repair as in ReCast;   A_i = (r_i - mean(r)) / (std(r) + eps),   as in GRPO
    in a repaired group:   A_i := (1 - f) A_i

f is the running share of groups that hold both a hit and a miss without repair (`natural_frac`).
ReCast (arXiv 2604.22169, section 6.2) calls its own repair static and asks for such a rule: useful
while nothing is hit, repair can harm once the policy produces trainable groups.

Differs from the paper: it only names the question. All rollouts are kept, no pair is picked.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recast.signals.grpo import require_eps, standardise
from recast.signals.recast import repair
from recast.types import RolloutGroups, Signal, require_range


def recast_adaptive(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    eps: float = 1e-6,
    natural_frac: float,
) -> Signal:
    """GRPO's advantages on the repaired groups, where repaired times 1 - natural_frac.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [2, 8]], [[2, 8], [2, 9]]], [[[3, 8]], [[3, 8]]])
    >>> rewards = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # after repair the second is 0, 1
    >>> recast_adaptive(groups, rewards, natural_frac=0.75).advantages[..., 0]
    tensor([[ 0.7071, -0.7071],
            [-0.1768,  0.1768]])
    """
    require_eps(eps)
    require_range("natural_frac", natural_frac, 0, 1)
    repaired, rewards, anchored = repair(groups, rewards)
    advantages = standardise(rewards, repaired.exists, eps)
    anchor_weight = 1 - natural_frac
    return Signal(
        groups=repaired,
        advantages=torch.where(anchored[:, None], anchor_weight * advantages, advantages)[
            ..., None
        ],
        keep=repaired.exists,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={
            "group/repaired_frac": float(anchored.float().mean()),
            "signal/anchor_weight": anchor_weight,
        },
    )
