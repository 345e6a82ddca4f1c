from __future__ import annotations

from pathlib import Path

import pytest

from recast.data.formats import find_format
from recast.data.recbole import read_atomic
from recast.types import RecastError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = "item_id:token\ttitle:token_seq\tprice:float\tclass:token\n"


def test_events_and_texts(tmp_path: Path) -> None:
    inter, item = tmp_path / "ml.inter", tmp_path / "ml.item"
    inter.write_text(INTER + "1\t1193\t5\t978300760\n2\t661\t3\t978302109.0\n")
    found = find_format(tmp_path, None)
    assert found is not None
    assert found.read().items.is_empty()
    item.write_text(ITEM + '1193\tOne "Flew"\t3.5\tDrama\n661\t"Say ""Hi"""\t\t\n9\tNobody\t1\t\n')
    for path in (tmp_path, inter):
        found = find_format(path, None)
        assert found is not None
        tables = found.read()
        assert tables.events.rows() == [("1", "1193", 978300760), ("2", "661", 978302109)]
        texts = [("1193", 'One "Flew" Drama'), ("661", 'Say "Hi"'), ("9", "Nobody")]
        assert tables.items.rows() == texts
        assert tables.notes[0].endswith("timestamp of ml.inter; texts title, class of ml.item")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("user_id\titem_id\n1\t2\n", "has the column 'user_id': give names with one of RecBole's"),
        ("a:token\ta:float\n1\t2\n", "has the column 'a:float': give names"),
        ("user_id:token\titem_id:token\n1\t2\n", "has no column 'timestamp': "),
        (INTER, "holds no row"),
        (INTER + "1\t2\t3\t4\t5\n", r"cannot be read \(.*\): give tab-separated"),
        (INTER + "1\t2\t3\n", "row 1, column 'timestamp'"),
        ("", "cannot be read"),
    ],
)
def test_what_is_no_atomic_file(tmp_path: Path, content: str, error: str) -> None:
    file = tmp_path / "x.inter"
    file.write_text(content)
    with pytest.raises(RecastError, match=error):
        read_atomic(file)


def test_items_of_other_events(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_text(INTER + "1\t2\t3\t4\n")
    (tmp_path / "x.item").write_text(ITEM + "3\tA\t1\tB\n")
    with pytest.raises(RecastError, match=r"x\.item has a row for 0 of the 1 items"):
        read_atomic(tmp_path / "x.inter")
