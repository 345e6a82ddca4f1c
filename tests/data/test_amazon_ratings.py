from __future__ import annotations

from pathlib import Path

import pytest

from recast.data.formats import find_format
from recast.data.tables import Tables
from recast.types import RecastError

EVENTS = [("A39HTATAQ9V7YF", "0205616461", 1369699200), ("A3JM6GV9MN", "B00B58R0CG", 1355443200)]


def read(file: Path, items: Path | None = None) -> Tables:
    found = find_format(file, str(items) if items else None)
    assert found is not None
    return found.read()


def test_the_ids_tell_the_year(tmp_path: Path) -> None:
    file, items = tmp_path / "x.csv", tmp_path / "meta.json"
    items.write_text("{'asin': '0205616461', 'title': 'T'}")
    file.write_text("".join(f"{u},{i},5.0,{t}\n" for u, i, t in EVENTS))
    tables = read(tmp_path)
    assert tables.events.rows() == EVENTS
    assert tables.items.rows() == [("0205616461", "T")]
    assert tables.notes[0] == (
        "Amazon reviews 2014: ratings without a header, read as user, item, rating, time, of "
        "x.csv; texts title, categories, brand of meta.json"
    )
    file.write_text("".join(f"{i},{u},5.0,{t}\n" for u, i, t in EVENTS))
    tables = read(file, items)
    assert tables.events.rows() == EVENTS
    assert "2018" in tables.notes[0]


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ("u,i,5.0,1369699200\n", r"do not tell users from items \(the first row is 'u,i,5.0,13"),
        ("A3JM6GV9MN,B00B58R0CG,5.0,1369699200\n", "do not tell users from items"),
        ("A39HTATAQ9V7YF,0205616461,5.0,1369699200\nA,B\n", "row 2 has not 4 fields"),
        ("A39HTATAQ9V7YF,0205616461,5.0,1369699200\nA,B,1,2,3\n", "cannot be read"),
    ],
)
def test_rows_that_say_too_little(tmp_path: Path, rows: str, error: str) -> None:
    file = tmp_path / "x.csv"
    file.write_text(rows)
    with pytest.raises(RecastError, match=error):
        read(file)
