from __future__ import annotations

import json
import zipfile
from pathlib import Path

import polars as pl
import pytest

from recast.config import PrepareConfig
from recast.data import archive
from recast.data.formats import find_format
from recast.data.prepare import prepare
from recast.types import RecastError
from tests.data.test_reviews import REVIEW, YELP, write

ITEM = {"asin": "i", "brand": "b"}
USERS = 6
DAT = "".join(f"{u}::{i}::5::{97 + 9 * u + i}\n" for u in range(USERS) for i in range(4))


def test_what_is_left_to_the_reader_of_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("user,item,time\nu,i,1\n")
    (tmp_path / "x.txt").write_text("u i 1")
    for name in ("x.csv", "x.txt", "none.json"):
        assert find_format(tmp_path / name, None) is None


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({}, r"holds no data set that recast knows \(files nothing\): give one of Amazon reviews"),
        ({"data.json": None}, r"\(it is a data folder of `recast prepare`\) holds no data set"),
        ({"a.csv": None, ".b": None}, r"\(files a.csv\)"),
        ({"a.json": REVIEW, "b.json": YELP}, r"holds several data sets \(Amazon reviews 2018, Yel"),
        (
            {"a.json": REVIEW, "b.json": {"business_id": "b", "name": "n"}},
            r"a.json is Amazon reviews 2018, and b.json beside it holds the items of Yelp: keep",
        ),
        (
            {"a.json": REVIEW, "b.json": {"asin": "i", "title": "t"}, "c.json": ITEM},
            r"holds several files of items \(b.json, c.json\): name the two files",
        ),
    ],
)
def test_folders_that_are_no_data_set(
    tmp_path: Path, files: dict[str, dict[str, object] | None], error: str
) -> None:
    for name, row in files.items():
        write(tmp_path / name, row or {"source": "x"})
    with pytest.raises(RecastError, match=error):
        find_format(tmp_path, None)


@pytest.mark.parametrize(
    ("row", "what"),
    [({"asin": "i", "title": "t"}, "items, no events"), ({"x": 1}, "lines of no known format")],
)
def test_lines_of_no_events(tmp_path: Path, row: dict[str, object], what: str) -> None:
    with pytest.raises(RecastError, match=rf"x.jsonl holds {what} \(keys .*\): give one of"):
        find_format(write(tmp_path / "x.jsonl", row), None)


def write_zip(file: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(file, "w") as out:
        for name, content in members.items():
            out.writestr(name, content)
    return file


MOVIES = "".join(f"{i}::Film {i} (1999)::Drama\n" for i in range(4))


def test_a_zip_is_its_folder(tmp_path: Path) -> None:
    members = {"ml-1m/ratings.dat": DAT, "ml-1m/movies.dat": MOVIES, "__MACOSX/._ratings.dat": ""}
    source = write_zip(tmp_path / "ml-1m.zip", members)
    data = prepare(PrepareConfig(interactions=str(source), output=str(tmp_path / "out")))
    assert (data.num_users, data.num_items, len(data.items)) == (USERS, 4, 4 * USERS)
    facts = json.loads((tmp_path / "out" / "data.json").read_text())
    assert facts["notes"][0] == (
        "MovieLens: every rating of ratings.dat; texts title, genres of movies.dat"
    )
    assert facts["items_without_row"] == 0
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.row(0) == ("0", "Film 0 (1999) Drama")


def test_zips_that_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(members: dict[str, str], error: str) -> None:
        source = write_zip(tmp_path / "m.zip", members)
        with pytest.raises(RecastError, match=f"^{source}{error}"):
            prepare(PrepareConfig(interactions=str(source), output=str(tmp_path / "out")))

    whole = {"ratings.dat": DAT, "movies.dat": MOVIES}
    refused(whole | {"ratings.dat": "1::2\n"}, r"/ratings.dat, row 1 is not user::item::rating")
    refused({"ratings.dat": DAT}, " holds no data set that recast knows")
    refused(whole | {"old/ratings.dat": DAT}, r" cannot be unpacked \(it holds ratings.dat twice\)")
    monkeypatch.setattr(archive, "_LARGEST", 9)
    refused(whole, r" cannot be unpacked \(ratings.dat unpacks to more than 9 bytes\)")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["user", "item", "time", "text", "items"])
def test_settings_that_a_format_does_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "ratings.dat").write_text(DAT)
    (tmp_path / "movies.dat").write_text(MOVIES)
    values = {name: ["title"] if name == "text" else "x", "output": str(tmp_path / "out")}
    with pytest.raises(RecastError, match=f"{name} is .*: {tmp_path} knows its own columns"):
        prepare(PrepareConfig(interactions=str(tmp_path), **values))
