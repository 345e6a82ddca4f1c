"""Data sets written as one list of items per user, for the tests of this folder."""

from __future__ import annotations

import torch

from recast.types import SPLITS, Interactions


def small_events(
    sequences: list[list[int]],
    splits: list[list[str]] | None = None,
    num_items: int | None = None,
    exclude_seen: bool = True,
) -> Interactions:
    """User u made the events `sequences[u]`, in that order; all in `test` unless said otherwise."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    items = torch.tensor([item for sequence in sequences for item in sequence])
    flat = ["test"] * len(items) if splits is None else [name for user in splits for name in user]
    users = torch.arange(len(sequences)).repeat_interleave(lengths)
    return Interactions(
        users=users,
        items=items,
        times=torch.arange(len(items)),
        starts=(lengths.cumsum(0) - lengths)[users],
        splits=torch.tensor([SPLITS.index(name) for name in flat]),
        num_users=len(sequences),
        num_items=int(items.max()) + 1 if num_items is None else num_items,
        exclude_seen=exclude_seen,
        split_name="by hand",
    )


def random_events(seed: int = 0, num_items: int = 12) -> Interactions:
    """20 users of 8 events each: 4 to train on, 2 for RL, one validation and one test row."""
    draw = torch.Generator().manual_seed(seed)
    sequences = [torch.randperm(num_items, generator=draw)[:8].tolist() for _ in range(20)]
    return small_events(
        sequences, [["train"] * 4 + ["rl"] * 2 + ["valid", "test"]] * 20, num_items=num_items
    )
