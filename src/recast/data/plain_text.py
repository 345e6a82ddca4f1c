"""Plain rows that keep, and tell, what a language model can say: a file in, chats or texts out.

JSON lines or Parquet with a column `messages`, which end with the assistant's answer, or `text`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl
import torch

from recast.data.columns import named
from recast.data.messages import is_whole, read_chat, without_answer
from recast.data.row_tables import batches_of, columns_of, where
from recast.data.tables import readable
from recast.draws import uniforms
from recast.types import RecastError

MOST_ROWS = 2**20
MOST_CHARACTERS = 2**28
"""Of a file, all in memory; a run reads fewer."""

_MOST_HELD_OUT = 100
_HELD_OUT = 10
"""One row in so many is held out."""

_KINDS = ("messages", "text")


class PlainRow(NamedTuple):
    """A chat, its prompt as JSON without the last answer; or a text, which has no prompt."""

    prompt: str | None
    answer: str


class PlainText(NamedTuple):
    """The rows of a file, apart."""

    file: str
    held_out: list[PlainRow]
    """Nobody trains on them."""
    rows: list[PlainRow]
    """To train on; none of them equals one that is held out."""


def read_plain_text(file: str) -> PlainText:
    """All rows of a file, a tenth of them held out, 100 at most: the same for every run and seed.

    Raises `RecastError` for what is no such file and for a row that nobody could learn from.
    """
    with readable(file, (".jsonl", ".jsonl.gz", ".parquet")):
        present = columns_of(file, _KINDS)
    kinds = [name for name in _KINDS if name in present]
    if len(kinds) != 1:
        both = "holds both messages and text: keep one of them"
        shown = ", ".join(map(named, present[:6]))
        neither = f"has neither messages nor text (it holds {shown}): name the one that it has so"
        raise RecastError(f"{file} {both if kinds else neither}")
    rows, size = [], 0
    for row in _rows(file, kinds[0]):
        rows.append(row)
        size += len(row.prompt or "") + len(row.answer)
        if len(rows) > MOST_ROWS or size > MOST_CHARACTERS:
            raise RecastError(
                f"{file} holds more than {MOST_ROWS:,} rows or {MOST_CHARACTERS:,} characters: "
                "give a sample of it"
            )
    if not rows:
        raise RecastError(f"{file} holds no row: give at least one")
    count = min(_MOST_HELD_OUT, -(-len(rows) // _HELD_OUT))
    draws = uniforms(0, 0, torch.arange(len(rows)), "plain_text", 1)[:, 0]
    held_out = [rows[number] for number in draws.argsort()[:count].sort().values.tolist()]
    known = set(held_out)
    return PlainText(file, held_out, [row for row in rows if row not in known])


def _rows(file: str, kind: str) -> Iterator[PlainRow]:
    number = 0
    name = "prompt" if kind == "messages" else kind  # under which a list may stand in a line
    for batch in batches_of(file, {name: kind})[0]:
        column = batch[name]
        if kind == "text" and column.dtype != pl.String:
            raise RecastError(f"{file}, column 'text' holds {column.dtype}: give texts")
        for cell in column.to_list():
            place = where(file, number, kind)
            number += 1
            if cell is None or (isinstance(cell, str) and not cell.strip()):
                raise RecastError(f"{place} is empty: fill or drop the row")
            yield PlainRow(None, cell) if kind == "text" else _chat(cell, place)


def _chat(cell: object, place: str) -> PlainRow:
    prompt, answer = without_answer(read_chat(cell, place).messages, place)
    if not (answer and answer.strip()):
        raise RecastError(f"{place} ends without an answer: let the assistant's stand last")
    if not is_whole(answer):
        raise RecastError(f"{place} holds half a character: write it anew")
    return PlainRow(prompt, answer)
