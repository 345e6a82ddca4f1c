from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from recast.config import PrepareConfig
from recast.data.folder import load_facts
from recast.data.formats import find_format
from recast.data.lcrec import read_inter
from recast.data.prepare import prepare
from recast.types import RecastError

INTER = {"0": [5, 7, 5, 6], "1": [7, 6]}


def test_users_in_order(tmp_path: Path) -> None:
    (tmp_path / "X.inter.json").write_text(json.dumps(INTER))
    (tmp_path / "X.index.json").write_text(json.dumps({"5": ["<a_1>"]}))
    texts = {str(i): {"title": f"T{i}", "description": ["D", "E"], "brand": "B"} for i in (5, 6, 7)}
    (tmp_path / "X.item.json").write_text(json.dumps(texts))
    found = find_format(tmp_path, None)
    assert found is not None
    tables = found.read()
    assert tables.events.rows() == [
        *(("0", "5", 0), ("0", "7", 1), ("0", "5", 2), ("0", "6", 3)),
        *(("1", "7", 0), ("1", "6", 1)),
    ]
    assert tables.items.row(0) == ("5", "T5 D E")
    config = PrepareConfig(interactions=str(tmp_path), output=str(tmp_path / "out"))
    with pytest.raises(RecastError, match="split is 'global_time': LC-Rec has no times that two"):
        prepare(config)
    prepare(replace(config, split="leave_one_out"))
    notes = load_facts(tmp_path / "out")["notes"]
    assert notes == [
        "LC-Rec: every user's items, in order and without times, of X.inter.json; texts title, "
        "description of X.item.json",
        "files beside them, not read: X.index.json",
    ]


@pytest.mark.parametrize(
    ("inter", "error"),
    [
        ([], "it holds a list, no dict"),
        ({"0": 5}, "user '0' holds 5"),
        ({"0": [5.5]}, r"user '0' holds \[5.5\]"),
        ({" ": [5]}, "user ' ' holds"),
        ({"0": []}, "holds no event"),
    ],
)
def test_what_is_no_list_of_items(tmp_path: Path, inter: object, error: str) -> None:
    file = tmp_path / "X.inter.json"
    file.write_text(json.dumps(inter))
    with pytest.raises(RecastError, match=error):
        read_inter(file)


def test_texts_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "X.inter.json").write_text(json.dumps(INTER))
    (tmp_path / "X.item.json").write_text(json.dumps({"5": "T"}))
    with pytest.raises(RecastError, match=r"X\.item.json is damaged"):
        read_inter(tmp_path / "X.inter.json")
