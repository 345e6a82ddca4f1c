"""A team's own rows: a CSV or Parquet file, or one for each split, with columns named by settings;
batches of rows out.

A prompt is messages, a text or a list of item ids; which of them, the first row says for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from recast.config import PrepareConfig
from recast.data.columns import ROW_ORDER, choose_columns, named
from recast.data.delimited import read_header
from recast.data.events import sorted_ids
from recast.data.ids import read_ids
from recast.data.messages import read_value
from recast.data.row_cells import (
    LIKE_LIST,
    STATED,
    Source,
    check_stated,
    ids_of,
    read_prompts,
    times_of,
    words_of,
)
from recast.data.row_tables import (
    BATCH_SCHEMA,
    ITEM_SCHEMA,
    MOST_TASKS,
    SUFFIXES,
    RowTables,
    batches_of,
    columns_of,
    where,
)
from recast.data.tables import read_items, readable, refuse_swallowed, require_items
from recast.types import RecastError

_LISTS = ("prompt", "targets", "seen")


class _Facts(NamedTuple):
    """What has to be known before the first row: kinds of columns, and ids by number."""

    kinds: dict[str, str]
    tasks: list[str]
    splits: list[str]
    ids: pl.Series


def read_plain(config: PrepareConfig, files: dict[str | None, str]) -> RowTables:
    """Rows of these files, by split. Raises `RecastError` for what cannot be read and for a row
    that asks for something else than its file's first one."""
    require_items(config)
    sources = [_source(config, file, split) for split, file in files.items()]
    facts, notes = _look(sources)
    items = pl.DataFrame({"item_id": sorted_ids(facts.ids), "text": ""})
    if config.items is not None:
        found, more = read_items(config, config.items, facts.ids)
        notes += more
        items = pl.DataFrame({"item_id": sorted_ids(found["item_id"])}).join(
            found, on="item_id", how="left", maintain_order="left"
        )
        items = items.with_columns(pl.col(pl.String).fill_null(""))
    index = {id: number for number, id in enumerate(items["item_id"])}
    has_split = any(source.split or "split" in source.columns for source in sources)
    if not has_split:
        notes.append("no column of splits: all rows are train, none is left for test")
    is_history = facts.kinds["prompt"] == "history"
    prompts = "histories of item ids" if is_history else facts.kinds["prompt"]
    return RowTables(
        batches=lambda: chain.from_iterable(
            _batches(source, facts, index, config.items or "the rows") for source in sources
        ),
        items=items.with_columns(
            pl.lit("items").alias("domain"), pl.lit(None, ITEM_SCHEMA["sid"]).alias("sid")
        ),
        splits=frozenset([s.split for s in sources if s.split] + facts.splits or ["train"]),
        files=[Path(file) for file in [*files.values(), *([config.items] if config.items else [])]],
        kind=f"rows whose prompts are {prompts}",
        tasks=dict.fromkeys(facts.tasks or ["rows"], "items"),
        has_seen="seen" in sources[0].columns,
        notes=notes,
    )


def _source(config: PrepareConfig, file: str, split: str | None) -> Source:
    columns = {"user": config.user, "prompt": config.prompt, "targets": config.targets}
    optional = {"seen": config.seen, "task": config.task, "split": config.split_column}
    if config.time != ROW_ORDER:
        optional["time"] = None if config.time == "time" else config.time
    if split is not None and config.split_column is None:
        del optional["split"]  # the file's name says it,
        optional[STATED] = None  # which a column may not contradict
    guesses = {name: column or name.split()[0] for name, column in optional.items()}
    wanted = (*columns.values(), *guesses.values())
    has_kinds = file.lower().endswith((".parquet", ".jsonl"))
    with readable(file, SUFFIXES):
        present = columns_of(file, wanted) if has_kinds else read_header(file)
        columns |= {
            name: column
            for name, column in guesses.items()
            if optional[name] is not None or column in present
        }
        choose_columns(file, present, columns)
    if len(set(columns.values())) < len(columns):
        raise RecastError(f"{file}: columns {columns} are not all different: name each once")
    return Source(file, split, columns)


def _look(sources: list[Source]) -> tuple[_Facts, list[str]]:
    """A first pass over all but the longest column."""
    first = sources[0]
    kinds: dict[str, str] = {}
    tasks, splits, ids = dict[str, None](), dict[str, None](), [pl.Series([], dtype=pl.String)]
    notes = [f"columns: {', '.join(f'{n} = {c}' for n, c in first.columns.items())}"]
    for source in sources:
        differ = (source.columns.keys() ^ first.columns.keys()) - {STATED}
        if differ:
            raise RecastError(
                f"{first.file} and {source.file}: one of them alone has a column for "
                f"{', '.join(sorted(differ))}: write both alike"
            )
        own = _kinds(source)
        if any(kinds.get(name, kind) != kind for name, kind in own.items()):
            raise RecastError(f"{first.file} holds {kinds}, {source.file} {own}: write both alike")
        kinds |= own
        light = {
            name: column
            for name, column in source.columns.items()
            if name in ("targets", "seen", "task", "split")
            or (name == "prompt" and own["prompt"] == "history")
        }
        row = 0
        batches, suspects = batches_of(source.file, light)
        for batch in batches:
            for name in light.keys() & set(_LISTS):
                _, flat = ids_of(source, batch[name], own.get(name), name, row)
                ids = [pl.concat([*ids, flat]).unique()]
            for name, words in (("task", tasks), ("split", splits)):
                if name in light:
                    words.update(dict.fromkeys(words_of(source, batch[name], name, row)))
            row += len(batch)
        refuse_swallowed(suspects, source.file, ids[0])
    if len(tasks) > MOST_TASKS:
        raise RecastError(
            f"{first.file}, column {named(first.columns['task'])} names {len(tasks):,} tasks (such "
            f"as {named(next(iter(tasks)))}), {MOST_TASKS} at most: set task to another column"
        )
    return _Facts(kinds, sorted(tasks), list(splits), ids[0]), notes


def _kinds(source: Source) -> dict[str, str]:
    """What the first values of these columns are; `seen` has none where no row has seen an item."""
    columns = {name: source.columns[name] for name in _LISTS if name in source.columns}
    num_rows, firsts = 0, dict[str, pl.Series]()
    for batch in batches_of(source.file, columns)[0]:
        num_rows += len(batch)
        firsts |= {
            n: batch[n].drop_nulls() for n in columns if n not in firsts and batch[n].count()
        }
        if len(firsts) == len(columns):
            break
    if not num_rows:
        raise RecastError(f"{source.file} holds no row: give at least one, or remove the file")
    for name, column in columns.items():
        if name not in firsts and name != "seen":
            raise RecastError(
                f"{source.file}, column {named(column)} has no value: "
                f"fill it, or set {name} to another column"
            )
    return {name: _kind(source, name, firsts[name]) for name in columns if name in firsts}


def _kind(source: Source, name: str, column: pl.Series) -> str:
    """Of prompts `messages`, `text` or `history`, of targets and seen items `list` or `id`, as text
    `literal`."""
    prompt, kind = name == "prompt", column.dtype
    if isinstance(kind, pl.List):
        is_chat = isinstance(kind.inner, pl.Struct)
        if is_chat and prompt:
            return "messages"
        if not is_chat and not kind.inner.is_nested():
            return "history" if prompt else "list"
    elif kind == pl.String:
        text = column[0].strip()
        is_chat = prompt and re.match(r"\[\s*\{", text) is not None
        is_list = text.startswith("[") and isinstance(read_value(text), list)
        if is_list or re.match(r"\[[\d\s]*\]$" if prompt else LIKE_LIST, text):
            return "messages" if is_chat else "history" if prompt else "literal"
        return "messages" if is_chat else "text" if prompt else "id"
    elif kind.is_integer() and not prompt:
        return "id"
    what = "messages, texts or lists of item ids" if prompt else "item ids or lists of them"
    raise RecastError(
        f"{source.file}, column {named(source.columns[name])} holds {kind}: give {what}"
    )


def _batches(
    source: Source, facts: _Facts, index: dict[str, int], known: str
) -> Iterator[pl.DataFrame]:
    row = 0
    for raw in batches_of(source.file, source.columns)[0]:
        yield _convert(source, facts, raw, index, known, row)
        row += len(raw)


def _convert(
    source: Source, facts: _Facts, raw: pl.DataFrame, index: dict[str, int], known: str, row: int
) -> pl.DataFrame:
    num = len(raw)
    missing = raw["user"].is_null()
    if missing.any():
        place = where(source.file, row + int(missing.arg_max() or 0), source.columns["user"])
        raise RecastError(f"{place} has no id: fill or drop the row")
    rows = np.arange(row, row + num)
    columns: dict[str, Any] = {
        "user": read_ids(raw["user"], source.file, source.columns["user"], rows),
        "split": [source.split or "train"] * num,
        "task": [0] * num,
        "time": times_of(source, raw, row),
        "prompt": [None] * num,
        "is_chat": [facts.kinds["prompt"] == "messages"] * num,
    }
    if "split" in raw.columns:
        columns["split"] = words_of(source, raw["split"], "split", row)
    if STATED in raw.columns:
        check_stated(source, raw[STATED], row)
    if "task" in raw.columns:
        columns["task"] = [facts.tasks.index(t) for t in words_of(source, raw["task"], "task", row)]
    is_history = facts.kinds["prompt"] == "history"
    if not is_history:
        columns["prompt"] = read_prompts(source, raw["prompt"], facts.kinds["prompt"], row)
    lists = {"history": "prompt" if is_history else "", "targets": "targets", "seen": "seen"}
    for name, column in lists.items():
        columns[name] = [[] for _ in range(num)]
        if column in raw.columns:
            lengths, flat = ids_of(source, raw[column], facts.kinds.get(column), column, row)
            numbers = [index.get(id, -1) for id in flat]
            if -1 in numbers:
                lost = numbers.index(-1)
                at = row + int(np.searchsorted(lengths.cumsum(), lost, side="right"))
                raise RecastError(
                    f"{where(source.file, at, source.columns[column])}: the item "
                    f"{named(flat[lost])} is not in {known}: add it there or drop the row"
                )
            ends = lengths.cumsum()
            bounds = zip(ends - lengths, ends, strict=True)
            columns[name] = [numbers[start:end] for start, end in bounds]
    return pl.DataFrame(columns, schema=BATCH_SCHEMA)
