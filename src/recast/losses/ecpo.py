"""ECPO, early-clipped GRPO of OneRec v1 (arXiv 2506.13695, section 2.4.1), per token.

    pi'_old = max( sg(pi) / (1 + e + d), pi_old );   rho = pi / pi'_old
    loss = max(-A rho, -A clip(rho, 1 - e, 1 + e))

rho never exceeds 1 + e + d, which matters for A < 0 alone: there PPO's loss grows without bound.

Differs from the paper: e could not be recovered and is PPO's usual 0.2; d is the paper's.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from recast.losses.ppo_clip import clipped, ratio, require_clip
from recast.types import LARGEST_FACTOR, require_range


def ecpo(
    logprobs: Float[Tensor, "*n"],
    old_logprobs: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float = 0.1,
) -> Float[Tensor, "*n"]:
    """The loss of every token; e is `clip_low` below and `clip_high` above.

    >>> ecpo(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.1, 0.45]).log(), -torch.ones(2))
    tensor([1.3000, 1.1111])
    """
    require_clip(clip_low, clip_high)
    require_range("delta", delta, 0, LARGEST_FACTOR)
    cap = math.log(1 + clip_high + delta)
    old = torch.maximum(logprobs.detach() - cap, old_logprobs)
    moved = ratio(logprobs - old)
    return clipped(moved, moved.clamp(1 - clip_low, 1 + clip_high), advantages)
