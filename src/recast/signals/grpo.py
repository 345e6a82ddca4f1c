"""GRPO as OpenOneRec-RL runs it (arXiv 2512.24762, released code).

    A_i = (r_i - mean(r)) / (std(r) + eps)        std unbiased, eps = 1e-6

Every rollout stays in the update: an all-zero group has A = 0 and still counts in the denominator
and in the KL. A group whose rewards are all equal gives exactly 0.

Differs from the paper: duplicates are drawn independently here, not padded copies of a beam.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recast.types import RolloutGroups, Signal, require_range


def grpo(groups: RolloutGroups, rewards: Float[Tensor, "B G"], *, eps: float = 1e-6) -> Signal:
    """Standardised rewards as advantages, all existing rollouts kept.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [2, 8]], [[2, 8], [2, 9]]], [[[3, 8]], [[3, 8]]])
    >>> signal = grpo(groups, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))  # std of the first: 1 / 2^0.5
    >>> signal.advantages[..., 0]
    tensor([[ 0.7071, -0.7071],
            [ 0.0000,  0.0000]])
    """
    require_eps(eps)
    return Signal(
        groups=groups,
        advantages=standardise(rewards, groups.exists, eps)[..., None],
        keep=groups.exists,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={},
    )


def standardise(
    rewards: Float[Tensor, "B G"], exists: Bool[Tensor, "B G"], eps: float
) -> Float[Tensor, "B G"]:
    """(r - mean) / (unbiased std + eps) over the existing rollouts of each group.

    In float64: squares of large rewards overflow float32.

    >>> standardise(torch.tensor([[1., 0., 0., 0.]]), torch.ones(1, 4, dtype=torch.bool), 1e-6)
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    centred = centre(rewards.double(), exists)
    freedom = (exists.sum(1, keepdim=True) - 1).clamp(min=1)
    std = (centred.square().sum(1, keepdim=True) / freedom).sqrt()
    return torch.where(centred == 0, 0.0, centred / (std + eps)).to(rewards.dtype)


def centre(rewards: Float[Tensor, "B G"], exists: Bool[Tensor, "B G"]) -> Float[Tensor, "B G"]:
    """r - mean over the existing rollouts of each group; equal rewards give exactly 0.

    >>> centre(torch.tensor([[1., 0., 9.]]), torch.tensor([[True, True, False]]))
    tensor([[ 0.5000, -0.5000,  0.0000]])
    """
    if not rewards.numel():
        return rewards
    count = exists.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(exists, rewards, 0.0).double().sum(1, keepdim=True) / count
    first = rewards.gather(1, exists.int().argmax(1, keepdim=True))
    # The mean of equal numbers may differ from them in the last digit, hence the comparison.
    constant = ((rewards == first) | ~exists).all(1, keepdim=True)
    return torch.where(constant | ~exists, 0.0, rewards - mean).to(rewards.dtype)


def require_eps(eps: float) -> None:
    """Refuse a number that is no small addition to a standard deviation."""
    require_range("eps", eps, 0, 1)
