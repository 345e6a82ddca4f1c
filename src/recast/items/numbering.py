"""Codes in the order in which a tokenizer knows their names: a catalogue in, the same one out."""

from __future__ import annotations

from dataclasses import replace

import torch

from recast.items.catalog import Catalog, build_catalog
from recast.types import RecastError


def numbered_like(old: Catalog, new: Catalog, name: str) -> Catalog:
    """The new catalogue with codes that count as in the old one of a model called `name`."""
    numbers = old.names.numbers
    if not numbers or len(new.codebook_sizes) != len(numbers) or new.names.numbers == numbers:
        return new
    return numbered_as(new, numbers, name)


def numbered_as(catalog: Catalog, numbers: tuple[tuple[int, ...], ...], name: str) -> Catalog:
    """The same items, called the same, with codes that count in the order of these `numbers`
    (`SidNames.numbers`); `name` is what errors call the model that knows them.

    Example: a level whose codes are called 0, 10 and 2, in this order, by the tokenizer: what was
    code 10 is 1, what was code 2 stays 2, and the level has 3 codes.

    Raises `RecastError` for an item with a code that has no such name.
    """
    codes = catalog.codes.cpu().long()
    for level, known in enumerate(numbers):
        place = {number: code for code, number in enumerate(known)}
        own = catalog.names.numbers[level] if catalog.names.numbers else None
        called = range(catalog.codebook_sizes[level]) if own is None else own
        new = torch.tensor([place.get(number, -1) for number in called])
        old = codes[:, level]
        moved = new[old.clamp(min=0)].masked_fill(old < 0, -1)
        lost = ((moved < 0) & (old >= 0)).nonzero()
        if len(lost):
            item = int(lost[0])
            raise RecastError(
                f"{name} knows no {catalog.names.name(level, int(old[item]))}, which item "
                f"{catalog.item_ids[item]!r} writes, but other names of that level: give the "
                "catalogue that it was trained with, or start from a model without semantic IDs"
            )
        codes[:, level] = moved
    return build_catalog(
        codes,
        [len(known) for known in numbers],
        item_ids=catalog.item_ids,
        texts=catalog.texts,
        domain_of=catalog.domain_of.cpu(),
        domains=catalog.domains,
        names=replace(catalog.names, numbers=numbers),
        first_token=catalog.first_token,
        pad_token=catalog.pad_token,
        bos_token=catalog.bos_token,
    )
