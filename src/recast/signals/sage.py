"""SAGE: several objectives of a whole list, each standardised before they meet (arXiv 2601.21452).

    R_m(S) = (prod_{t in S} max(r_{m,t}, floor))^(1/N)           over the N items of a list S
    x_S = sum_m w_m (R_m(S) - mu_m) / (sigma_m + eps)            mu, sigma over the prompt's lists
    A_S = x_S / (rms of x over all lists of the batch + eps)

A goes to every item of its list: row g * N + k is rank k of list g. Standardising before adding
keeps one objective from drowning the others. The batch norm needs no mean: every prompt's x sum
to 0, and a list of a prompt whose lists tie keeps exactly 0.

The objectives are the reward given and the structural score, the prefix that an item shares with
a target. The asymmetric trust region is the loss `sage_clip`.

Differs from the paper: its objectives are users' clicks, durations and comments on a list, which a
log of single events does not have. How a list's reward is to be made of its items' could not be
recovered: the geometric mean is our reading (the abstract has one of token ratios, which is in the
loss). `floor` keeps one miss from making a list worth 0 and is ours, as are equal w.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recast.rewards.scores import structural_score
from recast.signals.grpo import require_eps, standardise
from recast.signals.rank_grpo import as_lists
from recast.types import LARGEST_FACTOR, RolloutGroups, Signal, require_range


def sage(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    list_length: int,
    reward_weight: float = 1.0,
    structure_weight: float = 1.0,
    floor: float = 1e-3,
    eps: float = 1e-6,
) -> Signal:
    """The advantage of its list for every item, all existing items kept.

    With `list_length` 1 and `structure_weight` 0 it is GRPO divided by the spread of its advantages
    over the batch. `floor` lies below the smallest structural score of three levels, 0.01; above
    0.5 a miss would be worth more than half a hit, and at 1 as much.

    >>> from recast.testing import make_groups
    >>> rollouts = [[[3], [2], [4], [2]], [[2], [4], [4], [2]]]  # two lists of two per prompt
    >>> groups = make_groups(rollouts, [[[3]], [[3]]])
    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    >>> sage(groups, rewards, list_length=2).advantages[..., 0]  # x = 1.41, -1.41, 0, 0: rms 1
    tensor([[ 1.4142,  1.4142, -1.4142, -1.4142],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    require_eps(eps)
    require_range("floor", floor, 0, 0.5, above=True)
    weights = {"reward_weight": reward_weight, "structure_weight": structure_weight}
    for name, weight in weights.items():
        require_range(name, weight, 0, LARGEST_FACTOR)
    structure = structural_score(groups.predictions, groups.prompts.target_sids).to(rewards.dtype)
    exists = as_lists(groups.exists, list_length)
    slates = [
        slate_reward(as_lists(scores, list_length), exists, floor)
        for scores in (rewards, structure)
    ]
    is_list = exists.any(-1)
    advantages = slate_advantages(
        torch.stack(slates), is_list, torch.tensor(list(weights.values())).to(rewards), eps
    )
    return Signal(
        groups=groups,
        advantages=advantages.repeat_interleave(list_length, dim=1)[..., None],
        keep=groups.exists,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={"reward/slate": float((slates[0] * is_list).sum() / is_list.sum().clamp(min=1))},
    )


def slate_reward(
    rewards: Float[Tensor, "B G N"], exists: Bool[Tensor, "B G N"], floor: float
) -> Float[Tensor, "B G"]:
    """Geometric mean over the existing items of each list, none of them below `floor`.

    >>> slate_reward(torch.tensor([[[0.5, 0.8, 0.2]]]), torch.ones(1, 1, 3) > 0, 0.001)
    tensor([[0.4309]])
    """
    # Sorted and in float64, so that the same rewards in another order give the same number.
    logs = (rewards.double().clamp(min=floor).log() * exists).sort(-1).values
    return (logs.sum(-1) / exists.sum(-1).clamp(min=1)).exp().to(rewards.dtype)


def slate_advantages(
    rewards: Float[Tensor, "M B G"],
    exists: Bool[Tensor, "B G"],
    weights: Float[Tensor, " M"],
    eps: float,
) -> Float[Tensor, "B G"]:
    """Weighted standardised objectives of B prompts' G lists, over their rms in the batch.

    >>> lists = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    >>> slate_advantages(lists, torch.ones(2, 2) > 0, torch.ones(1), 1e-6)
    tensor([[ 1.4142, -1.4142],
            [ 0.0000,  0.0000]])
    """
    standard = torch.stack([standardise(objective, exists, eps) for objective in rewards])
    mixed = (weights[:, None, None] * standard).sum(0)
    scale = (mixed.square().sum() / exists.sum().clamp(min=1)).sqrt()
    return torch.where(mixed == 0, 0.0, mixed / (scale + eps))
