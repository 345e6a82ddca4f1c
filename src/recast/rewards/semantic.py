"""How alike are the texts of the rollout's item and of the target? (arXiv 2510.12211, `semantic`)

    r_i = max over t in T of cos( e(item_i), e(t) )

Every item embedding has unit length, one without text is all zero: its cosine with any is 0.

Differs from the paper: an item that does not exist gets the lowest cosine, -1, where the released
code stops with a KeyError. ReRe reports that the policy learns to please such a dense reward
instead of the user.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recast.types import RolloutGroups


def semantic(groups: RolloutGroups, *, embeddings: Float[Tensor, "I D"]) -> Float[Tensor, "B G"]:
    """Cosine with the nearest target, -1 where the SID is no item's.

    >>> from recast.testing import make_groups
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> groups = make_groups([[[2], [3], [4], [5]]], [[[2]]], items=[[0, 1, 2, -1]])
    >>> semantic(groups, embeddings=embeddings)
    tensor([[ 1.0000,  0.6000,  0.0000, -1.0000]])
    """
    items, targets = groups.items, groups.prompts.target_items
    cosine = embeddings[items.clamp(min=0)] @ embeddings[targets.clamp(min=0)].mT
    nearest = cosine.masked_fill((targets < 0)[:, None], -1.0).amax(-1).float()
    return torch.where(items < 0, -1.0, nearest) * groups.exists
