"""Rows of a data set as prompts of a policy: BOS, then the tokens of the latest items."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

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


def check_catalog(interactions: Interactions, catalog: Catalog) -> None:
    """Raise `RecastError` unless every item of the data is in the catalogue."""
    if interactions.num_items != catalog.num_items:
        raise RecastError(
            f"the data has {interactions.num_items} items, the catalogue {catalog.num_items}: a "
            "target would be missing; make the catalogue from this data with `recast tokenize`"
        )
