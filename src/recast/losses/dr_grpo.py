"""Dr. GRPO's loss: summed tokens over a constant, not over the response's length (2503.20783).

    loss_i = 1/L sum_t max(-A rho_t, -A clip(rho_t, 1 - low, 1 + high))     L = width of the tensor

A mean over a rollout's own tokens would push long wrong answers down less than short ones. The
other half of Dr. GRPO, advantages without the division by the standard deviation, is a signal.

Differs from the paper: its L is the largest number of new tokens, here the tokens of the longest
item. With semantic IDs, which are all equally long, it is the mean over a rollout's tokens.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from recast.losses.ppo_clip import clipped, ratio, require_clip
from recast.losses.rollouts import rollout_sum


def dr_grpo(
    logprobs: Float[Tensor, "B K L"],
    old_logprobs: Float[Tensor, "B K L"],
    advantages: Float[Tensor, "B K L"],
    loss_mask: Bool[Tensor, "B K L"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, "B K"]:
    """The loss of every rollout; PPO's usual clip range, no dual clip.

    >>> import torch
    >>> old = torch.zeros(1, 1, 2)
    >>> dr_grpo(old, old, old + 3.0, torch.tensor([[[True, False]]]))
    tensor([[-1.5000]])
    """
    require_clip(clip_low, clip_high)
    moved = ratio(logprobs - old_logprobs)
    tokens = clipped(moved, moved.clamp(1 - clip_low, 1 + clip_high), advantages)
    return rollout_sum(tokens, loss_mask) / loss_mask.shape[-1]
