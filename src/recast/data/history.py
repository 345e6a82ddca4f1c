"""Looking back from a row: row ids in, the items of the user's own earlier events out."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from recast.types import Interactions


def history(interactions: Interactions, rows: Int[Tensor, " N"], width: int) -> Int[Tensor, "N H"]:
    """The latest `width` items before each row, oldest first, right-padded with -1.

    Example, a user's items 5, 7, 5 as rows 0 to 2: `history(..., rows=[0, 2], width=3)` is
    `[[-1, -1, -1], [5, 7, -1]]`.
    """
    length = (rows - interactions.starts[rows]).clamp(max=width)
    offset = torch.arange(width, device=rows.device)
    event = (rows - length)[:, None] + offset
    inside = offset < length[:, None]
    # Padding reads the row's own event, which always exists, and is then overwritten.
    return interactions.items[torch.where(inside, event, rows[:, None])].masked_fill(~inside, -1)


def seen(interactions: Interactions, rows: Int[Tensor, " N"]) -> Int[Tensor, "N S"]:
    """All items before each row, right-padded with -1; width 0 unless the data excludes them."""
    if not interactions.exclude_seen or not len(rows):
        return interactions.items.new_zeros((len(rows), 0))
    return history(interactions, rows, int((rows - interactions.starts[rows]).max()))
