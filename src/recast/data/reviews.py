"""Reviews, one object a line, and the lines of the items they are of: files in, `Tables` out.

The layouts (which keys hold what) stand in files of their own: `amazon.py`, `yelp.py`, `steam.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from recast.data.ids import check_overlap
from recast.data.lines import Line, field_of, id_of, read_lines, text_of
from recast.data.tables import NO_ITEMS, Tables, check_items, join_text
from recast.data.times import parse_times, range_notes
from recast.types import RecastError, in_short

_BATCH = 50_000
"""Lines that are Python objects at a time."""


class Layout(NamedTuple):
    """Which keys of a line hold what, in one publisher's files."""

    name: str
    user: str
    item: str
    time: str
    item_id: str
    """Key of the id in an item's line."""
    text_keys: tuple[str, ...]
    """Keys that make up an item's text, in order."""
    texts: Callable[[dict[str, Any]], list[str]]
    """The parts of an item's text."""
    marks: tuple[str, ...] = ()
    """Keys that tell a review of this layout from others with the same keys."""
    skips: bool = False
    """Lines without a user or without an item's id are known here: left out, and counted."""

    def holds_events(self, keys: set[str]) -> bool:
        return {self.user, self.item, self.time, *self.marks} <= keys

    def holds_items(self, keys: set[str]) -> bool:
        """`text_keys` are those of all releases: one is enough."""
        return self.item_id in keys and self.user not in keys and bool(keys & set(self.text_keys))


def read_reviews(layout: Layout, events_file: Path, items_file: Path | None) -> Tables:
    """The events of a file, and the texts of those items that have one.

    Raises `RecastError` for a line without its fields, a time that is none, and an items file that
    is of other items.
    """
    events, notes = _read_events(layout, events_file)
    used = f"{layout.name}: users {layout.user}, items {layout.item}, times {layout.time}"
    used += f" of {events_file.name}"
    if items_file is None:
        return Tables(events, NO_ITEMS, [events_file], [used, *notes])
    items, more = read_item_lines(layout, items_file, events["item"].unique(), str(events_file))
    used += f"; texts {', '.join(layout.text_keys)} of {items_file.name}"
    return Tables(events, items, [events_file, items_file], [used, *notes, *more])


def _read_events(layout: Layout, file: Path) -> tuple[pl.DataFrame, list[str]]:
    schema = {"user": pl.String, "item": pl.String, "time": pl.String, "line": pl.Int64}
    batches, skipped = [pl.DataFrame(schema=schema)], 0
    for lines in _batches(file):
        rows = [
            (
                id_of(line, layout.user, file, may_lack=layout.skips),
                id_of(line, layout.item, file),
                _time_of(line, layout.time, file),
                line.number,
            )
            for line in lines
        ]
        batch = pl.DataFrame(rows, schema=schema, orient="row")
        skipped += batch["user"].null_count()
        batches.append(batch.drop_nulls("user"))
    events = pl.concat(batches)
    if events.is_empty():
        raise RecastError(f"{file} has no line with a {layout.user}: give other reviews")
    times = parse_times(events["time"])
    assert times is not None
    if times.null_count():
        row = int(times.is_null().arg_max() or 0)
        raise RecastError(
            f"{file}, line {events['line'][row]:,}: {layout.time} is "
            f"{in_short(events['time'][row], 62)}: give a number or a date such as 2017-12-31"
        )
    notes = range_notes(times)
    notes += [f"lines without a {layout.user}, left out: {skipped:,}"] if skipped else []
    return events.select("user", "item").with_columns(times), notes


def read_item_lines(
    layout: Layout, file: Path, event_items: pl.Series, events_file: str
) -> tuple[pl.DataFrame, list[str]]:
    """`item_id` and `text` of the items that have events; each item's first line counts."""
    known = set(event_items)
    batches, ids, skipped = list[pl.DataFrame](), list[pl.Series](), 0
    for lines in _batches(file):
        numbered = [
            (id_of(line, layout.item_id, file, may_lack=layout.skips), line) for line in lines
        ]
        skipped += sum(id is None for id, _ in numbered)
        ids.append(pl.Series([id for id, _ in numbered if id is not None], dtype=pl.String))
        rows = [(id, " ".join(layout.texts(line.fields))) for id, line in numbered if id in known]
        batches.append(pl.DataFrame(rows, {"item_id": pl.String, "text": pl.String}, orient="row"))
    all_ids = pl.concat(ids).unique()
    check_overlap(event_items, all_ids, events_file, str(file))
    items = pl.concat(batches).with_columns(text=join_text("text"))
    first = items.unique("item_id", keep="first", maintain_order=True)
    notes = [
        f"{what}: {count:,}"
        for what, count in (
            (f"lines of {file.name} without a {layout.item_id}, left out", skipped),
            ("second lines of an item, left out", len(items) - len(first)),
            (f"items of {file.name} without an event, left out", len(all_ids) - len(first)),
        )
        if count
    ]
    return check_items(first, str(file), layout.item_id), notes


def _batches(file: Path) -> Iterator[list[Line]]:
    lines = read_lines(file)
    while batch := list(islice(lines, _BATCH)):
        yield batch


def _time_of(line: Line, key: str, file: Path) -> str:
    value = field_of(line, key, file)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RecastError(
            f"{file}, line {line.number:,}: {key} is {in_short(value, 62)}: give a number or a date"
        )
    return text_of(value)
