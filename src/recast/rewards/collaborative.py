"""What does a ranker of the same logs think of the rollout's item? (2510.12211, `sasrec`)

    r_i = score of item_i for the prompt, the ranker's raw score

Differs from the paper: an item that does not exist gets the lowest score of the group's items, and
0 where the group has none; the released code gives it a random item's. The ranker is any that is
supplied, not only SASRec.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recast.types import Ranker, RolloutGroups


def collaborative(groups: RolloutGroups, *, ranker: Ranker) -> Float[Tensor, "B G"]:
    """The ranker's score of every rollout's item.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[4], [3], [5]]], [[[4]]], items=[[2, 1, -1]])
    >>> collaborative(groups, ranker=lambda prompts, items: items + 0.5)  # the last has no item
    tensor([[2.5000, 1.5000, 1.5000]])
    """
    items = groups.items
    scores = ranker(groups.prompts, items.clamp(min=0)).detach().float()
    valid = items >= 0
    lowest = scores.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    lowest = torch.where(valid.any(1, keepdim=True), lowest, 0.0)
    return torch.where(valid, scores, lowest) * groups.exists
