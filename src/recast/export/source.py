"""What every format is written from: a data folder in, its rows and the words of its items out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from recast.data.folder import load_facts
from recast.data.history import history
from recast.data.parquet import read_parquet
from recast.data.rows import Rows
from recast.items.writes import Catalog
from recast.run.reading import reading
from recast.types import Interactions, RecastError

CHUNK = 16_384
"""Rows that are Python objects at a time."""


class Row(NamedTuple):
    """A row with a history: items are indices, oldest first."""

    id: int
    user: int
    history: list[int]
    target: int


class Turn(NamedTuple):
    """A row as a chat: what is said, and the answer that names the targets."""

    id: int
    user_id: str
    messages: list[dict[str, str]]
    answer: str
    targets: list[int]
    item_ids: list[str]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data folder, and its catalogue if one was given."""

    folder: Path
    name: str
    """What the files of the export are called, where a format asks for a name."""
    interactions: Interactions | None
    """None of a folder of rows."""
    given: Rows | None
    """None of a folder of events."""
    user_ids: list[str]
    item_ids: list[str]
    texts: list[str]
    catalog: Catalog | None
    window: int
    template: str

    def rows(self, *splits: str) -> Iterator[list[Row]]:
        """Rows of these splits, a history and a target each, in order, some thousands at a time.

        Raises `RecastError` for given rows of another kind (`_check_histories`).
        """
        data = self.given if self.interactions is None else self.interactions
        assert data is not None
        if isinstance(data, Rows):
            self._check_histories(data)
        for split in splits:
            for rows in _chunks(data.rows(split)):
                if isinstance(data, Rows):
                    items, targets = data.history.take(rows, self.window), data.targets.take(rows)
                else:
                    items, targets = history(data, rows, self.window), data.items[rows, None]
                lengths = (items >= 0).sum(1).tolist()
                columns = (rows, data.users[rows], items, targets[:, 0])
                parts = zip(*(column.tolist() for column in columns), lengths, strict=True)
                yield [Row(id, user, past[:n], target) for id, user, past, target, n in parts]

    def _check_histories(self, given: Rows) -> None:
        """Raises `RecastError` for a row of text or messages, and for one of several targets."""
        remedy = "this format has a history and one item a row: choose verl, trl or flashrec"
        texts = given.prompts.is_not_null()
        if texts.any():
            raise RecastError(f"row {texts.arg_max()} of {self.folder} is text: {remedy}")
        counts = given.targets.lengths
        if int(counts.max()) > 1:
            row = int(counts.argmax())
            raise RecastError(
                f"row {row} of {self.folder} has {int(counts[row])} targets: {remedy}"
            )

    def words(self) -> list[str]:
        """What every item is called in a prompt: its semantic ID, or its text.

        Raises `RecastError` for items that have none.
        """
        words = self.texts
        what, remedy = "text", "give a catalog, whose semantic IDs are written in their place"
        if self.catalog is not None:
            words = self.catalog.spell(torch.arange(self.catalog.num_items))
            what, remedy = "semantic ID", "give a catalogue of `recast tokenize` in which all have"
        if empty := words.count(""):
            raise RecastError(
                f"{self.folder} holds {empty:,} items without {what} (such as "
                f"{self.item_ids[words.index('')]!r}): {remedy}"
            )
        return words

    def turns(self, split: str, words: list[str]) -> Iterator[list[Turn]]:
        """Rows of a split as a chat that calls items by these words, in order, some thousands at a
        time."""
        if self.given is None:
            for chunk in self.rows(split):
                yield [
                    self._turn(
                        words, row.id, row.user, self._asks(words, row.history), [row.target]
                    )
                    for row in chunk
                ]
            return
        given = self.given
        for rows in _chunks(given.rows(split)):
            columns = (given.history.take(rows, self.window), given.targets.take(rows))
            lists = ([[i for i in row if i >= 0] for row in c.tolist()] for c in columns)
            prompts, ids = given.prompts.gather(rows.numpy()), rows.tolist()
            parts = zip(ids, given.users[rows].tolist(), prompts, *lists, strict=True)
            yield [
                self._turn(words, id, user, self._messages(words, prompt, id, past), targets)
                for id, user, prompt, past, targets in parts
            ]

    def _messages(
        self, words: list[str], prompt: str | None, id: int, past: list[int]
    ) -> list[dict[str, str]]:
        assert self.given is not None
        if prompt is None:
            return self._asks(words, past)
        if not self.given.is_chat[id]:
            return [{"role": "user", "content": prompt}]
        messages: list[dict[str, str]] = json.loads(prompt)
        return messages

    def _asks(self, words: list[str], history: list[int]) -> list[dict[str, str]]:
        past = ", ".join(words[item] for item in history)
        return [{"role": "user", "content": self.template.replace("{history}", past)}]

    def _turn(
        self,
        words: list[str],
        id: int,
        user: int,
        messages: list[dict[str, str]],
        targets: list[int],
    ) -> Turn:
        between = "\n" if self.catalog is None else ""
        answer = between.join(words[item] for item in targets)
        ids = [self.item_ids[item] for item in targets]
        return Turn(id, self.user_ids[user], messages, answer, targets, ids)


def _chunks(rows: Int[Tensor, " N"]) -> Sequence[Int[Tensor, " C"]]:
    """Some thousands at a time, none of none: readers refuse a file without a row."""
    return rows.split(CHUNK) if len(rows) else ()


def load_user_ids(folder: str | Path) -> list[str]:
    """By user index."""
    with reading(folder, "make it again with `recast prepare`"):
        table = read_parquet(Path(folder) / "users.parquet", load_facts(folder))
        ids: list[str] = table["user_id"].cast(pl.String).to_list()
    return ids


def name_of(facts: Mapping[str, Any]) -> str:
    """A file name out of what a data folder was made of.

    >>> name_of({"source": "data/my events.csv"})
    'my_events'
    """
    return re.sub(r"[^\w.-]+", "_", Path(str(facts["source"])).stem)[:80].strip("._-") or "data"


def write_parquet(file: Path, tables: Iterable[pl.DataFrame]) -> None:
    """One file of many tables of one schema, of which one is in memory at a time; none of none."""
    parts = list[Path]()
    for table in tables:
        parts.append(file.with_name(f"{file.stem}.{len(parts)}.part"))
        table.write_parquet(parts[-1])
    if parts:
        pl.scan_parquet([part.absolute() for part in parts], glob=False).sink_parquet(file)
    for part in parts:
        part.unlink()
