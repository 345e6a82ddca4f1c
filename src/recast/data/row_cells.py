"""Cells of a team's own rows: a column of a batch in; prompts, ids, words or times out.

Raises `RecastError` with the file, the row and the column for a cell that holds something else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from recast.data.columns import named
from recast.data.ids import read_ids
from recast.data.messages import is_whole, read_chat, read_value, without_answer
from recast.data.row_tables import TASK_NAME, split_of, where
from recast.data.times import parse_times
from recast.types import RecastError

STATED = "split that the file's name says"

LIKE_LIST = r"""(?s)^\s*(\[.*\]|[({]\s*['"\d].*[)}]|-?\d+([\s,;]+-?\d+)+)\s*$"""
"""Of a text where an id should stand: a list of ids in some notation."""


class Source(NamedTuple):
    """A file, the split that it is (None: a column says, or all is train) and its columns: our
    names to the file's."""

    file: str
    split: str | None
    columns: dict[str, str]


def read_prompts(source: Source, column: pl.Series, kind: str, row: int) -> list[str]:
    """Prompts as the data folder keeps them: messages as JSON, texts as they are."""
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
        elif _is_no_text(cell):
            raise RecastError(
                f"{place} is {named(cell)}, a list or messages, the first row a text: give one "
                'kind, messages as a JSON list of {"role": ..., "content": ...}'
            )
        else:
            prompts.append(cell)
    return prompts


def _is_no_text(cell: str) -> bool:
    """Whether a prompt is messages, one of them, or a list of ids: no text to read as it is."""
    text = cell.strip()
    value = read_value(text) if text[:1] + text[-1:] in ("[]", "{}") else None
    return isinstance(value, list) or (
        isinstance(value, dict) and not {"role", "messages"}.isdisjoint(value)
    )


def ids_of(
    source: Source, column: pl.Series, kind: str | None, name: str, row: int
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
    elif column.dtype == pl.String and (lists := column.str.contains(LIKE_LIST)).any():
        at = int(lists.fill_null(False).arg_max() or 0)
        raise RecastError(
            f"{where(source.file, row + at, source.columns[name])} is {named(column[at])}, where "
            "the first row holds one id: write all as lists ([1, 2]), or ids without such marks"
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
    value = read_value(cell)
    is_list = isinstance(value, list) and all(type(part) in (int, str) for part in value)
    is_list = is_list and all(is_whole(part) for part in value if isinstance(part, str))
    if not is_list:
        raise RecastError(
            f"{place} is {named(cell)}, no list of numbers or texts: write it as [1, 2]"
        )
    return [str(part) for part in value]


def words_of(source: Source, column: pl.Series, name: str, row: int) -> list[str]:
    """Tasks or splits, each a word of its kind."""
    words: dict[Any, str] = {}
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise RecastError(
            f"{source.file}, column {named(source.columns[name])} holds {column.dtype}: give texts"
        )
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


def check_stated(source: Source, column: pl.Series, row: int) -> None:
    """A column that says another split than the name of its file."""
    for value in column.unique(maintain_order=True).cast(pl.String, strict=False).drop_nulls():
        said = split_of(value)
        if said is not None and said != source.split:
            at = row + int((column == value).arg_max() or 0)
            raise RecastError(
                f"{where(source.file, at, source.columns[STATED])} is {named(value)}, and the "
                f"file's name says {source.split}: set split_column to go by the column, or drop it"
            )


def times_of(source: Source, raw: pl.DataFrame, row: int) -> pl.Series | None:
    """Whole numbers, one a row; None without such a column."""
    if "time" not in raw.columns:
        return None
    times, column = parse_times(raw["time"]), source.columns["time"]
    if times is None:
        raise RecastError(
            f"{source.file}, column {named(column)} holds {raw['time'].dtype}: give whole numbers, "
            "dates or ISO 8601 texts, or set time to row_order to read none"
        )
    if times.dtype != pl.Int64 or times.null_count():
        wrong = times.is_null() if times.dtype == pl.Int64 else times.cast(pl.Int64) != times
        at = int(wrong.fill_null(True).arg_max() or 0)
        raise RecastError(
            f"{where(source.file, row + at, column)} is {named(raw['time'][at])}: give whole "
            "numbers, dates or ISO 8601 texts, or set time to row_order to read none"
        )
    return times
