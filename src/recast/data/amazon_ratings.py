"""Amazon's rating files without a header: user, item, rating, time in 2014; item, user, rating,
time in 2018. Nothing but the ids tells which.

An item's id has ten capitals or digits (an ASIN); a user's begins with A and is seldom that long.
"""

from __future__ import annotations

import re
from pathlib import Path

from recast.data.amazon import AMAZON_2014, AMAZON_2018
from recast.data.delimited import read_unquoted
from recast.data.reviews import read_item_lines
from recast.data.tables import NO_ITEMS, Tables, check_events
from recast.types import RecastError, in_short

_ROW = re.compile(rb"[^,]+,[^,]+,[0-5](\.\d+)?,\d{9,10}\r?\n?")
_ASIN = r"^[0-9A-Z]{10}$"
_HEADER = (
    "write a first line such as user,item,rating,time and set user, item and time to its names"
)


def is_ratings(file: Path) -> bool:
    """Whether the first line is a rating and no header."""
    with file.open("rb") as stream:
        return _ROW.fullmatch(stream.readline(200)) is not None


def read_ratings(file: Path, items_file: Path | None) -> Tables:
    """Raises `RecastError` for a row of another length, and where the ids do not tell users from
    items."""
    names = ("first", "second", "rating", "time")
    raw = read_unquoted(file, "4 fields a row", names=names)
    for name in names:
        if raw[name].null_count():
            row = int(raw[name].is_null().arg_max() or 0) + 1
            raise RecastError(f"{file}, row {row:,} has not 4 fields: mend the row, or drop it")
    are_items = [bool(raw[name].str.contains(_ASIN).all()) for name in names[:2]]
    if are_items[0] == are_items[1]:
        raise RecastError(
            f"{file} has no header, and its ids do not tell users from items (the first row is "
            f"{in_short(','.join(raw.row(0)), 80)}): {_HEADER}"
        )
    layout = AMAZON_2018 if are_items[0] else AMAZON_2014
    user, item = ("second", "first") if are_items[0] else ("first", "second")
    columns = {"user": "of users", "item": "of items", "time": "of times"}
    events, notes = check_events(raw.select(user=user, item=item, time="time"), str(file), columns)
    order = "item, user, rating, time" if are_items[0] else "user, item, rating, time"
    used = f"{layout.name}: ratings without a header, read as {order}, of {file.name}"
    if items_file is None:
        return Tables(events, NO_ITEMS, [file], [used, *notes])
    items, more = read_item_lines(layout, items_file, events["item"].unique(), str(file))
    used += f"; texts {', '.join(layout.text_keys)} of {items_file.name}"
    return Tables(events, items, [file, items_file], [used, *notes, *more])
