"""What a reader of rows returns, and what readers share: files in, batches of rows out."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
from polars import selectors
from polars.exceptions import PolarsError

from recast.data.columns import named
from recast.data.delimited import Suspect
from recast.data.lines import read_lines
from recast.data.messages import is_whole
from recast.data.parquet import try_parquet
from recast.data.tables import read_columns, readable
from recast.run.reading import reason_of
from recast.types import RecastError

SUFFIXES = (".csv", ".parquet", ".jsonl")
"""Of files of rows."""

_BATCH = 4096
"""Rows that are in memory at once; a prompt of 512 items has 25,000 characters."""

BATCH_SCHEMA = pl.Schema(
    {
        "user": pl.String(),
        "split": pl.String(),
        "task": pl.Int32(),
        "time": pl.Int64(),
        "prompt": pl.String(),
        "is_chat": pl.Boolean(),
        "history": pl.List(pl.Int32),
        "targets": pl.List(pl.Int32),
        "seen": pl.List(pl.Int32),
    }
)
"""Of a reader's batches: as `rows.parquet`, with users as ids and splits as texts."""

ITEM_SCHEMA = pl.Schema(
    {
        "item_id": pl.String(),
        "text": pl.String(),
        "domain": pl.String(),
        "sid": pl.List(pl.Int64),
    }
)
"""Of `items.parquet` beside rows; `sid` is null where there is none."""

_MOST_FILES = 20_000
"""Of a folder of data: a whole disk would be looked through for hours."""

MOST_TASKS = 64
TASK_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
"""A task's name stands before its metrics (`TASK/...`) and in settings."""

_SPLITS = {
    "train": ("train", "training"),
    "rl": ("rl",),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}
"""How splits are called in files."""


@dataclass(frozen=True, kw_only=True)
class RowTables:
    """Rows as a reader finds them. `notes` and `dropped` fill up as `batches` are read."""

    batches: Callable[[], Iterator[pl.DataFrame]]
    """Frames of `BATCH_SCHEMA`; items are numbers of rows of `items`."""
    items: pl.DataFrame
    splits: frozenset[str]
    """Splits that the files say they hold."""
    files: list[Path]
    kind: str
    """What was found, in words."""
    tasks: dict[str, str] = field(default_factory=lambda: {"rows": "items"})
    """Of every task the domain of its items."""
    sid_names: dict[str, str] | None = None
    """How texts write items: `pattern`, `begin` and `end`."""
    has_seen: bool = False
    notes: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def files_under(path: Path) -> list[Path]:
    """Plain files of a folder and of the folders in it. Raises `RecastError` for too many."""
    found: list[Path] = []
    for folder, _, names in os.walk(path, onerror=_raise):
        found += [file for name in names if (file := Path(folder) / name).is_file()]
        if len(found) > _MOST_FILES:
            raise RecastError(
                f"{path} holds more than {_MOST_FILES:,} files: give the folder of the data alone"
            )
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def split_of(name: str) -> str | None:
    """The split that a file or a value is called by, None where it is none.

    >>> split_of("Validation"), split_of("items")
    ('valid', None)
    """
    plain = name.strip().lower()
    return next((split for split, names in _SPLITS.items() if plain in names), None)


def batches_of(file: str, columns: dict[str, str]) -> tuple[Iterator[pl.DataFrame], list[Suspect]]:
    """The named columns of a CSV, a Parquet file or JSON lines, `_BATCH` rows at a time; of these
    two, which `columns_of` has tried, nothing is in memory whole. Raises `RecastError` as
    `read_columns` and `read_lines` do.
    """
    path = Path(file).absolute()
    if _is_lines(file):
        return _of_lines(Path(file), columns), []
    if path.suffix.lower() != ".parquet":
        frame, suspects = read_columns(file, columns)
        return frame.iter_slices(_BATCH), suspects
    scan = pl.scan_parquet(path, glob=False)
    names = scan.collect_schema().names()
    chosen = []
    for name, column in columns.items():
        root, _, field_name = column.partition(".")
        is_field = column not in names
        chosen.append(
            (pl.col(root).struct.field(field_name) if is_field else pl.col(column)).alias(name)
        )
    plain = (selectors.categorical() | selectors.enum()).cast(pl.String)
    return _streamed(
        file, scan.select(chosen).with_columns(plain, selectors.array().arr.to_list())
    ), []


def columns_of(file: str, columns: tuple[str, ...] = ()) -> list[str]:
    """Names of a Parquet file's columns, once these of them were read to the end, and of the fields
    of its structs (`extra_info.index`); or the keys of all JSON lines."""
    if _is_lines(file):
        return list(dict.fromkeys(key for line in read_lines(Path(file)) for key in line.fields))
    path = Path(file).absolute()
    with readable(file, (".jsonl", ".parquet")):
        roots = tuple(column.partition(".")[0] for column in columns)
        names = try_parquet(path, (*columns, *roots), streamed=True).names
        for column, kind in pl.read_parquet_schema(path).items():
            if isinstance(kind, pl.Struct):
                names += [f"{column}.{field.name}" for field in kind.fields]
    return names


def _is_lines(file: str) -> bool:
    return file.lower().endswith((".jsonl", ".jsonl.gz"))


def _of_lines(file: Path, columns: dict[str, str]) -> Iterator[pl.DataFrame]:
    """Texts; lists and messages as JSON, so that one kind stands in a column here as in a CSV."""
    lines = read_lines(file)
    while batch := list(islice(lines, _BATCH)):
        cells = {
            name: [
                _cell(line.fields.get(column), f"{file}, line {line.number:,}", column, name)
                for line in batch
            ]
            for name, column in columns.items()
        }
        yield pl.DataFrame(cells, schema=dict.fromkeys(cells, pl.String))


def _cell(value: Any, line: str, column: str, name: str) -> str | None:
    place = f"{line}, {named(column)}"
    may_be_list = isinstance(value, list) and name in ("prompt", "targets", "seen")
    if may_be_list and all(isinstance(part, dict) for part in value) and value:
        return json.dumps(value)
    if may_be_list and all(type(part) in (int, str) for part in value):
        return json.dumps(value)
    if isinstance(value, str) and not is_whole(value):
        raise RecastError(f"{place} holds half a character: write them anew")
    if value is None or type(value) is str or (name != "text" and type(value) in (int, float)):
        return value if value is None else str(value)
    if name == "text":
        raise RecastError(f"{place} is {named(value)}: give a text")
    lists = ", a list of them, or messages" if name in ("prompt", "targets", "seen") else ""
    raise RecastError(f"{place} is {named(value)}: give a text or a number{lists}")


def _streamed(file: str, scan: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    try:
        for batch in scan.collect_batches(chunk_size=_BATCH, maintain_order=True):
            yield from batch.iter_slices(_BATCH)
    except (PolarsError, OSError) as error:
        raise RecastError(
            f"{file} cannot be read ({reason_of(error)}): it changed while it was read, start again"
        ) from error


def make_batch(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Rows as readers make them, one by one; a column that they leave out is null, a list empty."""
    empty = {"history": [], "targets": [], "seen": [], "is_chat": False, "task": 0}
    return pl.DataFrame([empty | row for row in rows], schema=BATCH_SCHEMA, orient="row")


def where(file: object, row: int, column: str) -> str:
    return f"{file}, row {row + 1}, column {named(column)}"
