"""Did a rollout think in the right form? OpenOneRec's `think_format_reward` (onerec_recipe.py,
lines 386 to 407).

    format = 1[ more than 10 characters stand between <think> and </think> ]

Spaces do not count, nor what an item's tokens say: every rollout below a thought has the same. The
release logs it and trains on `first_hit`.

Differs from the release: `<think>` may end the prompt in place of beginning the response, where
the release gives 0 to every rollout.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recast.types import RolloutGroups


def think_format(groups: RolloutGroups) -> Float[Tensor, "B G"]:
    """1 below a thought of the right form; 0 everywhere where there are no thoughts.

    >>> from recast.testing import make_groups
    >>> think_format(make_groups([[[3, 8], [2, 9]]], [[[3, 8]]]))  # no tags
    tensor([[0., 0.]])
    """
    thoughts = groups.thoughts
    if thoughts is None:
        return torch.zeros_like(groups.items, dtype=torch.float32)
    return thoughts.has_format.gather(1, thoughts.of).float() * groups.exists
