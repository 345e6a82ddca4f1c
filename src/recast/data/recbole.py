"""RecBole's atomic files, NAME.inter and NAME.item: tab-separated text in, `Tables` out.

Source: https://recbole.io/docs/user_guide/data/atomic_files.html. Read are `user_id:token`,
`item_id:token` and `timestamp`, RecBole's own names; an item's text is every `token` and
`token_seq` of its row, in the order of the file. RecBole reads by pandas, which takes quotes around
a field off; so do we.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recast.data.columns import choose_columns
from recast.data.delimited import read_unquoted
from recast.data.ids import check_overlap
from recast.data.tables import NO_ITEMS, Tables, check_events, check_items, join_text
from recast.types import RecastError, in_short

_TYPES = ("token", "token_seq", "float", "float_seq")


def read_atomic(file: Path) -> Tables:
    """An .inter file, and the .item file of the same name if it is there.

    Raises `RecastError` for a header without types, a column that is missing, and rows of another
    number of fields.
    """
    table, kinds = _read(file)
    columns = {"user": "user_id", "item": "item_id", "time": "timestamp"}
    choose_columns(str(file), list(kinds), columns)
    raw = table.select(pl.col(column).alias(name) for name, column in columns.items())
    events, notes = check_events(raw, str(file), columns)
    used = f"RecBole's atomic files: users user_id, items item_id, times timestamp of {file.name}"
    items_file = file.with_suffix(".item")
    if not items_file.is_file():
        return Tables(events, NO_ITEMS, [file], [used, *notes])
    table, kinds = _read(items_file)
    choose_columns(str(items_file), list(kinds), {"items_id": "item_id"})
    texts = [name for name, kind in kinds.items() if kind.startswith("token") and name != "item_id"]
    text = join_text(*texts) if texts else pl.lit("")
    items = check_items(table.select("item_id", text=text), str(items_file), "item_id")
    check_overlap(events["item"].unique(), items["item_id"], str(file), str(items_file))
    used += f"; texts {', '.join(texts) or 'none'} of {items_file.name}"
    return Tables(events, items, [file, items_file], [used, *notes])


def _read(file: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """Every column as text, by its name, and its type."""
    table = read_unquoted(file, "tab-separated UTF-8 with a header", separator="\t")
    kinds = {}
    for column in table.columns:
        name, _, kind = column.partition(":")
        if kind not in _TYPES or name in kinds:
            raise RecastError(
                f"{file} has the column {in_short(column, 62)}: give names with one of RecBole's "
                f"types, such as user_id:token or timestamp:float (types: {', '.join(_TYPES)})"
            )
        kinds[name] = kind
    table.columns = list(kinds)
    is_quoted = pl.col(pl.String).str.contains(r'^".*"$')
    plain = (
        pl.col(pl.String)
        .str.strip_prefix('"')
        .str.strip_suffix('"')
        .str.replace_all('""', '"', literal=True)
    )
    return table.with_columns(pl.when(is_quoted).then(plain).otherwise(pl.col(pl.String))), kinds
