"""Token sequences of a policy: histories of items or tokens of any kind in, `Prompts` out."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from recast.items.catalog import Catalog
from recast.types import Prompts, RecastError, require


def make_prompts(
    catalog: Catalog,
    *,
    targets: Int[Tensor, "B T"],
    history: Int[Tensor, "B H"] | None = None,
    text: tuple[Int[Tensor, "B P"], Int[Tensor, " B"]] | None = None,
    seen: Int[Tensor, "B S"] | None = None,
    row_ids: Int[Tensor, " B"] | None = None,
    domains: Int[Tensor, " B"] | None = None,
) -> Prompts:
    """Prompts that are BOS and the items of `history`, oldest first, or a `text` of one's own:
    right-padded tokens and their lengths.

    All items are indices, -1 as padding on the right. T may be 0, as for a request that is served:
    the rollouts are the same. Nothing is `seen` by default, rows are numbered from 0 and ask for
    items of the catalogue's first domain. Beside a text the history is for rankers alone. Made
    where the catalogue is.

    Raises `RecastError` for items that there are not, padding that is not on the right of a
    history, a target of another domain or without a semantic ID, unequal numbers of rows, what is
    no tensor of whole numbers, and a text with an empty row or a token below 0.
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
    for name, numbers in (("row_ids", row_ids), ("domains", domains)):
        if numbers is not None:
            _whole(name, numbers, 1)
            require(len(numbers) == count, name, len(numbers), f"give {count}, as of targets")
    if text is not None:
        _check_text(*text, count)
    nothing = torch.empty(count, 0, dtype=torch.long, device=device)
    items = nothing if history is None else history.to(device)
    targets = targets.to(device)
    rows = torch.arange(count, device=device)
    domains = torch.zeros_like(rows) if domains is None else domains.to(device)
    _check_candidates(catalog, targets, domains)
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
        row_ids=rows if row_ids is None else row_ids.to(device),
        domains=domains,
    )


def _check_candidates(
    catalog: Catalog, targets: Int[Tensor, "B T"], domains: Int[Tensor, " B"]
) -> None:
    """Raise `RecastError` for a domain that there is not and a target that is no candidate."""
    wrong = domains[(domains < 0) | (domains >= len(catalog.domains))].tolist()[:1]
    remedy = f"give numbers from 0 to {len(catalog.domains) - 1}, of {list(catalog.domains)}"
    require(not wrong, "domains", wrong, remedy)
    item = targets.clamp(min=0)
    lost = targets[(targets >= 0) & ~catalog.is_written[item]].tolist()[:1]
    remedy = "it writes nothing, so no policy can name it: leave it out"
    require(not lost, "target", lost, remedy)
    other = (targets >= 0) & (catalog.domain_of[item] != domains[:, None])
    if bool(other.any()):
        row, place = other.nonzero()[0].tolist()
        own, asked = int(catalog.domain_of[targets[row, place]]), int(domains[row])
        raise RecastError(
            f"target {int(targets[row, place])} of row {row} is of domain "
            f"{catalog.domains[own]!r}, the row asks for {catalog.domains[asked]!r}: "
            "give `domains` that say whose items each row asks for"
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
    # Pads stand between the items too.
    if catalog.trie.ends is not None or catalog.num_written < catalog.num_items:
        order = inside.int().argsort(dim=1, descending=True, stable=True)
        tokens = tokens.gather(1, order)[:, : int(lengths.max()) if len(items) else 1]
    return tokens, lengths
