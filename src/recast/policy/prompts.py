"""Rows of a data set as prompts of a policy: BOS, then the tokens of the latest items."""

from __future__ import annotations

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
    """Prompts of each row's latest `window - 1` own items; the target is the row's item."""
    items = history(interactions, rows, window - 1)
    items = items[:, : int((items >= 0).sum(1).max())] if len(rows) else items
    targets = interactions.items[rows][:, None]
    bos = torch.full((len(rows), 1), catalog.bos_token)
    return Prompts(
        tokens=torch.cat([bos, catalog.tokens(items).flatten(1)], dim=1),
        lengths=1 + (items >= 0).sum(1) * catalog.num_levels,
        targets=catalog.tokens(targets),
        target_items=targets,
        history=items,
        seen=seen(interactions, rows),
        row_ids=rows,
    )


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
