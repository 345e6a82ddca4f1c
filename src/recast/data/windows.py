"""Windows of users' histories, W items each: what SFT cuts its sequences from."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from recast.draws import uniforms
from recast.types import Interactions


def user_windows(
    interactions: Interactions,
    rows: Int[Tensor, " E"],
    *,
    width: int,
    seed: int,
    epoch: int,
    backwards_frac: float = 0.0,
    crop_frac: float = 0.0,
) -> Int[Tensor, "N W"]:
    """Every user's events among `rows`, behind the user's first, cut into windows of `width` items,
    shuffled; -1 pads on the right.

    Each epoch cuts at new offsets, except users who fit one window, and reorders the events that
    share user and time: their order is unknown, so any of them is as true as another. A part of
    the windows is cropped: it begins at a random item, the last one excepted. A part is read
    backwards. Windows of a single item are dropped.
    """
    # A row has a history, so a user's first event is none; but it is read.
    chosen = torch.cat([rows, interactions.starts[rows]]).unique()
    tie_break = uniforms(seed, epoch, chosen, "order", 1)[:, 0]
    order = tie_break.argsort()
    for key in (interactions.times, interactions.users):
        order = order[key[chosen[order]].argsort(stable=True)]
    users, items = interactions.users[chosen[order]], interactions.items[chosen[order]]
    index = torch.arange(len(users))
    first = torch.searchsorted(users, users)  # sorted: the first event of the same user
    count = torch.searchsorted(users, users, right=True) - first
    shift = (uniforms(seed, epoch, users, "offset", 1)[:, 0] * width).long() * (count > width)
    place = index - first + shift
    starts = (place % width == 0) | (index == first)
    row = starts.long().cumsum(0) - 1
    column = index - index[starts][row]
    windows = items.new_full((int(row[-1]) + 1 if len(row) else 0, width), -1)
    windows[row, column] = items
    windows = windows[windows[:, 1] >= 0]
    number = torch.arange(len(windows))
    is_cropped = uniforms(seed, epoch, number, "crop", 1) < crop_frac
    spare = (windows >= 0).sum(1, keepdim=True) - 1  # two items stay
    cut = (uniforms(seed, epoch, number, "cut", 1) * spare).long() * is_cropped
    kept = torch.arange(width) + cut
    windows = windows.gather(1, kept % width).masked_fill(kept >= width, -1)
    backwards = uniforms(seed, epoch, number, "backwards", 1) < backwards_frac
    mirrored = ((windows >= 0).sum(1, keepdim=True) - 1 - torch.arange(width)) % width
    windows = torch.where(backwards, windows.gather(1, mirrored), windows)
    return windows[uniforms(seed, epoch, number, "shuffle", 1)[:, 0].argsort()]
