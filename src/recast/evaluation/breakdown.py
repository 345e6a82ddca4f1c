"""Whom the hits reach: by how often the target was seen in training, and by the row's history."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from recast.evaluation.metrics import row_metrics
from recast.evaluation.ranks import Ranks
from recast.types import Interactions

EVENTS = (0, 3, 10, 30, 100)
HISTORY = (1, 4, 6, 10)
"""Least of each group: the last has no end."""


def breakdown(ranks: Ranks, interactions: Interactions, splits: Sequence[str]) -> dict[str, Any]:
    """`grouped` of rows of `interactions`, whose target is the row's own item, by the events of
    `splits`."""
    rows = ranks.row_ids
    events = interactions.items[interactions.within(splits)].bincount(
        minlength=interactions.num_items
    )
    return grouped(
        ranks, splits, events[interactions.items[rows]], rows - interactions.starts[rows]
    )


def grouped(
    ranks: Ranks, splits: Sequence[str], events: Int[Tensor, " N"], before: Int[Tensor, " N"]
) -> dict[str, Any]:
    """HR and NDCG at 10 (at the width of shorter lists) of the rows grouped by the `events` that
    their first target has in `splits`, and by those that their user has `before` them, where any
    are known. Groups without a row have no metrics.
    """
    k = min(10, ranks.facts.beam_width or 10)
    metrics = row_metrics(ranks, [k], ["item"], ["hr", "ndcg"])
    values = {name.removeprefix("item/"): metric for name, metric in metrics.items()}
    groups = {"events_of": list(splits), "by_events": _groups(events, EVENTS, values)}
    return groups | ({"by_history": _groups(before, HISTORY, values)} if before.any() else {})


def groups_of(
    events: Int[Tensor, " N"], before: Int[Tensor, " N"]
) -> dict[str, tuple[list[str], Int[Tensor, " N"]]]:
    """Names of the groups of rows, and each row's (-1: none), by the events of the target (0: a
    cold item) and by those before the row."""
    kinds = {
        "events of the target": (events, (0, 1, *EVENTS[1:])),
        "events before": (before, HISTORY),
    }
    found = {}
    for kind, (counts, least) in kinds.items():
        names = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(least)]
        index = torch.bucketize(counts, torch.tensor(least), right=True) - 1
        if bool((index >= 0).any()):
            found[kind] = [*names, f"{least[-1]}+"], index
    return found


def _groups(
    counts: Int[Tensor, " N"], least: Sequence[int], values: dict[str, Tensor]
) -> list[dict[str, Any]]:
    index = torch.bucketize(counts, torch.tensor(least), right=True) - 1
    groups = []
    for number, first in enumerate(least):
        inside = index == number
        num_rows = int(inside.sum())
        last = least[number + 1] - 1 if number + 1 < len(least) else None
        group: dict[str, Any] = {"least": first, "most": last, "rows": num_rows}
        for name, metric in values.items():
            group[name] = float(metric[inside].mean()) if num_rows else None
        groups.append(group)
    return groups
