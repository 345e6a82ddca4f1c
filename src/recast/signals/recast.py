"""ReCast: repair an all-zero group, then contrast only its boundary (arXiv 2604.22169, section 3).

    u_i = mean over p in P_i of max over t in T of phi(p, t)
    phi = 10^-(levels after the common prefix)
    repair iff sum_i r_i = 0:   j = argmin_i u_i;  R_j := anchor (a target), r_j = 1
    i+ = argmax_i r_i;   i- = argmax_{i: r_i = 0} u_i
    A_{i+} = +w,  A_{i-} = -w;   every other rollout leaves the update

phi counts the common prefix: on three levels 1, 0.1, 0.01, and 0 when the first level differs.

Differs from the paper: it states no tie rules. Here rows come most probable first; argmin takes the
last of equals (the least probable), both argmax the first (for i-, the most probable wrong item).
A SID that repeats an earlier row's is passed over. Of several targets the anchor is a seeded
uniform choice. A group without a non-hit is skipped and counted.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.types import RecastError, RolloutGroups, Signal, is_first


def recast(groups: RolloutGroups, rewards: Float[Tensor, "B G"], *, w: float = 1.0) -> Signal:
    """The boundary pair of every (repaired) group with weights +w and -w."""
    num_prompts, group_size = rewards.shape
    if group_size < 2:
        raise RecastError(
            f"group_size is {group_size}: recast contrasts two rollouts, give 2 or more"
        )
    scores = structural_score(groups.predictions, groups.prompts.targets)
    all_zero = (rewards == 0).all(1)
    repaired, rewards, scores = repair(groups, rewards, scores, all_zero)
    positive, negative, has_pair = boundary_pair(
        rewards, scores, repaired.exists & is_first(repaired.predictions.squeeze(2))
    )
    rows = torch.arange(num_prompts, device=rewards.device)[has_pair]
    advantages = torch.zeros_like(rewards)
    advantages[rows, positive[has_pair]] = w
    advantages[rows, negative[has_pair]] = -w
    return Signal(
        groups=repaired,
        advantages=advantages[..., None],
        keep=advantages != 0,
        nll_weight=rewards.new_zeros(num_prompts),
        metrics={
            "group/repaired_frac": float(all_zero.float().mean()),
            "group/no_negative_frac": float((~has_pair).float().mean()),
            # What share of the pair's weight would be left if all G rows stayed in the mean.
            "signal/masked_scale": float((advantages != 0).float().mean()),
        },
    )


def structural_score(
    predictions: Int[Tensor, "B G R L"], targets: Int[Tensor, "B T L"]
) -> Float[Tensor, "B G"]:
    """u of every response, a set of up to R SIDs; -1 = none, repeats count once.

    >>> predictions = torch.tensor([[[[1, 2, 9]], [[1, 9, 9]], [[7, 7, 7]], [[-1, -1, -1]]]])
    >>> structural_score(predictions, torch.tensor([[[1, 2, 3]]]))
    tensor([[0.1000, 0.0100, 0.0000, 0.0000]])
    """
    num_levels = predictions.shape[-1]
    same = predictions[:, :, :, None] == targets[:, None, None]
    prefix = same.cumprod(-1).sum(-1)
    phi = torch.where(prefix > 0, 10.0 ** (prefix - num_levels), 0.0)
    phi = phi.masked_fill(~(targets >= 0).all(-1)[:, None, None], 0.0).amax(-1)
    counts = (predictions >= 0).all(-1) & is_first(predictions)
    return (phi * counts).sum(-1) / counts.sum(-1).clamp(min=1)


def repair(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    scores: Float[Tensor, "B G"],
    where: Bool[Tensor, " B"],
) -> tuple[RolloutGroups, Float[Tensor, "B G"], Float[Tensor, "B G"]]:
    """Replace the row of least score by a target in the groups `where`; it scores 1 and 1."""
    worst = rewards.shape[1] - 1 - scores.flip(1).argmin(1)
    columns = torch.arange(rewards.shape[1], device=rewards.device)
    replaced = (columns == worst[:, None]) & where[:, None]
    valid = (groups.prompts.target_items >= 0).double()
    draw = groups.uniforms("anchor", 1) * valid.sum(1, keepdim=True)
    chosen = torch.searchsorted(valid.cumsum(1), draw, right=True)[:, 0]
    rows = torch.arange(len(rewards), device=rewards.device)
    token = replaced[..., None]
    anchored = replace(
        groups,
        tokens=torch.where(token, groups.prompts.targets[rows, chosen][:, None], groups.tokens),
        items=torch.where(
            replaced, groups.prompts.target_items[rows, chosen][:, None], groups.items
        ),
        rollout_logprobs=torch.where(
            token, groups.target_logprobs[rows, chosen][:, None], groups.rollout_logprobs
        ),
        loss_mask=groups.loss_mask | token,
    )
    return anchored, rewards.masked_fill(replaced, 1.0), scores.masked_fill(replaced, 1.0)


def boundary_pair(
    rewards: Float[Tensor, "B G"], scores: Float[Tensor, "B G"], eligible: Bool[Tensor, "B G"]
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"], Bool[Tensor, " B"]]:
    """Strongest positive, hardest negative, and whether the group has both."""
    positive = rewards.masked_fill(~eligible, -torch.inf).argmax(1)
    misses = eligible & (rewards == 0)
    negative = scores.masked_fill(~misses, -torch.inf).argmax(1)
    return positive, negative, misses.any(1) & (eligible & (rewards > 0)).any(1)
