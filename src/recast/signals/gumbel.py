"""The plain policy gradient on Gumbel top-k rollouts, unbiased (weights of arXiv 1903.06059).

    A_i = n w_i (r_i - b)          n = existing rollouts per prompt, the mean of the batch

n undoes the actor's mean over rollouts, so the update follows, with L tokens per item,

    1/L mean over prompts of sum_i w_i (r_i - b) grad log p(y_i)

whose expectation is 1/L of the exact gradient of sum_y p(y) r(y) for every constant b, because
E[sum_i w_i grad log p(y_i)] = sum_y p grad log p = 0. A prompt with fewer rollouts than others
weighs as much as they do; one without any weighs nothing. Every existing rollout is kept: an
all-zero group is part of the mean.

Differs from the paper: it estimates BLEU and entropy with the weights and trains nothing; here they
weigh a policy gradient.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from recast.types import LARGEST_FACTOR, RecastError, RolloutGroups, Signal, require_range


def gumbel_pg(
    groups: RolloutGroups, rewards: Float[Tensor, "B G"], *, baseline: float = 0.0
) -> Signal:
    """Importance-weighted rewards as advantages, all existing rollouts kept.

    Raises `RecastError` for groups without weights and for a baseline out of range.

    >>> import torch
    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [2, 8]]], [[[3, 8]]], weights=[[0.5, 0.25]])
    >>> signal = gumbel_pg(groups, torch.tensor([[1.0, 0.0]]), baseline=0.5)
    >>> signal.advantages[..., 0]  # 2 * 0.5 * 0.5 and 2 * 0.25 * -0.5
    tensor([[ 0.5000, -0.2500]])
    """
    require_range("baseline", baseline, -LARGEST_FACTOR, LARGEST_FACTOR)
    weights, exists = groups.weights, groups.exists
    if weights is None:
        raise RecastError(
            "weights is None: gumbel_pg needs importance weights, use the sampler 'gumbel' and "
            "neither add_gt nor a repair"
        )
    weights = weights.to(rewards.dtype) * exists
    mean_count = exists.sum() / exists.any(1).sum().clamp(min=1)
    # (sum w)^2 / sum w^2, the number of equal weights that would estimate a mean as well.
    size = weights.sum(1).square() / weights.square().sum(1).clamp(min=1e-30)
    return Signal(
        groups=groups,
        advantages=(mean_count * weights * (rewards - baseline))[..., None],
        keep=exists,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={
            "signal/weight_sum": float(weights.sum(1).mean()),
            "signal/effective_size": float(size.mean()),
        },
    )
