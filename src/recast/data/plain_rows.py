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
from recast.data.messages import read_chat, read_literal, without_answer
from recast.data.row_tables import (
    BATCH_SCHEMA,
    ITEM_SCHEMA,
    MOST_TASKS,
    TASK_NAME,
    RowTables,
    batches_of,
    columns_of,
    split_of,
    where,
)
from recast.data.tables import read_items, readable, refuse_swallowed, require_items
from recast.data.times import parse_times
from recast.types import RecastError

_LISTS = ("prompt", "targets", "seen")


class _Source(NamedTuple):
    """A file, the split that it is (None: a column says, or all is train) and its columns: our
    names to the file's."""

    file: str
    split: str | None
    columns: dict[str, str]


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
        notes.append("no column of splits: all rows are train")
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


def _source(config: PrepareConfig, file: str, split: str | None) -> _Source:
    columns = {"user": config.user, "prompt": config.prompt, "targets": config.targets}
    optional = {"seen": config.seen, "task": config.task, "split": config.split_column}
    if config.time != ROW_ORDER:
        optional["time"] = None if config.time == "time" else config.time
    if split is not None and config.split_column is None:
        del optional["split"]  # the file's name says it
    guesses = {name: column or name for name, column in optional.items()}
    wanted = (*columns.values(), *guesses.values())
    has_kinds = file.lower().endswith((".parquet", ".jsonl"))
    with readable(file, (".csv", ".parquet", ".jsonl")):
        present = columns_of(file, wanted) if has_kinds else read_header(file)
        columns |= {
            name: column
            for name, column in guesses.items()
            if optional[name] is not None or column in present
        }
        choose_columns(file, present, columns)
    if len(set(columns.values())) < len(columns):
        raise RecastError(f"{file}: columns {columns} are not all different: name each once")
    return _Source(file, split, columns)


def _look(sources: list[_Source]) -> tuple[_Facts, list[str]]:
    """A first pass over all but the longest column."""
    first = sources[0]
    kinds: dict[str, str] = {}
    tasks, splits, ids = dict[str, None](), dict[str, None](), [pl.Series([], dtype=pl.String)]
    notes = [f"columns: {', '.join(f'{n} = {c}' for n, c in first.columns.items())}"]
    for source in sources:
        if source.columns.keys() != first.columns.keys():
            differ = source.columns.keys() ^ first.columns.keys()
            raise RecastError(
                f"{first.file} and {source.file}: one of them alone has a column for "
                f"{', '.join(sorted(differ))}: write both alike"
            )
        own = {name: _kind(source, name) for name in _LISTS if name in source.columns}
        kinds = kinds or own
        if own != kinds:
            raise RecastError(f"{first.file} holds {kinds}, {source.file} {own}: write both alike")
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
                _, flat = _ids(source, batch[name], own[name], name, row)
                ids = [pl.concat([*ids, flat]).unique()]
            for name, words in (("task", tasks), ("split", splits)):
                if name in light:
                    words.update(dict.fromkeys(_words(source, batch[name], name, row)))
            row += len(batch)
        if not row:
            raise RecastError(f"{source.file} holds no row: give at least one, or remove the file")
        refuse_swallowed(suspects, source.file, ids[0])
    if len(tasks) > MOST_TASKS:
        raise RecastError(
            f"{first.file}, column {named(first.columns['task'])} names {len(tasks):,} tasks (such "
            f"as {named(next(iter(tasks)))}), {MOST_TASKS} at most: set task to another column"
        )
    return _Facts(kinds, sorted(tasks), list(splits), ids[0]), notes


def _kind(source: _Source, name: str) -> str:
    """What a column's first row holds: for prompts `messages`, `text` or `history`, for targets and
    seen items `list` or `id`, as text `literal`s."""
    batches, _ = batches_of(source.file, {name: source.columns[name]})
    column = next((batch[name].drop_nulls() for batch in batches if batch[name].count()), None)
    if column is None:
        raise RecastError(
            f"{source.file}, column {named(source.columns[name])} has no value: "
            f"fill it, or set {name} to another column"
        )
    prompt, kind = name == "prompt", column.dtype
    if isinstance(kind, pl.List):
        is_chat = isinstance(kind.inner, pl.Struct)
        if is_chat and prompt:
            return "messages"
        if not is_chat and not kind.inner.is_nested():
            return "history" if prompt else "list"
    elif kind == pl.String:
        text = column[0].strip()
        if prompt and re.match(r"\[\s*\{", text):
            return "messages"
        if text.startswith("[") and isinstance(read_literal(text), list):
            return "history" if prompt else "literal"
        return "text" if prompt else "id"
    elif kind.is_integer() and not prompt:
        return "id"
    what = "messages, texts or lists of item ids" if prompt else "item ids or lists of them"
    raise RecastError(
        f"{source.file}, column {named(source.columns[name])} holds {kind}: give {what}"
    )


def _batches(
    source: _Source, facts: _Facts, index: dict[str, int], known: str
) -> Iterator[pl.DataFrame]:
    row = 0
    for raw in batches_of(source.file, source.columns)[0]:
        yield _convert(source, facts, raw, index, known, row)
        row += len(raw)


def _convert(
    source: _Source, facts: _Facts, raw: pl.DataFrame, index: dict[str, int], known: str, row: int
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
        "time": _times(source, raw, row),
        "prompt": [None] * num,
        "is_chat": [facts.kinds["prompt"] == "messages"] * num,
    }
    if "split" in raw.columns:
        columns["split"] = _words(source, raw["split"], "split", row)
    if "task" in raw.columns:
        columns["task"] = [facts.tasks.index(t) for t in _words(source, raw["task"], "task", row)]
    is_history = facts.kinds["prompt"] == "history"
    if not is_history:
        columns["prompt"] = _prompts(source, raw["prompt"], facts.kinds["prompt"], row)
    lists = {"history": "prompt" if is_history else "", "targets": "targets", "seen": "seen"}
    for name, column in lists.items():
        columns[name] = [[] for _ in range(num)]
        if column in raw.columns:
            lengths, flat = _ids(source, raw[column], facts.kinds[column], column, row)
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


def _prompts(source: _Source, column: pl.Series, kind: str, row: int) -> list[str]:
    prompts = []
    for number, cell in enumerate(column.to_list(), row):
        place = where(source.file, number, source.columns["prompt"])
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise RecastError(f"{place} is empty: fill or drop the row")
        if kind == "messages":
            prompt, answer = without_answer(read_chat(cell, place).messages, place)
            if answer is not None:
                raise RecastError(
                    f"{place} ends with the assistant's answer: leave it out of the messages, "
                    "targets are the answer"
                )
            prompts.append(prompt)
        elif re.match(r'\[\s*\{\s*["\']role["\']', cell):
            raise RecastError(f"{place} holds messages, the first row a text: give one kind")
        else:
            prompts.append(cell)
    return prompts


def _ids(
    source: _Source, column: pl.Series, kind: str, name: str, row: int
) -> tuple[np.ndarray, pl.Series]:
    """How many ids each row has, and all of them, as text."""
    rows = np.arange(row, row + len(column))
    if kind in ("literal", "history") and column.dtype == pl.String:
        column = pl.Series(
            [
                _literal(cell, where(source.file, number, source.columns[name]))
                for number, cell in enumerate(column, row)
            ],
            dtype=pl.List(pl.String),
        )
    if isinstance(column.dtype, pl.List):
        lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
        flat = column.filter(pl.Series(lengths > 0)).explode()
    else:
        lengths = column.is_not_null().to_numpy().astype(np.int64)
        flat = column.drop_nulls()
    if not len(flat):
        return lengths, pl.Series([], dtype=pl.String)
    return lengths, read_ids(flat, source.file, source.columns[name], np.repeat(rows, lengths))


def _literal(cell: str | None, place: str) -> list[str]:
    return [] if cell is None else read_list(cell, place)


def read_list(cell: str, place: str) -> list[str]:
    """Ids of a list that is written as Python or JSON writes it; raises `RecastError` for all else,
    code among it, which is never run.

    >>> read_list("[7, 'b']", "row 1")
    ['7', 'b']
    """
    value = read_literal(cell)
    is_list = isinstance(value, list) and all(type(part) in (int, str) for part in value)
    if not is_list:
        raise RecastError(
            f"{place} is {named(cell)}, no list of numbers or texts: write it as [1, 2]"
        )
    return [str(part) for part in value]


def _words(source: _Source, column: pl.Series, name: str, row: int) -> list[str]:
    """Tasks or splits, each a word of its kind."""
    words: dict[Any, str] = {}
    for value in column.unique(maintain_order=True):
        if name == "split":
            word = split_of(str(value))
            remedy = "give train, rl, valid or test"
        else:
            word = str(value).strip() if TASK_NAME.fullmatch(str(value).strip()) else None
            remedy = "give a name of letters, digits and _ . -"
        if value is None or word is None:
            at = row + (column.is_null() if value is None else column == value).arg_max()  # type: ignore[operator]
            place = where(source.file, at, source.columns[name])
            raise RecastError(f"{place} is {named(value)}: {remedy}")
        words[value] = word
    return [words[value] for value in column]


def _times(source: _Source, raw: pl.DataFrame, row: int) -> pl.Series | None:
    if "time" not in raw.columns:
        return None
    times, column = parse_times(raw["time"]), source.columns["time"]
    if times is None or times.dtype != pl.Int64 or times.null_count():
        at = 0 if times is None or times.dtype != pl.Int64 else int(times.is_null().arg_max() or 0)
        raise RecastError(
            f"{where(source.file, row + at, column)} is {named(raw['time'][at])}: give whole "
            "numbers, dates or ISO 8601 texts, or set time to row_order to read none"
        )
    return times
