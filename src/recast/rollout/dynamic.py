"""Dynamic sampling (ReRe, arXiv 2510.12211): draw more than needed, keep the target and variety.

    draw floor(oversample G) items;  keep
    1. every copy of the target, up to G
    2. one copy of each other item, most frequent first, of equals the first drawn
    3. a second copy of each that has one, in the same order, and so on until G are kept

Differs from the paper: what is kept is then sorted most probable first, as every group is here.
The released code knows one target; of several, the copies of all are kept first, as drawn.
"""

from __future__ import annotations

from math import floor

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recast.groups import most_probable_first, reorder
from recast.policy.load import Policy
from recast.rollout.check import check_group_size
from recast.rollout.distribution import Distribution
from recast.rollout.sample import draw_items
from recast.types import Draw, Prompts, RolloutGroups, require_range

MOST_OVERSAMPLE = 16
"""Draws are compared with each other, so cost and memory grow with its square."""


def dynamic(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    draw: Draw = Draw(),
    *,
    oversample: float = 1.5,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> RolloutGroups:
    """G of floor(`oversample` G) constrained draws; 1.5 is the released code's factor.

    The first G draws are those of `sample` with the same `temperature`, `top_p` and `top_k`. The
    group is chosen, so it is no sample of the policy: it has no weights. Raises `RecastError` for
    an `oversample` out of range and for what `Distribution` refuses.
    """
    check_group_size(group_size)
    require_range("oversample", oversample, 1, MOST_OVERSAMPLE)
    drawn_from = Distribution(temperature=temperature, top_p=top_p, top_k=top_k)
    drawn = draw_items(policy, prompts, floor(oversample * group_size), draw, drawn_from)
    same = (drawn.tokens[:, :, None] == prompts.targets[:, None]).all(-1)
    is_target = (same & (prompts.target_items >= 0)[:, None]).any(-1)
    return most_probable_first(reorder(drawn, select_dynamic(drawn.items, is_target, group_size)))


def select_dynamic(
    items: Int[Tensor, "B N"], is_target: Bool[Tensor, "B N"], group_size: int
) -> Int[Tensor, "B G"]:
    """Which of N >= G draws are kept, in the order of the rules above; -1 = no draw, taken last.

    Items 0, 0, 1, 2, 3, 0 with the target 2:

    >>> items = torch.tensor([[0, 0, 1, 2, 3, 0]])
    >>> items.gather(1, select_dynamic(items, items == 2, 4))
    tensor([[2, 0, 1, 3]])
    """
    num_draws = items.shape[1]
    same = items[:, :, None] == items[:, None]
    copies_before, count = same.tril(-1).sum(-1), same.sum(-1)
    first = same.int().argmax(-1)
    # One number that sorts by copies before, then by the larger count, then by the first draw.
    key = (copies_before * num_draws + num_draws - count) * num_draws + first
    drawn_at = torch.arange(num_draws, device=items.device)
    key = torch.where(is_target, drawn_at - num_draws, key)
    key = key.masked_fill(items < 0, num_draws**3)
    return key.argsort(dim=1, stable=True)[:, :group_size]
