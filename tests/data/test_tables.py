from __future__ import annotations

import datetime as dt
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recast.config import PrepareConfig
from recast.data.tables import read_tables
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
    events, items, files, _ = read_tables(settings)
    assert events.rows() == [("a", "x", 3), ("b", "7", 1)]
    assert events.schema == {"user": pl.String, "item": pl.String, "time": pl.Int64}
    assert items.is_empty()
    assert files == [tmp_path / "events.csv"]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert len(read_tables(config(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()))[0]) == 2


def test_item_text_joins_columns_in_order_and_leaves_out_what_is_missing(tmp_path: Path) -> None:
    rows = 'item,year,title,kind\nx,1999,"A,  B",k\ny,,C,\nz,,,\n'
    events, items, files, _ = read_tables(
        config(tmp_path, items_text=rows, text=["title", "kind", "year"])
    )
    assert items.rows() == [("x", "A, B k 1999"), ("y", "C"), ("z", "")]
    assert [file.name for file in files] == ["events.csv", "items.csv"]
    assert len(events) == 2


BAD = [
    (
        "user,item\na,x\n",
        {},
        "no column 'time': set time to row_order if its rows are in the order of time",
    ),
    (
        "user,item,day\na,x,1\n",
        {},
        "set time to one it has, the nearest is 'day', or to row_order if its rows are in the",
    ),
    ("user,item,row_order\na,x,1\n", {"time": "row_order"}, "has a column 'row_order', which as"),
    ("userId,item,time\n", {}, "no column 'user': set user to one it has, the nearest is 'userId'"),
    (GOOD, {"user": "USER_ID"}, "no column 'USER_ID': set user to one it has"),
    (
        GOOD,
        {"items_text": "item,name\nx,t\n"},
        "items.csv has no column 'title': set text to one it has, the nearest is 'name'",
    ),
    (
        GOOD,
        {"items_text": "asin,title\nx,t\n"},
        "items.csv has no column 'item': set items_id to one it has, the nearest is 'asin'",
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
    ("user,item,time\na,b,1,2\n", {}, "events.csv, row 1 (line 2) has 4 fields, the header 3"),
    (b"user,item,time\n\xff,b,1\n", {}, "events.csv, line 2 is not UTF-8 (invalid start byte)"),
    (GOOD, {"interactions": "none.csv"}, "none.csv: no such file: check the path"),
    (GOOD, {"item": "user"}, "user, item and time are set to ['user', 'user', 'time']: name 3"),
    (GOOD, {"text": ["title"]}, "text is ['title'] without a file: set items as well"),
    (GOOD, {"items_id": "i"}, "items_id is 'i' without a file: set items as well"),
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
    large = read_tables(config(tmp_path, interactions=str(tmp_path / "e.parquet"))).events
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
    assert str(caught.value).endswith(f"the nearest is '\\x01user{'z' * 50}...")


def test_the_item_column_of_each_file_has_its_own_name(tmp_path: Path) -> None:
    rows = "asin,parent,title\n1,x,X\n2,y,Y\n"
    read = read_tables(config(tmp_path, items_text=rows, items_id="parent"))
    assert read.items.rows() == [("x", "X"), ("y", "Y")]


def test_rows_in_the_order_of_time(tmp_path: Path) -> None:
    read = read_tables(config(tmp_path, "user,item\na,y\nb,x\na,x\n", time="row_order"))
    assert read.events.rows() == [("a", "y", 0), ("b", "x", 1), ("a", "x", 2)]
    assert read.notes == ["no times: the rows of the file are in the order of time"]


def test_missing_values_are_no_words_of_a_text(tmp_path: Path) -> None:
    frame = {
        "item": ["x", "y", "z"],
        "title": ["A", " nan", "nancy"],
        "year": [1999.0, float("nan"), None],
    }
    pl.DataFrame(frame).write_parquet(tmp_path / "i.parquet")
    items = {"items": str(tmp_path / "i.parquet"), "text": ["title", "year"]}
    read = read_tables(config(tmp_path, **items))
    assert read.items.rows() == [("x", "A 1999.0"), ("y", ""), ("z", "nancy")]
    assert read.notes[-1] == "texts that stand for a missing value, left out: 2"


def test_a_row_swallowed_by_a_quote(tmp_path: Path) -> None:
    rows = 'user,item,time,note\na,x,1,"7 inch\nb,y,2,ok\na,y,3,10"\nb,x,4,ok\na,y,5,ok\n'
    with pytest.raises(RecastError, match=r"row 1 holds another row in quotes \('b,y,2,ok'\)"):
        read_tables(config(tmp_path, rows))
    rows = 'item,title\nx,"A 7 inch\ny,Title of y\nz,B 10"\n'
    with pytest.raises(RecastError, match=r"items.csv, row 1 holds another row in quotes"):
        read_tables(config(tmp_path, items_text=rows))
    legal = 'item,title\nx,"one, two\nthree, four"\ny,Y\n'
    assert (
        read_tables(config(tmp_path, items_text=legal)).items["text"][0] == "one, two three, four"
    )


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """Nobody waits for a pipe that nobody writes to, or reads a device that never ends."""
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "zero.parquet").symlink_to("/dev/zero")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    for name, message in (
        ("fifo.csv", "fifo.csv is a pipe or a device, no file: give a .csv or .parquet file"),
        ("zero.parquet", "zero.parquet is a pipe or a device"),
        ("loop.csv", "loop.csv: no such file: check the path"),
        ("x" * 300 + ".csv", "it is too long, shorten it"),
    ):
        with pytest.raises(RecastError) as caught:
            read_tables(config(tmp_path, interactions=str(tmp_path / name)))
        assert message in str(caught.value)


def test_more_rows_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Parquet file of a few kilobytes can hold a billion rows, all alike."""
    pl.DataFrame({"user": ["a"] * 999, "item": "x", "time": 1}).write_parquet(
        tmp_path / "e.parquet"
    )
    monkeypatch.setattr("recast.data.parquet.memory_gib", lambda: 99_800 / 2**30)
    with pytest.raises(RecastError, match=r"e\.parquet holds 999 rows, too many for the .* GiB"):
        read_tables(config(tmp_path, interactions=str(tmp_path / "e.parquet")))


@pytest.mark.skipif(sys.platform != "linux", reason="no bound on memory here")
def test_a_few_kilobytes_that_unpack_to_more_than_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """192 MiB in 3 rows, where 128 MiB are to be used."""
    items = ["x" * 2**26 + end for end in "xyz"]
    frame = pl.DataFrame({"user": list("aab"), "item": items, "time": [1, 2, 3]})
    frame.write_parquet(file := tmp_path / "e.parquet")
    assert file.stat().st_size < 2**20
    monkeypatch.setattr("recast.data.parquet.memory_gib", lambda: 0.5)
    with pytest.raises(RecastError, match=r"e\.parquet unpacks to more than 0\.125 GiB, or is"):
        read_tables(config(tmp_path, interactions=str(file)))


def parquet() -> bytes:
    frame = pl.DataFrame({"user": list("ab") * 9, "item": list("xyz") * 6, "time": range(18)})
    frame.write_parquet(stream := io.BytesIO())
    return stream.getvalue()


def test_damaged_parquet_ends_in_one_line(tmp_path: Path) -> None:
    """Cut anywhere; and with bytes changed that make polars end its process, all those found."""
    whole, file = parquet(), tmp_path / "e.parquet"
    cut = [whole[:length] for length in range(0, len(whole), 120)]
    for content in [*cut, *(whole[:n] + b"c" + whole[n + 1 :] for n in (44, 166, 330))]:
        file.write_bytes(content)
        with pytest.raises(RecastError) as caught:
            read_tables(config(tmp_path, interactions=str(file)))
        assert "\n" not in str(caught.value)
