"""Trajectory balance over the trie, GFlowGR's loss (arXiv 2506.16114; TB: arXiv 2201.13259).

    loss = mean over the group's rollouts of ( log Z + log P_F - log R )^2
    log P_F = sum_t lp_t                                    P_B = 1: a prefix has one parent
    log Z = mean over the group of ( log R - log P_F ), detached

The policy is driven to P_F proportional to R, not to the best item. The advantages ARE the rewards
R >= 0. With that estimate of log Z (VarGrad, arXiv 2010.10436) the loss is the group's variance of
log P_F - log R: a group of one, or one in balance, gives exactly the gradient 0.

Differs from the paper: the estimate of log Z, which could not be recovered; `log_z` fixes it. R is
kept above `floor`, which is ours, for log 0 has no balance.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from recast.losses.rollouts import rollout_mean, rollout_sum
from recast.types import LARGEST_FACTOR, require_range


def trajectory_balance(
    logprobs: Float[Tensor, "B K L"],
    advantages: Float[Tensor, "B K L"],
    loss_mask: Bool[Tensor, "B K L"],
    *,
    floor: float = 0.01,
    log_z: float | None = None,
) -> Float[Tensor, " B"]:
    """The loss of every group.

    >>> import torch
    >>> lp, mask = torch.tensor([[[0.2, 0.5]]]).log(), torch.ones(1, 1, 2) > 0
    >>> trajectory_balance(lp, torch.full((1, 1, 2), 0.4), mask, log_z=0.693147)
    tensor([0.4805])
    """
    require_range("floor", floor, 0, 1, above=True)
    if log_z is not None:
        require_range("log_z", log_z, -LARGEST_FACTOR, LARGEST_FACTOR)
    kept = loss_mask.any(-1)
    rewards = rollout_mean(advantages, loss_mask).clamp(min=floor)
    flow = rollout_sum(logprobs, loss_mask) - rewards.log()
    count = kept.sum(1).clamp(min=1)
    estimate = -(flow.detach() * kept).sum(1, keepdim=True) / count[:, None]
    balance = flow + (estimate if log_z is None else log_z)
    return (balance.square() * kept).sum(1) / count
