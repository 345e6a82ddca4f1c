"""No rollouts at all: the likelihood of the target on every prompt, i.e. SFT continued.

The control that every comparison needs: same prompts, same optimizer steps, no search.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recast.types import RolloutGroups, Signal


def likelihood(groups: RolloutGroups, rewards: Float[Tensor, "B G"]) -> Signal:
    """Likelihood weight 1 for every prompt, no rollout kept.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [2, 8]]], [[[3, 8]]])
    >>> signal = likelihood(groups, torch.tensor([[1.0, 0.0]]))
    >>> signal.nll_weight, signal.keep
    (tensor([1.]), tensor([[False, False]]))
    """
    return Signal(
        groups=groups,
        advantages=torch.zeros_like(rewards)[..., None],
        keep=torch.zeros_like(rewards, dtype=torch.bool),
        nll_weight=rewards.new_ones(len(rewards)),
        metrics={},
    )
