"""Token sequences of a policy: histories of items or tokens of any kind in, `Prompts` out."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from recast.items.catalog import Catalog
from recast.types import Prompts, require


def make_prompts(
    catalog: Catalog,
    *,
    targets: Int[Tensor, "B T"],
    history: Int[Tensor, "B H"] | None = None,
    text: tuple[Int[Tensor, "B P"], Int[Tensor, " B"]] | None = None,
    seen: Int[Tensor, "B S"] | None = None,
    row_ids: Int[Tensor, " B"] | None = None,
) -> Prompts:
    """Prompts that are BOS and the items of `history`, oldest first, or a `text` of one's own:
    right-padded tokens and their lengths.

    All items are indices, -1 as padding on the right. T may be 0, as for a request that is served:
    the rollouts are the same. Nothing is `seen` by default, and rows are numbered from 0. Beside a
    text the history is for rankers alone. Made where the catalogue is.

    Raises `RecastError` for items that there are not, padding that is not on the right of a
    history, unequal numbers of rows, what is no tensor of whole numbers, and a text with an empty
    row or a token below 0.
    """
    _whole("targets", targets, 2)
    count, device = len(targets), catalog.device
    for name, given in (("targets", targets), ("history", history), ("seen", seen)):
        if given is None:
            continue
        _whole(name, given, 2)
        require(len(given) == count, f"rows of {name}", len(given), f"give {count}, as of targets")
        inside = (given >= -1) & (given < catalog.num_items)
        wrong = given[~inside].tolist()[:1]
        require(not wrong, name, wrong, f"give items from 0 to {catalog.num_items - 1}, or -1")
    if history is not None and history.shape[1]:
        gap = (history[:, 1:] >= 0) & (history[:, :-1] < 0)
        remedy = "stand left of an item: pad on the right"
        row = int(gap.any(1).int().argmax()) if bool(gap.any()) else 0
        require(not bool(gap.any()), "history", history[row].tolist(), f"no -1 may {remedy}")
    if row_ids is not None:
        _whole("row_ids", row_ids, 1)
        require(len(row_ids) == count, "row_ids", len(row_ids), f"give {count}, as of targets")
    if text is not None:
        _check_text(*text, count)
    nothing = torch.empty(count, 0, dtype=torch.long, device=device)
    items = nothing if history is None else history.to(device)
    targets = targets.to(device)
    written = catalog.tokens_of(targets)
    tokens, lengths = write_items(catalog, items) if text is None else text
    return Prompts(
        tokens=tokens.to(device),
        lengths=lengths.to(device),
        targets=written,
        target_items=targets,
        target_mask=catalog.mask_of(targets),
        target_sids=catalog.sids_of(written).masked_fill((targets < 0)[..., None], -1),
        history=items,
        seen=nothing if seen is None else seen.to(device),
        row_ids=torch.arange(count, device=device) if row_ids is None else row_ids.to(device),
    )


def _whole(name: str, values: object, num_dims: int) -> None:
    remedy = f"give a tensor of torch.long with {num_dims} dimensions"
    fits = isinstance(values, Tensor) and values.ndim == num_dims and values.dtype == torch.long
    require(fits, name, values, remedy)


def _check_text(tokens: Int[Tensor, "B P"], lengths: Int[Tensor, " B"], count: int) -> None:
    _whole("tokens of text", tokens, 2)
    _whole("lengths of text", lengths, 1)
    for name, values in (("tokens", tokens), ("lengths", lengths)):
        require(len(values) == count, f"{name} of text", len(values), f"give {count} rows of them")
    wrong = lengths[(lengths < 1) | (lengths > tokens.shape[1])].tolist()[:1]
    remedy = f"give a whole number from 1 to {tokens.shape[1]}, the tokens that there are"
    require(not wrong, "length of text", wrong, remedy)
    inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    wrong = tokens[inside & (tokens < 0)].tolist()[:1]
    require(not wrong, "token of text", wrong, "give tokens of 0 or more, padded on the right")


def write_items(
    catalog: Catalog, items: Int[Tensor, "N H"]
) -> tuple[Int[Tensor, "N P"], Int[Tensor, " N"]]:
    """BOS and the tokens of every row's items, right-padded, and how many tokens that are."""
    bos = items.new_full((len(items), 1), catalog.bos_token)
    tokens = torch.cat([bos, catalog.tokens_of(items).flatten(1)], dim=1)
    inside = torch.cat([bos >= 0, catalog.mask_of(items).flatten(1)], dim=1)
    lengths = inside.sum(1)
    if catalog.trie.ends is not None:  # pads stand between the items too
        order = inside.int().argsort(dim=1, descending=True, stable=True)
        tokens = tokens.gather(1, order)[:, : int(lengths.max()) if len(items) else 1]
    return tokens, lengths
