"""Dr. GRPO: rewards less their mean, not divided by their spread (arXiv 2503.20783, section 3.2).

    A_i = r_i - mean(r)

Without the division a group with one hit of 32 no longer weighs more than an even one. The other
half of the method, a loss that does not divide by a response's own length, is `losses/dr_grpo.py`.
All existing rollouts are kept; a group whose rewards are all equal gives exactly 0.

Differs from the paper: nothing.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from recast.signals.grpo import centre
from recast.types import RolloutGroups, Signal


def dr_grpo(groups: RolloutGroups, rewards: Float[Tensor, "B G"]) -> Signal:
    """Centred rewards as advantages, all existing rollouts kept.

    >>> import torch
    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [2, 8], [2, 9], [4, 1]]], [[[3, 8]]])
    >>> dr_grpo(groups, torch.tensor([[1.0, 0.0, 0.0, 0.0]])).advantages[..., 0]  # mean 0.25
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    return Signal(
        groups=groups,
        advantages=centre(rewards, groups.exists)[..., None],
        keep=groups.exists,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={},
    )
