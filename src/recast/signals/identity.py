"""The rewards as they are: what a loss over a whole group (DPO, trajectory balance) asks for.

    A_i = r_i;   keep = the rollout exists

Positives are the kept rollouts with A > 0, negatives those with A = 0. `add_target` gives a group
without a positive its target as one more row, so that every group has a side to prefer; `distinct`
keeps one row per item, for losses that sum over a set of items.

Differs from the paper: no paper names it. The target is `recast`'s anchor, but it takes no
rollout's place.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recast.groups import append_target, is_new
from recast.types import RolloutGroups, Signal


def identity(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    add_target: bool = False,
    distinct: bool = False,
) -> Signal:
    """Rewards as advantages, all existing rollouts kept, with `distinct` the first of each SID.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[2, 8], [2, 8], [2, 9]]], [[[3, 8]]])
    >>> signal = identity(groups, torch.zeros(1, 3), add_target=True, distinct=True)
    >>> signal.advantages[..., 0], signal.keep
    (tensor([[0., 0., 0., 1.]]), tensor([[ True, False,  True,  True]]))
    """
    metrics = {}
    if add_target:
        groups, rewards, added = append_target(groups, rewards)
        metrics["group/target_added_frac"] = float(added.float().mean())
    keep = groups.exists
    if distinct:
        keep = keep & is_new(groups)
    return Signal(
        groups=groups,
        advantages=torch.where(keep, rewards, 0.0)[..., None],
        keep=keep,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics=metrics,
    )
