"""Samples made to the columns of MiniOneRec (commit 81b4) and ReRe."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import small_minionerec

from recast.config import PrepareConfig
from recast.data.folder import load_facts, load_items
from recast.data.prepare_rows import prepare_rows
from recast.data.rows import Rows
from recast.types import RecastError

NAME = "Office_5_2016-10-2018-11"
TITLES = ["Pen, 4 colors", 'Tabs, 2" clear', "Tape\u2028roll", "Mouse's pad"]
SIDS = [[60, 159, 203], [204, 229, 36], [60, 159, 203], [120, 190, 110]]  # two share one
ROWS = {
    "train": [("A1", [0], 1), ("A2", [3, 3], 0)],
    "valid": [("A2", [3, 3, 0], 1), ("A1", [0, 1], 3)],
    "test": [("A1", [0, 1, 3], 2)],
}


def minionerec(folder: Path, name: str = NAME) -> Path:
    """As data/Amazon of the repository."""
    small_minionerec.write_folder(folder, name, TITLES, SIDS, ROWS)
    return folder


def rere(folder: Path) -> Path:
    """ReRe's own columns, all files in one folder; its lists hold other quotes and times."""
    folder.mkdir()
    for split, rows in ROWS.items():
        with (folder / f"{NAME}_{split}.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(
                [
                    "user_id",
                    "item_asins",
                    "item_asin",
                    "history_item_id",
                    "item_id",
                    "history_item_title",
                    "item_title",
                    "history_rating",
                    "rating",
                    "history_timestamp",
                    "timestamp",
                ]
            )
            for user, history, item in rows:
                times = [1_500_000_000 + i for i in range(len(history))]
                cells = [user, "['B1']", "B2", history, item, [TITLES[i] for i in history]]
                table.writerow([*cells, TITLES[item], [5.0], 5.0, times, 1_600_000_000 + item])
    lines = [f"{title}\t{i}\n" for i, title in enumerate(TITLES)]
    (folder / f"{NAME}_info.txt").write_text("".join(lines))
    return folder


def prepared(folder: Path, rows: Path) -> Rows:
    return prepare_rows(PrepareConfig(output=str(folder / "out"), rows=str(rows)))


@pytest.mark.parametrize("make", [minionerec, rere])
def test_published_rows_come_back_as_they_are(make: Callable[[Path], Path], tmp_path: Path) -> None:
    rows = prepared(tmp_path, make(tmp_path / "Amazon"))
    users = pl.read_parquet(tmp_path / "out" / "users.parquet")["user_id"].to_list()
    for split, published in ROWS.items():
        chosen = rows.rows(split)
        history = [[i for i in row if i >= 0] for row in rows.history.take(chosen).tolist()]
        targets = rows.targets.take(chosen)[:, 0].tolist()
        who = [users[user] for user in rows.users[chosen].tolist()]
        assert list(zip(who, history, targets, strict=True)) == published
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items["item_id"].to_list() == ["0", "1", "2", "3"]
    assert items["text"].to_list() == [" ".join(title.split()) for title in TITLES]
    facts = load_facts(tmp_path / "out")
    assert facts["split_name"] == "as published"
    assert not rows.exclude_seen
    if make is minionerec:
        assert items["sid"].to_list() == SIDS
        assert rows.times is None
        assert facts["sid_names"] == {"pattern": "<{level}_{code}>", "begin": "", "end": ""}
        assert facts["item_counts"]["items"]["shared"] == 2
    else:
        assert items["sid"].null_count() == 4
        assert facts["sid_names"] is None
        assert rows.times is not None
        assert rows.times[0] == 1_600_000_001
    assert load_items(tmp_path / "out").columns == ["item_id", "text"]


def test_one_of_several_data_sets_is_chosen_by_name(tmp_path: Path) -> None:
    folder = minionerec(minionerec(tmp_path / "Amazon"), "Office_Products_5_2016-10-2018-11")
    minionerec(folder, "Toys_5_2016-10-2018-11")
    with pytest.raises(
        RecastError, match=f"2 data sets, Office, Toys: give one as {folder}/Office"
    ):
        prepared(tmp_path, folder)
    (folder / "index" / "Office_Products.index.json").write_text(
        (folder / "index" / "Office.index.json").read_text()
    )
    rows = prepared(tmp_path, folder / "Office_Products")
    assert len(rows.users) == 5
    assert rows.num_items == 4
    files = [path for path in load_facts(tmp_path / "out")["notes"] if "Office_Products_5" in path]
    assert len(files) == 3
    with pytest.raises(RecastError, match="nowhere: no such file, folder or data set"):
        prepared(tmp_path, folder / "nowhere")


def cell(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            f"test/{NAME}.csv",
            '"[0, 1, 3]"',
            "[0]*9**9",
            "row 1, column 'history_item_id' is .*no l",
        ),
        (f"test/{NAME}.csv", '"[0, 1, 3]"', "[9]", "row 1.*the item '9' is not in .*index.json"),
        (f"test/{NAME}.csv", "<c_203>\n", "<c_204>\n", "row 1, column 'item_sid' .*one version"),
        (f"test/{NAME}.csv", "history_item_id", "history", "has no column 'history_item_id'"),
        (f"test/{NAME}.csv", "\nA1,", "\nnan,", "row 1, column 'user_id': the id 'nan'"),
        (f"info/{NAME}.txt", "\t3", "\tthree", "line 4 is .*no title and item id behind a tab"),
        (f"info/{NAME}.txt", "\t3", "\t1", "line 4: the item 1 is there twice"),
        ("index/Office.index.json", '"<b_159>"', '"<c_159>"', "item 0 has '<c_159>' where <b_0>"),
        ("index/Office.index.json", '"<b_159>"', "159", "the item 0 has 159 where <b_0>"),
        ("index/Office.index.json", ', "<c_203>"', "", "item . has 3 names, the item . 2|2 names"),
        ("index/Office.index.json", '"1": ', '"0": ', "the key '0' is there twice"),
        ("index/Office.index.json", '"1": ', '"one": ', "the key 'one' is no item id"),
        ("index/Office.index.json", "}", "", "index.json cannot be read"),
        ("index/Office.item.json", '"title"', '"name"', "the item 0 has no title"),
        ("index/Office.item.json", '"title": "', '"title": "\\ud83d', "has no title in UTF-8"),
    ],
)
def test_files_that_contradict_each_other_are_one_line(
    tmp_path: Path, file: str, old: str, new: str, said: str
) -> None:
    folder = minionerec(tmp_path / "Amazon")
    cell(folder / file, old, new)
    with pytest.raises(RecastError, match=said) as raised:
        prepared(tmp_path, folder)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
