"""Ids of users and items: a column as it was read in, ids as text out, or the line that refuses
them; and whether two files write the same ids alike."""

from __future__ import annotations

import numpy as np
import polars as pl

from recast.data.columns import named
from recast.types import RecastError

# fmt: off
MISSING = [
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
]
# fmt: on
"""Texts that stand for a missing value: those that pandas.read_csv reads as NaN."""

_LEAST_FRAC = 0.1
"""Of the events' items, that have a row in the items file; below it the ids are hardly the same."""


def read_ids(ids: pl.Series, file: str, column: str, rows: np.ndarray | None = None) -> pl.Series:
    """Ids as text without the white space around them.

    `rows` are the rows they stand in, from 0, where these are not theirs in order. Integers and
    texts are ids; raises `RecastError` for other types, a missing value, also one
    written as a word, a whole number written as a float, and an id in quotes.
    """
    if not (ids.dtype.is_integer() or ids.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise RecastError(
            f"{file}, column {named(column)} holds {ids.dtype}: give ids as integers or text"
        )
    is_number = ids.dtype.is_integer()
    ids = ids.cast(pl.String)
    if is_number and not ids.null_count():
        return ids
    ids = ids.str.strip_chars()
    missing = ids.is_null() | (ids == "").fill_null(False)
    if missing.any():
        row = _row_of(missing, rows)
        raise RecastError(
            f"{file}, row {row + 1}, column {named(column)} has no id: fill or drop the row"
        )
    distinct = ids.unique(maintain_order=True)
    for refused, what, remedy in (
        (distinct.is_in(MISSING), "a missing value", "drop those rows, or rename the id"),
        (_is_float(distinct), "a float", "write ids as integers or text"),
        (distinct.str.contains(r'^".*"$'), "in quotes", "leave no space before a quote"),
    ):
        if refused.any():
            first = distinct.filter(refused)[0]
            row, count = _row_of(ids == first, rows), int((ids == first).sum())
            raise RecastError(
                f"{file}, row {row + 1}, column {named(column)}: the id {named(first)} "
                f"(in {count:,} rows) is {what}: {remedy}"
            )
    return ids


def _row_of(found: pl.Series, rows: np.ndarray | None) -> int:
    place = int(found.arg_max() or 0)
    return place if rows is None else int(rows[place])


def trimmed_notes(ids: pl.Series, kind: str) -> list[str]:
    """A note, if `read_ids` drops white space around some of them."""
    ids = ids.cast(pl.String)
    trimmed = ids.filter((ids.str.strip_chars() != ids).fill_null(False))
    if trimmed.is_empty():
        return []
    what = f"{kind} ids with white space around them, which is dropped"
    return [f"{what}: {len(trimmed):,} rows (such as {named(trimmed[0])})"]


def _is_float(ids: pl.Series) -> pl.Series:
    """Whole numbers as pandas and Excel write them as floats (3.0, 1.2E+11), unless the column
    holds numbers that are not whole (the numbers of versions or of sections)."""
    if ids.str.contains(r"^[+-]?\d*\.\d*[1-9]\d*$").any():
        return pl.Series([False]).new_from_index(0, len(ids))
    return ids.str.contains(r"^[+-]?\d+(\.0*|(\.\d+)?[eE]\+\d+)$")


def alike(ids: pl.Series) -> pl.Series:
    """What is left of ids without case, quotes, leading zeros and a decimal point with zeros.

    >>> alike(pl.Series(["007", "7.0", "B7"])).to_list()
    ['7', '7', 'b7']
    """
    plain = ids.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[\s'\"]", "")
    return plain.str.replace(r"\.0+$", "").str.replace(r"^0+(\w)", "$1")


def mixed_notes(ids: pl.Series, kind: str) -> list[str]:
    """A warning, if ids of one file differ in how they are written alone."""
    ids = ids.unique(maintain_order=True)
    pairs = pl.DataFrame({"id": ids, "alike": alike(ids)})
    pairs = pairs.filter(pl.col("alike").is_duplicated()).sort("alike", "id")
    if pairs.is_empty():
        return []
    first, second = pairs["id"][:2]
    return [
        f"warning: {kind} ids that differ in case, quotes or zeros alone: {len(pairs):,} (such as "
        f"{named(first)} and {named(second)})"
    ]


def check_overlap(events: pl.Series, items: pl.Series, file: str, items_file: str) -> None:
    """Raise `RecastError` if items of the events are written otherwise in the items file, or if
    next to none of them has a row there."""
    ids = events.unique(maintain_order=True)
    absent = ids.filter(~ids.is_in(items.implode()))
    remedy = "write ids alike in both files"
    rows = pl.DataFrame({"row": items, "alike": alike(items)})
    pairs = pl.DataFrame({"id": absent, "alike": alike(absent)}).join(
        rows.unique("alike", keep="first", maintain_order=True), on="alike", maintain_order="left"
    )
    if len(pairs):
        raise RecastError(
            f"{file} and {items_file} write {len(pairs):,} items differently (such as "
            f"{named(pairs['id'][0])} and {named(pairs['row'][0])}): {remedy}"
        )
    if len(ids) - len(absent) < _LEAST_FRAC * len(ids):
        examples = [", ".join(map(named, some[:3])) for some in (absent, items)]
        raise RecastError(
            f"{items_file} has a row for {len(ids) - len(absent):,} of the {len(ids):,} items of "
            f"{file} (items there are {examples[0]}, here {examples[1]}): {remedy}, "
            "or set items_id to the column that holds them"
        )
