"""RISER: GRPO where the group hit, SimPO pairs where it failed (arXiv 2602.00632).

    hit groups:  A_t = d_t (r - mean(r)) / (std(r) + eps)              over the distinct rollouts
    all-fail:    loss = mean over distinct rollouts y of -log sigmoid(beta (m* - m_y) - gamma)
                 m = sum_t d_t lp_t / sum_t d_t                        * = the target, an added row
    d_t = 1 where the trie branches, `forced_weight` < 1 where it allows one child only

The pairs enter as advantages. With s_y = beta sigmoid(gamma - beta (m* - m_y)) for each of D
negatives, n the group's counted tokens and c = `pair_weight`,

    A*_t = c n mean_y(s_y) d_t / sum_t d_t;     A_y,t = -c n s_y / D  d_t / sum_t d_t

so that at ratio 1 the gradient of PPO's sum over tokens is n times that of c loss: a failed group
weighs by its tokens, as every group does in a token mean. lp are the rollouts' recorded values.

Rollouts that repeat an earlier one leave the update. The distinct ones of a hit group stay, with
A = 0 too; a failed group leaves where it has no target or nothing to contrast it with. Of several
targets the added one is a seeded uniform choice.

Differs from the paper: how it weighs the two kinds of groups, and its constants, could not be
recovered; those here are ours. Its extra KL on outlier tokens is not built, the actor's KL covers
every kept token. Oversampling and de-duplication are the sampler `dynamic`, which keeps every copy
of the target; the copies leave here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.groups import append_target, has_hit, is_new
from recast.signals.grpo import require_eps, standardise
from recast.signals.simpo import simpo_pair, simpo_slope
from recast.types import LARGEST_FACTOR, RolloutGroups, Signal, require_range


def riser(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    fan_out: Callable[[RolloutGroups], Int[Tensor, "B G L"]],
    beta: float = 2.0,
    gamma: float = 0.5,
    forced_weight: float = 0.5,
    pair_weight: float = 1.0,
    eps: float = 1e-6,
) -> Signal:
    """Advantages per token on G + 1 rows: the group's and, where it failed, the target.

    A group with a hit, then one without, whose margin is gamma / beta so that s = 1; the first of
    three levels branches, so its share is 1 / (1 + 0.5 + 0.5), that of the others half of it:

    >>> from recast.testing import make_groups
    >>> rollouts = [[[3, 8, 1], [2, 8, 1]], [[2, 8, 1], [2, 9, 1]]]
    >>> groups = make_groups(rollouts, [[[3, 8, 1]]] * 2, logprobs=[[-3.75] * 2] * 2)  # m* = -1
    >>> branching = lambda groups: torch.tensor([2, 1, 1]).expand(groups.tokens.shape)
    >>> rewards = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> riser(groups, rewards, fan_out=branching).advantages[..., 0]  # below: 9 tokens * s * share
    tensor([[ 0.7071, -0.7071,  0.0000],
            [-2.2500, -2.2500,  4.5000]])
    """
    require_eps(eps)
    require_range("beta", beta, 0, LARGEST_FACTOR, above=True)
    require_range("gamma", gamma, 0, LARGEST_FACTOR)
    require_range("forced_weight", forced_weight, 0, 1)
    require_range("pair_weight", pair_weight, 0, LARGEST_FACTOR)
    wide, scores, added = append_target(groups, rewards)
    last = torch.arange(wide.items.shape[1], device=rewards.device) == groups.items.shape[1]
    is_target = added[:, None] & last
    hit = has_hit(groups, rewards)[:, None]
    distinct = wide.exists & ~is_target & is_new(wide)
    # A reward may overlook the target, and no rollout is contrasted with itself.
    negatives = distinct & (wide.tokens != wide.tokens[:, -1:]).any(-1)
    paired = added[:, None] & negatives.any(1, keepdim=True)
    keep = torch.where(hit, distinct, (negatives | is_target) & paired)
    counted = wide.loss_mask & keep[..., None]
    forced = fan_out(wide) == 1
    weight = torch.where(forced, forced_weight, 1.0).to(rewards.dtype) * wide.loss_mask
    share = weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)
    mean = (share * wide.rollout_logprobs.detach()).sum(-1)
    slopes = pair_slopes(mean, negatives, beta=beta, gamma=gamma)[..., None]
    pairs = pair_weight * counted.sum((1, 2), keepdim=True) * slopes * share
    standard = standardise(scores, distinct, eps)[..., None] * weight
    loss = simpo_pair(mean[:, -1:].expand_as(mean), mean, beta=beta, gamma=gamma)
    count = int((negatives & paired).sum())
    return Signal(
        groups=wide,
        advantages=torch.where(hit[..., None], standard, pairs) * counted,
        keep=keep,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={
            "group/paired_frac": float(paired.float().mean()),
            "signal/pair_loss": float(loss[negatives & paired].sum() / max(count, 1)),
            "signal/forced_frac": float((forced & counted).sum() / counted.sum().clamp(min=1)),
        },
    )


def pair_slopes(
    mean: Float[Tensor, "B G"], negatives: Bool[Tensor, "B G"], *, beta: float, gamma: float
) -> Float[Tensor, "B G"]:
    """Minus the gradient of the mean pair loss in the rows' m; the last row is the target.

    >>> mean, negatives = torch.tensor([[-1.2, -0.4]]), torch.tensor([[True, False]])
    >>> pair_slopes(mean, negatives, beta=2.0, gamma=0.5)
    tensor([[-0.4995,  0.4995]])
    """
    slope = simpo_slope(mean[:, -1:].expand_as(mean), mean, beta=beta, gamma=gamma) * negatives
    slope = slope / negatives.sum(1, keepdim=True).clamp(min=1)
    return torch.cat([-slope[:, :-1], slope.sum(1, keepdim=True)], dim=1)
