"""Rows of a data set as prompts of a policy: BOS, then the tokens of the latest items."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from recast.data.folder import load_items
from recast.data.history import history, seen
from recast.items.catalog import Catalog
from recast.types import Interactions, Prompts, RecastError


def build_prompts(
    interactions: Interactions, catalog: Catalog, rows: Int[Tensor, " N"], window: int
) -> Prompts:
    """Prompts of each row's latest `window - 1` own items; the target is the row's item.

    They are made where the interactions are and used where the catalogue is.
    """
    items = history(interactions, rows, window - 1)
    items = items[:, : int((items >= 0).sum(1).max())] if len(rows) else items
    items = items.to(catalog.device)
    targets = interactions.items[rows][:, None].to(catalog.device)
    bos = items.new_full((len(rows), 1), catalog.bos_token)
    return Prompts(
        tokens=torch.cat([bos, catalog.tokens(items).flatten(1)], dim=1),
        lengths=1 + (items >= 0).sum(1) * catalog.num_levels,
        targets=catalog.tokens(targets),
        target_items=targets,
        history=items,
        seen=seen(interactions, rows).to(catalog.device),
        row_ids=rows.to(catalog.device),
    )


def by_length(
    lengths: Int[Tensor, " N"], branch_tokens: Int[Tensor, " N"], max_tokens: int
) -> Iterator[Int[Tensor, " B"]]:
    """Positions of prompts, shortest first, in batches of at most `max_tokens` tokens.

    Padding counts: a batch is as wide as its longest prompt and its most branch tokens. A prompt
    that is larger on its own makes a batch of its own.

    >>> lengths, branches = torch.tensor([5, 9, 4, 30]), torch.tensor([2, 2, 2, 2])
    >>> [batch.tolist() for batch in by_length(lengths, branches, 16)]
    [[2, 0], [1], [3]]
    """
    order = lengths.argsort(stable=True)
    while len(order):
        width = lengths[order] + branch_tokens[order].cummax(0).values
        tokens = width * torch.arange(1, len(order) + 1, device=order.device)
        count = max(int((tokens <= max_tokens).sum()), 1)
        yield order[:count]
        order = order[count:]


def check_catalog(data: str | Path, catalog: Catalog) -> None:
    """Raise `RecastError` unless the data folder and the catalogue hold the same items."""
    ids = load_items(data)["item_id"].to_list()
    remedy = "make the catalogue from this data with `recast tokenize`"
    if len(ids) != catalog.num_items:
        raise RecastError(
            f"the data has {len(ids)} items, the catalogue {catalog.num_items}: a target would be "
            f"missing; {remedy}"
        )
    for index, (own, other) in enumerate(zip(ids, catalog.item_ids, strict=True)):
        if own != other:
            raise RecastError(
                f"item {index} is {own!r} in the data, {other!r} in the catalogue: {remedy}"
            )
