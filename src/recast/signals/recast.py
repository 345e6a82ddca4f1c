"""ReCast: repair an all-zero group, then contrast only its boundary (arXiv 2604.22169, section 3).

    u_i = mean over p in P_i of max over t in T of phi(p, t)
    phi = 10^-(levels after the common prefix)
    repair iff sum_i r_i = 0:   j = argmin_i u_i;  R_j := anchor (a target), r_j = 1
    i+ = argmax_i r_i;   i- = argmax_{i: r_i = 0} u_i
    A_{i+} = +w,  A_{i-} = -w;   every other rollout leaves the update

`recast` does both; `repair_only` and `boundary_only` are the halves of its section 5.3.4.

Differs from the paper: it states no tie rules. Here rows come most probable first; argmin takes the
last of equals (the least probable), both argmax the first (for i-, the most probable wrong item).
A row that does not exist gives way before a real one. A response that repeats an earlier row's is
passed over. Of several targets the anchor is a seeded uniform choice. A group without a non-hit is
skipped and counted. r < 0, which its rewards never give, is a miss too.
"""

from __future__ import annotations

from math import inf

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.groups import choose_target, has_hit, is_new, overwrite
from recast.rewards.scores import structural_score
from recast.signals.grpo import require_eps, standardise
from recast.types import LARGEST_FACTOR, RolloutGroups, Signal, require_range


def recast(groups: RolloutGroups, rewards: Float[Tensor, "B G"], *, w: float = 1.0) -> Signal:
    """The boundary pair of every (repaired) group with weights +w and -w.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 9], [2, 8], [4, 1]]], [[[3, 8]]])  # u = 0.1, 0, 0
    >>> signal = recast(groups, torch.zeros(1, 3))
    >>> signal.groups.tokens[0].tolist()  # the last of the worst gives way to the target
    [[3, 9], [2, 8], [3, 8]]
    >>> signal.advantages[..., 0], signal.keep
    (tensor([[-1.,  0.,  1.]]), tensor([[ True, False,  True]]))
    """
    return _contrast(*repair(groups, rewards), w)


def boundary_only(
    groups: RolloutGroups, rewards: Float[Tensor, "B G"], *, w: float = 1.0
) -> Signal:
    """The boundary pair without repair: an all-zero group carries nothing.

    >>> from recast.testing import make_groups
    >>> rollouts = [[[2, 8], [3, 8], [3, 9]], [[3, 9], [2, 8], [4, 1]]]
    >>> groups = make_groups(rollouts, [[[3, 8]], [[3, 8]]])  # u = 0, 1, 0.1 and 0.1, 0, 0
    >>> signal = boundary_only(groups, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> signal.advantages[..., 0].tolist(), signal.keep.sum(1)
    ([[0.0, 1.0, -1.0], [0.0, 0.0, 0.0]], tensor([2, 0]))
    """
    return _contrast(groups, rewards, torch.zeros_like(rewards[:, 0], dtype=torch.bool), w)


def repair_only(
    groups: RolloutGroups, rewards: Float[Tensor, "B G"], *, eps: float = 1e-6
) -> Signal:
    """GRPO's advantages on the repaired groups, all existing rollouts kept.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 9], [2, 8], [4, 1], [4, 2]]], [[[3, 8]]])
    >>> repair_only(groups, torch.zeros(1, 4)).advantages[..., 0]  # of 0, 0, 0, 1
    tensor([[-0.5000, -0.5000, -0.5000,  1.5000]])
    """
    require_eps(eps)
    repaired, rewards, anchored = repair(groups, rewards)
    return Signal(
        groups=repaired,
        advantages=standardise(rewards, repaired.exists, eps)[..., None],
        keep=repaired.exists,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={"group/repaired_frac": float(anchored.float().mean())},
    )


def repair(
    groups: RolloutGroups, rewards: Float[Tensor, "B G"]
) -> tuple[RolloutGroups, Float[Tensor, "B G"], Bool[Tensor, " B"]]:
    """Replace the worst row of every group without a hit by a target of reward 1; and where.

    A prompt without a target stays as it is. The groups have no importance weights any more: the
    anchor was not drawn.
    """
    scores = structural_score(groups.predictions, groups.prompts.target_sids)
    target = choose_target(groups)
    where = ~has_hit(groups, rewards) & target.exists
    columns = torch.arange(rewards.shape[1], device=rewards.device)
    replaced = (columns == worst_row(scores, groups.exists)[:, None]) & where[:, None]
    return overwrite(groups, replaced, target), rewards.masked_fill(replaced, 1.0), where


def worst_row(scores: Float[Tensor, "B G"], exists: Bool[Tensor, "B G"]) -> Int[Tensor, " B"]:
    """The last row of least score; a row that does not exist scores below all.

    >>> worst_row(torch.tensor([[0.1, 0.01, 0, 0.05, 0]]), torch.ones(1, 5, dtype=torch.bool))
    tensor([4])
    """
    lowest = scores.masked_fill(~exists, -inf).flip(1).argmin(1)
    return scores.shape[1] - 1 - lowest


def boundary_pair(
    rewards: Float[Tensor, "B G"], scores: Float[Tensor, "B G"], eligible: Bool[Tensor, "B G"]
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"], Bool[Tensor, " B"]]:
    """Strongest positive, hardest negative, and whether the group has both.

    >>> rewards, scores = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.01, 0.1, 1]])
    >>> boundary_pair(rewards, scores, torch.ones(1, 3, dtype=torch.bool))
    (tensor([2]), tensor([1]), tensor([True]))
    """
    hits, misses = eligible & (rewards > 0), eligible & (rewards <= 0)
    positive = rewards.masked_fill(~hits, -inf).argmax(1)
    negative = scores.masked_fill(~misses, -inf).argmax(1)
    return positive, negative, hits.any(1) & misses.any(1)


def _contrast(
    groups: RolloutGroups, rewards: Float[Tensor, "B G"], anchored: Bool[Tensor, " B"], w: float
) -> Signal:
    require_range("w", w, 0, LARGEST_FACTOR, above=True)
    scores = structural_score(groups.predictions, groups.prompts.target_sids)
    eligible = groups.exists & is_new(groups)
    positive, negative, has_pair = boundary_pair(rewards, scores, eligible)
    columns = torch.arange(rewards.shape[1], device=rewards.device)
    sign = (columns == positive[:, None]).to(rewards) - (columns == negative[:, None]).to(rewards)
    keep = (sign != 0) & has_pair[:, None]
    no_negative = has_hit(groups, rewards) & ~(eligible & (rewards <= 0)).any(1)
    return Signal(
        groups=groups,
        advantages=torch.where(keep, w * sign, 0.0)[..., None],
        keep=keep,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={
            "group/repaired_frac": float(anchored.float().mean()),
            "group/no_negative_frac": float(no_negative.float().mean()),
            # What share of the pair's weight would be left if all rows stayed in the mean.
            "signal/masked_scale": float(keep.sum() / groups.exists.sum().clamp(min=1)),
        },
    )
