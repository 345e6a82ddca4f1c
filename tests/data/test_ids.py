from __future__ import annotations

import polars as pl
import pytest

from recast.data.ids import check_overlap, mixed_notes, read_ids, trimmed_notes
from recast.types import RecastError


def test_white_space_around_ids_is_none_of_them() -> None:
    ids = read_ids(pl.Series([" a", "b\t", "c d", "\u00a0e"]), "f", "user")
    assert ids.to_list() == ["a", "b", "c d", "e"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "nan", "nan"], "f, row 2, column 'user': the id 'nan' (in 2 rows) is a missing val"),
        (["a", "NULL"], "the id 'NULL' (in 1 rows) is a missing value: drop those rows, or rename"),
        (["a", " None "], "the id 'None'"),
        (["a", "  "], "row 2, column 'user' has no id"),
        (["7", "3.0"], "row 2, column 'user': the id '3.0' (in 1 rows) is a float: write ids as"),
        (["1.23E+11"], "'1.23E+11' (in 1 rows) is a float"),
        (["a", ' "b"'], "row 2, column 'user': the id '\"b\"' (in 1 rows) is in quotes: leave no"),
    ],
)
def test_ids_that_are_none(ids: list[str], message: str) -> None:
    with pytest.raises(RecastError) as caught:
        read_ids(pl.Series(ids), "f", "user")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "ids", [["1.0", "1.1", "v2.0"], ["nancy", "None of it"], ["1e5", "12E7"], ["007", "-3"], ['5"']]
)
def test_ids_that_look_odd(ids: list[str]) -> None:
    assert read_ids(pl.Series(ids), "f", "user").to_list() == ids


def test_ids_of_one_file_that_differ_in_writing() -> None:
    assert mixed_notes(pl.Series(["b7", "7", "8", "007", "B7", "7"]), "item") == [
        "warning: item ids that differ in case, quotes or zeros alone: 4 (such as '007' and '7')"
    ]
    assert mixed_notes(pl.Series(["0", "00a", "10", "1"]), "item") == []


def overlap(events: list[str], items: list[str]) -> None:
    check_overlap(pl.Series(events), pl.Series(items), "e.csv", "i.csv")


def test_ids_of_two_files() -> None:
    overlap(["7", "8"], ["8", "7", "9"])
    overlap([str(n) for n in range(10)], ["0", "x"])  # one of ten has a row
    for events, items, example in (
        (
            ["7", "8"],
            ["0000000007", "8"],
            "write 1 items differently (such as '7' and '0000000007')",
        ),
        (["7", "8"], ["7.0", "8.0"], "write 2 items differently (such as '7' and '7.0')"),
        (["A", "c"], ["'a'", "c"], "(such as 'A' and \"'a'\"): write ids alike in both files"),
        (
            [str(n) for n in range(11)],
            ["0", "x", "y"],
            "i.csv has a row for 1 of the 11 items of e.csv (items there are '1', '2', '3', here "
            "'0', 'x', 'y'): write ids alike in both files, or set items_id to the column",
        ),
    ):
        with pytest.raises(RecastError) as caught:
            overlap(events, items)
        assert example in str(caught.value)


def test_white_space_that_is_dropped_is_said() -> None:
    assert trimmed_notes(pl.Series(["a", " b", "c\t", None, " b"]), "user") == [
        "user ids with white space around them, which is dropped: 3 rows (such as ' b')"
    ]
    assert trimmed_notes(pl.Series([1, 2]), "item") == trimmed_notes(pl.Series(["a b"]), "x") == []
