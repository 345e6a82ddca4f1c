"""SAGE's asymmetric trust region around a geometric-mean ratio (arXiv 2601.21452).

    s_i = exp(mean_t (lp_t - lp_old_t));    H_i = mean_t -lp_old_t
    A > 0:  s <= 1 + high boost                        rare successes may move further
    A < 0:  s >= 1 - low (1 + penalty exp(-H_i))       likely failures may be pushed further down
    loss_i = max(-s_i A_i, -clip(s_i) A_i)

Differs from the paper: its constants and its exact bounds could not be recovered; boost, penalty
and exp(-H), with the rollout's mean surprisal for the entropy, are ours. The ratio is an item's,
not that of the whole list.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from recast.losses.ppo_clip import clipped, ratio, require_clip
from recast.losses.rollouts import rollout_mean
from recast.types import LARGEST_FACTOR, require, require_range


def sage_clip(
    logprobs: Float[Tensor, "B K L"],
    old_logprobs: Float[Tensor, "B K L"],
    advantages: Float[Tensor, "B K L"],
    loss_mask: Bool[Tensor, "B K L"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    boost: float = 2.0,
    penalty: float = 1.0,
) -> Float[Tensor, "B K"]:
    """The loss of every rollout; with boost 1 and penalty 0 it is GSPO's.

    >>> import torch
    >>> old, mask = torch.tensor([[[0.5]], [[0.5]]]).log(), torch.ones(2, 1, 1) > 0
    >>> lp = old + torch.tensor([[[1.6]], [[0.2]]]).log()
    >>> sage_clip(lp, old, torch.tensor([[[1.0]], [[-1.0]]]), mask)
    tensor([[-1.4000],
            [ 0.7000]])
    """
    require_clip(clip_low, clip_high)
    require_range("boost", boost, 1, LARGEST_FACTOR)
    require_range("penalty", penalty, 0, LARGEST_FACTOR)
    remedy = "give less, so that clip_low (1 + penalty) stays below 1"
    require(clip_low * (1 + penalty) < 1, "penalty", penalty, remedy)
    moved = ratio(rollout_mean(logprobs - old_logprobs, loss_mask))
    credit = rollout_mean(advantages, loss_mask)
    likely = rollout_mean(old_logprobs, loss_mask).exp()
    low = 1 - clip_low * (1 + penalty * likely * (credit < 0))
    high = 1 + clip_high * (1 + (boost - 1) * (credit > 0))
    return clipped(moved, moved.clamp(low, high), credit)
