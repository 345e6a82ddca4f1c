"""Semantic IDs that somebody else made: a file or the data folder in, codes of every item out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from recast.data.folder import REMEDY, load_facts
from recast.data.messages import is_whole
from recast.data.parquet import read_parquet
from recast.data.tables import read_columns
from recast.items.names import SidNames, pattern_of
from recast.run.reading import read_json, reading
from recast.types import RecastError, in_short, require

_KINDS = (
    "give an index.json of names such as <a_60>, a .parquet with the columns pid and sid, or an "
    ".npy of whole numbers, a row per item"
)
_CODES = "every item with a semantic ID has as many codes, whole numbers from 0 on"


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenSids:
    """Example, items x and y of the data, and a file that says x is (0, 5) and z (1, 2):
    `codes=[[0, 5], [-1, -1]]  codebook_sizes=(2, 6)  num_unknown=1`."""

    source: str
    codes: Int[Tensor, "I L"]
    """-1 of an item without a semantic ID."""
    codebook_sizes: tuple[int, ...]
    """As asked for, else the largest code of every level and 1."""
    names: SidNames
    num_unknown: int
    """Semantic IDs of items that the data does not hold."""
    domain_of: Int[Tensor, " I"]
    domains: tuple[str, ...]
    """In the order of `data.json`."""


def data_has_sids(data: str | Path) -> bool:
    """Whether an item of the data folder has a semantic ID."""
    table = _items(data, load_facts(data))
    return "sid" in table.columns and table["sid"].count() > 0


def load_sids(
    file: str | None, data: str | Path, item_ids: list[str], size: int | None
) -> GivenSids:
    """Semantic IDs of the items by `file`, else by the data folder; `size` is that of every level.

    Raises `RecastError` for a file of another kind, with two semantic IDs of one item, with rows
    of unequal lengths or codes beyond the size, and for one that knows none of the items.
    """
    facts = load_facts(data)
    items, own = _items(data, facts), facts.get("sid_names") or {}
    source = str(data)
    if file is None:
        names = SidNames(**own)
        table = items.select(key="item_id", sid="sid").drop_nulls("sid")
    else:
        source, suffix = file, Path(file).suffix.lower()
        readers = {".json": _read_index, ".parquet": _read_pids, ".npy": _read_rows}
        require(suffix in readers, "items_as", file, f"name codes, item or a file: {_KINDS}")
        require(Path(file).is_file(), "items_as", file, f"there is no such file, {_KINDS}")
        table, pattern = readers[suffix](file, item_ids)
        around = {key: own[key] for key in ("begin", "end") if key in own}
        names = SidNames(**(own if pattern is None else {"pattern": pattern} | around))
    require(len(table) > 0, f"number of semantic IDs in {source}", 0, _KINDS)
    keys, codes = table["key"], _codes(source, table, size)
    sizes = (size,) * codes.shape[1] if size else tuple((codes.amax(0) + 1).tolist())
    place = pl.DataFrame({"key": keys, "at": range(len(keys))})
    known = pl.DataFrame({"key": item_ids}).join(place, on="key", how="left", maintain_order="left")
    at = torch.from_numpy(known["at"].fill_null(-1).cast(pl.Int64).to_numpy(writable=True))
    if bool((at < 0).all()):
        raise RecastError(
            f"{source} has no semantic ID of any item of {data}: its ids are like {keys[0]!r}, "
            f"those of the data like {item_ids[0]!r}: give the one that was made for this data"
        )
    domain_of, domains = _domains(data, items, facts)
    return GivenSids(
        source=source,
        codes=codes[at.clamp(min=0)].masked_fill((at < 0)[:, None], -1),
        codebook_sizes=sizes,
        names=names,
        num_unknown=len(keys) - int((at >= 0).sum()),
        domain_of=domain_of,
        domains=domains,
    )


def _items(data: str | Path, facts: dict[str, Any]) -> pl.DataFrame:
    with reading(data, REMEDY):
        return read_parquet(Path(data) / "items.parquet", facts)


def _domains(
    data: str | Path, items: pl.DataFrame, facts: dict[str, Any]
) -> tuple[Int[Tensor, " I"], tuple[str, ...]]:
    """The domain of every item and the names of the domains."""
    if "domain" not in items.columns:
        return torch.zeros(len(items), dtype=torch.long), ("items",)
    names = facts.get("domains", ["items"])
    with reading(data, REMEDY):
        place = {name: index for index, name in enumerate(names)}
        return torch.tensor([place[name] for name in items["domain"]]), tuple(names)


def _read_index(file: str, item_ids: list[str]) -> tuple[pl.DataFrame, str | None]:
    """`{"0": ["<a_60>", "<b_159>"], ...}` by item id, as MiniOneRec publishes it."""
    with reading(file, _KINDS):
        index: dict[str, Any] = read_json(Path(file), dict)
    require(len(index) > 0, f"number of semantic IDs in {file}", 0, _KINDS)
    first = next(iter(index.values()))
    is_names = isinstance(first, list) and all(isinstance(name, str) for name in first)
    pattern = pattern_of(first) if is_names else None
    if pattern is None:
        raise RecastError(f"{file}: item {next(iter(index))!r} is {in_short(first)}: {_KINDS}")
    broken = next((text for text in (pattern, *index) if not is_whole(text)), None)
    if broken is not None:
        raise RecastError(f"{file}: {in_short(broken)} holds half a character: write it anew")
    names = SidNames(pattern=pattern)
    codes = [_named(file, key, value, names) for key, value in index.items()]
    sid = pl.Series(codes, dtype=pl.List(pl.Int64))
    return pl.DataFrame({"key": list(index), "sid": sid}), pattern


def _named(file: str, key: str, value: Any, names: SidNames) -> list[int]:
    """The codes that a list of names says."""
    codes = []
    for level, name in enumerate(value if isinstance(value, list) else [value]):
        digits = re.findall(r"[0-9]{1,9}", name, re.ASCII) if isinstance(name, str) else []
        fits = [names.name(level, int(code)) == name for code in digits if level < 26]
        if not (isinstance(value, list) and any(fits)):
            raise RecastError(
                f"{file}: item {key!r} is {in_short(value)}, where {in_short(name)} is no name of "
                f"level {level + 1} such as {names.name(min(level, 25), 0)}: name all alike"
            )
        codes.append(int(digits[fits.index(True)]))
    return codes


def _read_pids(file: str, item_ids: list[str]) -> tuple[pl.DataFrame, str | None]:
    """Columns `pid` and `sid`, as OpenOneRec publishes them."""
    table, _ = read_columns(file, {"key": "pid", "sid": "sid"})
    kind = table["key"].dtype
    require(kind.is_integer() or kind == pl.String, f"pid of {file}", str(kind), _KINDS)
    if table["key"].null_count():
        row = int(table["key"].is_null().arg_max() or 0)
        raise RecastError(f"{file}, row {row + 1} has no pid: give each semantic ID its item")
    _require_lists(file, table["sid"])
    sid = pl.col("sid").cast(pl.List(pl.Int64), strict=False)
    table = (
        table.select(pl.col("key").cast(pl.String), sid)
        .drop_nulls("sid")
        .unique(maintain_order=True)
    )
    twice = table["key"].is_duplicated()
    if twice.any():
        key = table["key"].filter(twice)[0]
        both = table.filter(table["key"] == key)["sid"].to_list()
        raise RecastError(
            f"{file}: pid {key} has the semantic IDs {both[0]} and {both[1]}: keep one of them"
        )
    return table, None


def _read_rows(file: str, item_ids: list[str]) -> tuple[pl.DataFrame, str | None]:
    """An array `[I, L]` in the order of the data's items; a row of -1 is none."""
    with reading(file, _KINDS):
        try:
            rows = np.lib.format.open_memmap(file, mode="r")  # never a pickle
        except TokenError as error:
            raise ValueError("its header is no literal") from error
    shape = tuple(rows.shape)
    remedy = f"give whole numbers, [{len(item_ids)}, L], a row per item of the data"
    fits = (
        len(shape) == 2 and shape[0] == len(item_ids) and shape[1] > 0 and rows.dtype.kind in "iu"
    )
    require(fits, f"array of {file}", f"{rows.dtype} {list(shape)}", remedy)
    is_some = (rows != -1).any(1)
    sid = pl.Series(rows.astype(np.int64).tolist(), dtype=pl.List(pl.Int64))
    return pl.DataFrame({"key": item_ids, "sid": sid}).filter(is_some), None


def _require_lists(source: str, sid: pl.Series) -> None:
    kind = sid.dtype
    fits = isinstance(kind, pl.List | pl.Array) and kind.inner is not None
    fits = fits and kind.inner.is_integer()  # type: ignore[attr-defined]
    require(bool(fits), f"sid of {source}", str(kind), "give lists of whole numbers")


def _codes(source: str, table: pl.DataFrame, size: int | None) -> Int[Tensor, "N L"]:
    """The lists as a table; `RecastError` names the first that is no semantic ID."""
    _require_lists(source, table["sid"])
    sid = table["sid"].cast(pl.List(pl.Int64))
    length = int(sid.list.len()[0])
    most = 2**31 if size is None else size
    wrong = (sid.list.len() != length) | sid.list.contains(None, nulls_equal=True)
    wrong |= ((sid.list.min() < 0) | (sid.list.max() >= most)).fill_null(True)
    if length == 0 or wrong.any():
        row = int(wrong.arg_max() or 0)
        first, codes = sid[0].to_list(), sid[row].to_list()
        limit = "" if size is None else f", below codebook_size {size}"
        raise RecastError(
            f"{source}: item {table['key'][row]!r} has the codes {in_short(codes)}, the first one "
            f"{in_short(first)}: {_CODES}{limit}"
        )
    return torch.from_numpy(sid.explode().to_numpy(writable=True)).view(-1, length)
