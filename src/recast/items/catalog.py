"""Making and reading catalogues: codes, tokens or a folder in, a `Catalog` out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from recast.config.check import as_path
from recast.items.trie import build_compressed_trie, build_trie
from recast.items.writes import Catalog
from recast.run.files import kind_of, reading
from recast.types import RecastError, require

_MOST = 2**31  # tokens are kept in 32 bits

__all__ = ["Catalog", "build_catalog", "build_token_catalog", "load_catalog"]


def build_catalog(
    codes: Int[Tensor, "I L"],
    codebook_sizes: tuple[int, ...],
    *,
    item_ids: list[str] | None = None,
    texts: list[str] | None = None,
    first_token: int = 2,
    pad_token: int = 0,
    bos_token: int = 1,
) -> Catalog:
    """A catalogue of semantic IDs; ids default to the item's index, texts to empty.

    Raises `RecastError` for codes outside their codebook, duplicate item ids, unequal lengths.
    """
    item_ids, texts = _named("codes", len(codes), item_ids, texts)
    if codes.shape[1] != len(codebook_sizes):
        raise RecastError(
            f"codes have {codes.shape[1]} levels, codebook_sizes {len(codebook_sizes)}: "
            "make them equal"
        )
    too_large = codes >= torch.tensor(codebook_sizes)
    if bool(too_large.any()):
        row = int(too_large.any(1).nonzero()[0])
        raise RecastError(
            f"item {item_ids[row]!r} has the code {codes[row].tolist()}, outside the codebooks "
            f"{list(codebook_sizes)}: codes run from 0 to size - 1"
        )
    remedy = f"codebooks {list(codebook_sizes)} then need more tokens than fit into 32 bits"
    require(first_token + sum(codebook_sizes) <= _MOST, "first_token", first_token, remedy)
    starts = first_token + torch.tensor((0, *codebook_sizes[:-1])).cumsum(0)
    return Catalog(
        tokens=(codes + starts).int(),
        lengths=torch.full((len(codes),), len(codebook_sizes), dtype=torch.int32),
        codebook_sizes=tuple(codebook_sizes),
        item_ids=item_ids,
        texts=texts,
        trie=build_trie(codes),
        first_token=first_token,
        pad_token=pad_token,
        bos_token=bos_token,
    )


def build_token_catalog(
    tokens: Int[Tensor, "I L"],
    lengths: Int[Tensor, " I"],
    *,
    item_ids: list[str] | None = None,
    texts: list[str] | None = None,
    pad_token: int = 0,
    bos_token: int = 1,
) -> Catalog:
    """A catalogue of items that write sequences of unequal lengths, as texts do.

    What follows an item's last token is ignored. Raises `RecastError` for duplicate item ids, for
    an item that holds the pad token or none at all, and for one that another begins with.
    """
    item_ids, texts = _named("rows of tokens", len(tokens), item_ids, texts)
    require(len(lengths) == len(tokens), "lengths", len(lengths), f"give {len(tokens)} of them")
    most = int(lengths.max()) if len(lengths) else 0
    remedy = f"rows have {tokens.shape[1]} tokens, give no more"
    require(most <= tokens.shape[1], "largest of the lengths", most, remedy)
    outside = torch.arange(tokens.shape[1]) >= lengths[:, None]
    held = ((tokens == pad_token) | (tokens < 0) | (tokens >= _MOST)) & ~outside
    if bool(held.any()):
        row = int(held.any(1).nonzero()[0])
        raise RecastError(
            f"item {item_ids[row]!r} writes {tokens[row, : int(lengths[row])].tolist()} and the "
            f"pad token is {pad_token}: pad with a token that no item holds, the others are 0 or "
            "more and fit into 32 bits"
        )
    width = max(int(lengths.max()), 1) if len(lengths) else 0
    trie = build_compressed_trie(tokens[:, :width], lengths, pad_token)
    return Catalog(
        tokens=tokens[:, :width].masked_fill(outside[:, :width], pad_token).int(),
        lengths=lengths.int(),
        codebook_sizes=(),
        item_ids=item_ids,
        texts=texts,
        trie=trie,
        pad_token=pad_token,
        bos_token=bos_token,
    )


def _named(
    what: str, num_items: int, item_ids: list[str] | None, texts: list[str] | None
) -> tuple[list[str], list[str]]:
    item_ids = [str(i) for i in range(num_items)] if item_ids is None else item_ids
    texts = [""] * num_items if texts is None else texts
    if not len(item_ids) == len(texts) == num_items:
        raise RecastError(
            f"{num_items} {what}, {len(item_ids)} item ids and {len(texts)} texts: "
            "give as many of each"
        )
    if len(set(item_ids)) < num_items:
        seen: set[str] = set()
        twice = next(i for i in item_ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise RecastError(f"item id {twice!r} appears more than once: keep one row per item")
    return item_ids, texts


def load_catalog(folder: str | Path) -> Catalog:
    """Read a catalogue written by `Catalog.save`; the trie is rebuilt, never stored.

    Raises `RecastError` when the folder holds none or it is damaged.
    """
    folder = Path(as_path("catalog", folder))
    if not (folder / "sid.json").is_file():
        raise RecastError(
            f"{folder}{kind_of(folder)} holds no catalogue (sid.json): make one with "
            "`recast tokenize`"
        )
    with reading(folder, "use it as it was saved, or make it again with `recast tokenize`"):
        return _read_catalog(folder)


def _read_catalog(folder: Path) -> Catalog:
    sid = _read_sid(folder / "sid.json")
    table = pl.read_parquet(folder.absolute() / "catalog.parquet", glob=False)
    sizes = tuple(sid.pop("codebook_sizes"))
    kind, levels = ("codes" if sizes else "tokens"), len(sizes)
    table = table.select("item_id", kind, "text")
    types = table.schema
    written = types[kind]
    whole = isinstance(written, pl.List) and written.inner.is_integer()
    if table.is_empty() or not whole or {types["item_id"], types["text"]} != {pl.String}:
        raise ValueError(f"catalog.parquet has {len(table)} rows of {dict(types)}")
    lengths, flat = table[kind].list.len(), table[kind].explode()
    if table.null_count().sum_horizontal()[0] or flat.null_count():
        raise ValueError("catalog.parquet has empty cells")
    sid |= {"item_ids": table["item_id"].to_list(), "texts": table["text"].to_list()}
    values = torch.from_numpy(flat.cast(pl.Int64).to_numpy(writable=True))
    if not sizes:
        del sid["first_token"]
        length = torch.from_numpy(lengths.cast(pl.Int64).to_numpy(writable=True))
        tokens = torch.full((len(table), int(length.max())), sid["pad_token"])
        tokens[torch.arange(tokens.shape[1]) < length[:, None]] = values
        return build_token_catalog(tokens, length, **sid)
    uneven = (lengths != levels).arg_true()
    if len(uneven):
        raise RecastError(
            f"{folder / 'catalog.parquet'} row {uneven[0]} has the codes "
            f"{table['codes'][uneven[0]].to_list()}: sid.json names {levels} levels"
        )
    return build_catalog(values.view(-1, levels), sizes, **sid)


def _read_sid(file: Path) -> dict[str, Any]:
    sid = json.loads(file.read_text())
    sizes, first = sid["codebook_sizes"], sid["first_token"]
    if not (isinstance(sizes, list) and all(type(size) is int for size in sizes)):
        raise ValueError(f"sid.json has codebook_sizes {sizes!r}: no list of whole numbers")
    last = first if sizes else _MOST  # texts are of the same vocabulary
    for name, below in (("first_token", _MOST), ("pad_token", last), ("bos_token", last)):
        if not (type(sid[name]) is int and 0 <= sid[name] < below):
            raise ValueError(f"sid.json has {name} {sid[name]!r} and first_token {first!r}")
    return dict(sid)
