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

from recast.types import RolloutGroups, Signal


def grpo(groups: RolloutGroups, rewards: Float[Tensor, "B G"], *, eps: float = 1e-6) -> Signal:
    """Standardised rewards as advantages, all existing rollouts kept."""
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

    >>> standardise(torch.tensor([[1., 0., 0., 0.]]), torch.ones(1, 4, dtype=torch.bool), 1e-6)
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    count = exists.sum(1, keepdim=True)
    mean = (rewards * exists).sum(1, keepdim=True) / count.clamp(min=1)
    centred = (rewards - mean) * exists
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    first = rewards.gather(1, exists.int().argmax(1, keepdim=True))
    constant = ((rewards == first) | ~exists).all(1, keepdim=True)
    return torch.where(constant, 0.0, centred / (std + eps))
