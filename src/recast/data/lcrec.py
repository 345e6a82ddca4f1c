"""LC-Rec's data, NAME.inter.json and NAME.item.json: every user's items in order in, `Tables` out.

Source: data_process/ and data.py of github.com/zhengbw0324/LC-Rec. There are no times: a user's
events are in order, those of two users are not, so that only `leave_one_out` can split them. An
item's text is title and description, as LC-Rec embeds them. NAME.index.json holds semantic IDs and
is not read here.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recast.data.ids import check_overlap
from recast.data.lines import text_of
from recast.data.tables import NO_ITEMS, Tables, check_items, join_text
from recast.run.reading import read_json, reading
from recast.types import RecastError, in_short

_REMEDY = "give LC-Rec's own file"


def read_inter(file: Path) -> Tables:
    """Raises `RecastError` for what is no list of item ids for each user."""
    with reading(file, _REMEDY):
        histories = read_json(file, dict)
        for user, items in histories.items():
            is_list = isinstance(items, list) and all(type(item) in (int, str) for item in items)
            if not is_list or not user.strip():
                raise ValueError(f"user {in_short(user, 40)} holds {in_short(items, 62)}")
        lengths = [len(items) for items in histories.values()]
        if not sum(lengths):
            raise RecastError(f"{file} holds no event: give events of two users or more")
        events = pl.DataFrame(
            {
                "user": [
                    user
                    for user, count in zip(histories, lengths, strict=True)
                    for _ in range(count)
                ],
                "item": [str(item) for items in histories.values() for item in items],
                "time": [place for count in lengths for place in range(count)],
            }
        )
    used = f"LC-Rec: every user's items, in order and without times, of {file.name}"
    items_file = file.with_name(file.name.removesuffix(".inter.json") + ".item.json")
    if not items_file.is_file():
        return Tables(events, NO_ITEMS, [file], [used])
    with reading(items_file, _REMEDY):
        rows = [
            (item, f"{text_of(fields.get('title'))} {text_of(fields.get('description'))}")
            for item, fields in read_json(items_file, dict).items()
        ]
    table = pl.DataFrame(rows, {"item_id": pl.String, "text": pl.String}, orient="row")
    items = check_items(table.with_columns(text=join_text("text")), str(items_file), "item id")
    check_overlap(events["item"].unique(), items["item_id"], str(file), str(items_file))
    used += f"; texts title, description of {items_file.name}"
    return Tables(events, items, [file, items_file], [used])
