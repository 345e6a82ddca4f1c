from __future__ import annotations

import os
import zipfile
from pathlib import Path

import polars as pl
import pytest
import torch

from recast.config import PrepareConfig
from recast.data import movielens
from recast.data.folder import describe, load_facts, load_items
from recast.data.history import history, seen
from recast.data.movielens import read_packaged, read_zip
from recast.data.prepare import prepare
from recast.types import RecastError

GENRES = 19


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECAST_CACHE", str(cache))
    return tmp_path / "data"


def test_the_counts_of_the_real_data(folder: Path) -> None:
    data = prepare(PrepareConfig(output=str(folder)))
    facts = load_facts(folder)
    assert (facts["events"], facts["users"], facts["items"]) == (100_000, 943, 1_682)
    parts = facts["splits"]
    assert parts["train"]["events"] + parts["rl"]["events"] == 79_999
    assert parts["train"]["events"] == 71_996  # floor(.9 * 79,999) = 71,999 less a tie of 3
    assert parts["valid"]["events"] == 10_001
    assert parts["test"] == {"events": 10_000, "rows": 9_924, "users": 166}
    assert facts["new_test_users"] == 76
    assert facts["empty_texts"] == 1
    assert data.exclude_seen
    assert len(data.rows("test")) == 9_924
    assert "test: 10,000 events, 9,924 rows with a history, 166 users (76" in describe(folder)
    assert "warning: items without text: 1" in describe(folder)
    text = dict(load_items(folder).rows())
    assert text["1"] == "Toy Story (1995) Animation Children's Comedy"
    assert text["267"] == ""
    assert text["1373"] == "Good Morning (1971)"
    assert load_items(folder)["item_id"].to_list() == [str(i + 1) for i in range(1_682)]

    # The 86 % of the test rows whose histories would differ without test-period events.
    rows = data.rows("test")
    earlier_test = rows - torch.searchsorted(data.users * 4 + data.splits, data.users[rows] * 4 + 3)
    assert 0.85 < (earlier_test > 0).double().mean() < 1
    # No target was seen, and the latest item of the history is the event just before.
    excluded = seen(data, rows[:500])
    assert not (excluded == data.items[rows[:500], None]).any()
    assert torch.equal(history(data, rows, 1)[:, 0], data.items[rows - 1])


def u_item(item: int, title: str, *genres: int) -> str:
    flags = ["1" if i in genres else "0" for i in range(GENRES)]
    return "|".join([str(item), title, "01-Jan-1995", "", "http://x", *flags])


def write_zip(file: Path, **members: bytes) -> str:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"ml-100k/u.{name}", data)
    return str(file)


def test_the_layout_of_the_publisher(tmp_path: Path) -> None:
    lines = [
        u_item(1, "Toy Story (1995)", 3, 4, 5),
        u_item(2, "Mis\xe9rables, Les (1995)", 8, 12),
        u_item(267, "unknown", 0),
        u_item(4, 'Say "Hi" (1990)', 0),
    ]
    data = b"196\t1\t3\t881250949\n186\t267\t3\t891717742\n"
    file = write_zip(tmp_path / "z.zip", data=data, item="\n".join(lines).encode("latin-1"))
    events, items, files, _ = read_zip(file)
    assert events.rows() == [("196", "1", 881250949), ("186", "267", 891717742)]
    assert items.rows() == [
        ("1", "Toy Story (1995) Animation Children's Comedy", "Animation"),
        ("2", "Mis\xe9rables, Les (1995) Drama Musical", "Drama"),
        ("267", "", None),
        ("4", 'Say "Hi" (1990)', None),
    ]
    assert files == [tmp_path / "z.zip"]


def test_both_layouts_give_the_same(folder: Path, tmp_path: Path) -> None:
    """The packaged copy, written out the way the publisher does, is read back the same."""
    events, items, files, _ = read_packaged()
    raw = pl.read_csv(files[1], separator="\t", quote_char=None, infer_schema=False)
    raw.columns = ["id", "title", "year", "genres"]
    names = sorted({g for text in raw["genres"] for g in text.split()} - {"unknown"})
    assert len(names) == GENRES - 1  # and their alphabetical order is the order of the flags
    lines = [
        u_item(int(i), title if year == "unkonwn" else f"{title} ({year})",
               *[names.index(g) + 1 for g in genres.split() if g != "unknown"])
        for i, title, year, genres in raw.rows()
    ]  # fmt: skip
    lines = [line.replace("|unkonwn|", "|unknown|") for line in lines]
    data = events.select("user", "item", pl.lit("3"), "time")
    file = write_zip(
        tmp_path / "ml-100k.zip",
        data=data.write_csv(separator="\t", include_header=False).encode(),
        item="\n".join(lines).encode("latin-1"),
    )
    assert read_zip(file)[0].equals(events)
    assert read_zip(file)[1].equals(items)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"data": b"1\t1\t3\t9\n"}, "no item named 'ml-100k/u.item' in the archive"),
        ({"data": b"1\t1\t3\n", "item": b"1|t\n"}, "u.data has not 4 columns or u.item not 24"),
        ({"data": b"", "item": b""}, "empty"),
    ],
)
def test_another_zip(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    file = write_zip(tmp_path / "z.zip", **members)
    with pytest.raises(
        RecastError, match=r"is not MovieLens-100K \(.*\): give GroupLens'"
    ) as caught:
        read_zip(file)
    assert reason in str(caught.value)


def test_a_zip_that_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movielens, "_LARGEST", 10_000)
    file = write_zip(tmp_path / "z.zip", data=b"1\t1\t3\t9\n" * 9_999, item=b"1|t\n")
    with pytest.raises(RecastError, match=r"\(ml-100k/u.data unpacks to more than 10,000 bytes\)"):
        read_zip(file)


def test_rows_that_are_too_short(tmp_path: Path) -> None:
    items = "\n".join([u_item(1, "T"), "2|T"]).encode()
    file = write_zip(tmp_path / "z.zip", data=b"1\t1\t3\t9\n", item=items)
    with pytest.raises(RecastError, match=r"\(row 2 of u.item is too short\)"):
        read_zip(file)


def test_a_cache_that_was_changed(cache: Path, folder: Path) -> None:
    file = next(cache.rglob("ml-100k.item"))
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(RecastError, match=r"damaged"):
        read_packaged()
    file.write_bytes(content)


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_zip_of_any_compression(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", method) as archive:
        archive.writestr("ml-100k/u.data", "1\t1\t3\t9\n" * 999)
    content = bytearray((tmp_path / "z.zip").read_bytes())
    content[60:70] = b"\xff" * 10
    (tmp_path / "z.zip").write_bytes(content)
    with pytest.raises(RecastError, match=r"is not MovieLens-100K \(.*\): give GroupLens'"):
        read_zip(str(tmp_path / "z.zip"))


def test_no_zip(tmp_path: Path) -> None:
    (tmp_path / "z.zip").write_text("no zip")
    with pytest.raises(RecastError, match="File is not a zip file"):
        read_zip(str(tmp_path / "z.zip"))
    with pytest.raises(RecastError, match="No such file"):
        read_zip(str(tmp_path / "none.zip"))
    os.mkfifo(tmp_path / "fifo.zip")
    with pytest.raises(RecastError, match="no regular file"):
        read_zip(str(tmp_path / "fifo.zip"))


@pytest.mark.parametrize("name", ["user", "items", "text"])
def test_settings_that_movielens_does_not_read(tmp_path: Path, name: str) -> None:
    value = ["title"] if name == "text" else "x"
    config = PrepareConfig(output=str(tmp_path / "out"), **{name: value})
    with pytest.raises(RecastError, match=f"{name} is .*: movielens-100k knows its own columns"):
        prepare(config)
