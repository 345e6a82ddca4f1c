from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recast.config import PrepareConfig
from recast.data.tables import parse_times, read_tables
from recast.types import RecastError

GOOD = "user,item,time\na,x,1\nb,y,2\n"


def config(folder: Path, csv: str | bytes = GOOD, /, **more: Any) -> PrepareConfig:
    """A config for the interactions `csv`, and the items file `items_text` if there is one."""
    file = folder / "events.csv"
    file.write_bytes(csv if isinstance(csv, bytes) else csv.encode())
    if "items_text" in more:
        (folder / "items.csv").write_text(more.pop("items_text"))
        more = {"items": str(folder / "items.csv"), "text": ["title"]} | more
    return PrepareConfig(output=str(folder / "out"), **({"interactions": str(file)} | more))


def test_columns_are_picked_by_name_and_the_rest_ignored(tmp_path: Path) -> None:
    text = "when,stars,who,what\n3,5,a,x\n1,4,b,7\n"
    settings = config(tmp_path, text, user="who", item="what", time="when")
    events, items, files = read_tables(settings)
    assert events.rows() == [("a", "x", 3), ("b", "7", 1)]
    assert events.schema == {"user": pl.String, "item": pl.String, "time": pl.Int64}
    assert items.is_empty()
    assert files == [tmp_path / "events.csv"]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert len(read_tables(config(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()))[0]) == 2


def test_item_text_joins_columns_in_order_and_leaves_out_what_is_missing(tmp_path: Path) -> None:
    rows = 'item,year,title,kind\nx,1999,"A,  B",k\ny,,C,\nz,,,\n'
    events, items, files = read_tables(
        config(tmp_path, items_text=rows, text=["title", "kind", "year"])
    )
    assert items.rows() == [("x", "A, B k 1999"), ("y", "C"), ("z", "")]
    assert [file.name for file in files] == ["events.csv", "items.csv"]
    assert len(events) == 2


DAY = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
MICRO = int(DAY.timestamp()) * 10**6


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["5", " 7 ", "-1"], [5, 7, -1]),
        (["5", "7.0"], [5, 7]),
        (["5", "7.5"], [5.0, 7.5]),
        (["9007199254740993", "1"], [9007199254740993, 1]),  # more than a float64 holds exactly
        ([5, 7], [5, 7]),
        ([5.0, 7.0], [5, 7]),
        ([5.25, 7.0], [5.25, 7.0]),
        ([dt.date(1970, 1, 3), dt.date(1970, 1, 2)], [2, 1]),
        ([DAY], [MICRO]),
        ([DAY.replace(tzinfo=None)], [MICRO]),
        (["2026-01-31T12:00:00", "2026-01-31T12:00:00Z"], [MICRO, MICRO]),
        (["2026-01-31 12:00:00.5", "2026-01-31T14:00:00+02:00"], [MICRO + 500_000, MICRO]),
        (["2026-01-31T12:00", "2026-01-31T14:00:00+02"], [MICRO, MICRO]),
        (["2026-01-31"], [MICRO - 12 * 3600 * 10**6]),
        (["2026-01-31", "31.1.2026", None], [MICRO - 12 * 3600 * 10**6, None, None]),
        (["5", "soon", "inf", "nan"], [5.0, None, None, None]),
        (["2026-02-30"], [None]),
    ],
)
def test_times(values: list[Any], expected: list[int | float | None]) -> None:
    times = parse_times(pl.Series("when", values))
    assert times is not None
    assert times.name == "time"
    assert times.to_list() == expected
    if None not in expected:
        assert times.dtype == (pl.Float64 if isinstance(expected[0], float) else pl.Int64)


BAD = [
    ("user,item\na,x\n", {}, "no column 'time': set time to one it has, the nearest is 'item'"),
    ("userId,item,time\n", {}, "no column 'user': set user to one it has, the nearest is 'userId'"),
    (GOOD, {"user": "USER_ID"}, "no column 'USER_ID': set user to one it has"),
    (
        GOOD,
        {"items_text": "item,name\nx,t\n"},
        "items.csv has no column 'title': set text to one it has, the nearest is 'item'",
    ),
    (
        "user,item,time\na,x,1\nb,y,later\n",
        {},
        "events.csv, row 2, column 'time': 'later' is no time: give a number, a date or an ISO",
    ),
    ("user,item,time\na,x,1\nb,y,\n", {}, "row 2, column 'time': None is no time"),
    ("user,item,time\na,x,1\n,y,2\n", {}, "events.csv, row 2, column 'user' has no id: fill or"),
    ('user,item,time\na,"",1\nb,y,2\n', {}, "events.csv, row 1, column 'item' has no id"),
    ("", {}, "events.csv is empty: give a file with a header and rows"),
    ("user,item,time\n", {}, "events.csv holds no row: give at least one event of two users"),
    ("user,item,time\na,b,1,2\n", {}, "events.csv cannot be read (found more fields"),
    (b"user,item,time\n\xff,b,1\n", {}, "events.csv cannot be read (invalid utf-8"),
    (GOOD, {"interactions": "none.csv"}, "none.csv: no such file: check the path"),
    (GOOD, {"item": "user"}, "user, item and time are set to ['user', 'user', 'time']: name 3"),
    (GOOD, {"text": ["title"]}, "text is ['title'] without a file: set items as well"),
    (GOOD, {"items": "i.csv"}, "items is 'i.csv' without columns: set text as well"),
    (GOOD, {"items_text": "item,title\n"}, "items.csv holds no row: give one row per item"),
    (GOOD, {"items_text": "item,title\nx,t\n,t\n"}, "items.csv, row 2, column 'item' has no id"),
    (
        GOOD,
        {"items_text": "item,title\nx,s\ny,t\nx,u\n"},
        "items.csv, row 3, column 'item': the item id 'x' appears more than once: keep one row",
    ),
]


@pytest.mark.parametrize(("csv", "more", "message"), BAD)
def test_bad_input(tmp_path: Path, csv: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(RecastError) as caught:
        read_tables(config(tmp_path, csv, **more))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    file = tmp_path / "events.json"
    file.write_text("{}")
    with pytest.raises(RecastError, match=r"ends in '\.json': give a \.csv or \.parquet file"):
        read_tables(config(tmp_path, interactions=str(file)))


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "events.parquet"
    file.write_text("nonsense, long enough")
    with pytest.raises(RecastError, match=r"events.parquet cannot be read \(.*\): give a UTF-8"):
        read_tables(config(tmp_path, interactions=str(file)))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", [1.0, 2.0], "column 'user' holds Float64: give ids as integers or text"),
        ("item", [["a"], ["b"]], r"column 'item' holds List\(String\): give ids"),
        ("time", [True, False], "column 'time' holds Boolean: give numbers, dates or ISO 8601"),
        ("user", [None, 2], "row 1, column 'user' has no id"),
        ("time", [1.0, float("nan")], "row 2, column 'time': nan is no time"),
    ],
)
def test_bad_types_in_parquet(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    good = {"user": ["a", "b"], "item": ["x", "y"], "time": [1, 2]}
    pl.DataFrame(good | {column: values}, strict=False).write_parquet(tmp_path / "e.parquet")
    with pytest.raises(RecastError, match=message):
        read_tables(config(tmp_path, interactions=str(tmp_path / "e.parquet")))


def test_csv_and_parquet_are_one_and_a_large_file_keeps_its_rows_in_order(tmp_path: Path) -> None:
    draw, size = np.random.default_rng(0), 200_000
    frame = pl.DataFrame(
        {
            "user": draw.integers(0, 5_000, size),
            "item": pl.Series(draw.integers(0, 900, size)).cast(pl.String).cast(pl.Categorical),
            "time": draw.integers(10**9, 2 * 10**9, size),
            "other": np.zeros(size),
        }
    )
    frame.write_parquet(tmp_path / "e.parquet", row_group_size=10_000)
    frame.write_csv(tmp_path / "e.csv")
    large, _, _ = read_tables(config(tmp_path, interactions=str(tmp_path / "e.parquet")))
    assert large.equals(read_tables(config(tmp_path, interactions=str(tmp_path / "e.csv")))[0])
    assert large.equals(
        frame.select(pl.col("user").cast(pl.String), pl.col("item").cast(pl.String), "time")
    )


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([["a"], ["b"]], "List(String)"),
        ([b"a", b"b"], "Binary"),
        ([dt.timedelta(1), dt.timedelta(2)], "Duration(time_unit='us')"),
    ],
)
def test_text_that_is_none(tmp_path: Path, values: list[Any], kind: str) -> None:
    pl.DataFrame({"item": ["x", "y"], "title": values}).write_parquet(tmp_path / "i.parquet")
    items = {"items": str(tmp_path / "i.parquet"), "text": ["title"]}
    with pytest.raises(RecastError) as caught:
        read_tables(config(tmp_path, **items))
    assert str(caught.value).endswith(f"column 'title' holds {kind}: give text or numbers")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(RecastError, match=r"d.csv is a folder: give a .csv or .parquet file"):
        read_tables(config(tmp_path, interactions=str(tmp_path / "d.csv")))


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    with pytest.raises(RecastError) as caught:
        read_tables(config(tmp_path, "\x01user" + "z" * 5000 + "\n1\n"))
    assert str(caught.value).endswith(f"the nearest is '\\x01user{'z' * 52}...'")
