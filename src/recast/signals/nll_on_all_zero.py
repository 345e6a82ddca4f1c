"""Control: the target's likelihood where `recast` would repair, and no negative at all.

    a hit in the group:   A_i = (r_i - mean(r)) / (std(r) + eps),   as in GRPO
    none:                 no rollout kept,  -log p(target) with weight 1

What repair gains over this control is due to the anchor's place among the misses; what both gain is
supervised learning. Policy gradient and likelihood are two means, each over its own groups.

Differs from the paper: no paper runs it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from recast.groups import has_hit
from recast.signals.grpo import require_eps, standardise
from recast.types import RolloutGroups, Signal


def nll_on_all_zero(
    groups: RolloutGroups, rewards: Float[Tensor, "B G"], *, eps: float = 1e-6
) -> Signal:
    """GRPO on the groups with a hit, likelihood weight 1 for all others that have a target.

    >>> import torch
    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [2, 8]], [[2, 8], [2, 9]]], [[[3, 8]], [[3, 8]]])
    >>> signal = nll_on_all_zero(groups, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    >>> signal.advantages[0, :, 0], signal.keep.any(1), signal.nll_weight
    (tensor([ 0.7071, -0.7071]), tensor([ True, False]), tensor([0., 1.]))
    """
    require_eps(eps)
    hit = has_hit(groups, rewards)
    keep = groups.exists & hit[:, None]
    supervised = ~hit & (groups.prompts.target_items >= 0).any(1)
    return Signal(
        groups=groups,
        advantages=standardise(rewards, keep, eps)[..., None],
        keep=keep,
        nll_weight=supervised.to(rewards.dtype),
        metrics={"signal/nll_frac": float(supervised.float().mean())},
    )
