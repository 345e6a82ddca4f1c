from __future__ import annotations

from pathlib import Path

import pytest

from recast.data.movielens_files import read_csvs, read_dat
from recast.types import RecastError


def test_the_layout_of_1m(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::661::3::978302109\n")
    movies = "1193::Alien: Mis\xe9 (1979)::Sci-Fi|Horror\n661::A\x85B (1996)::Drama\n7::C::Drama\n"
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    tables = read_dat(tmp_path)
    assert tables.events.rows() == [("1", "1193", 978300760), ("2", "661", 978302109)]
    assert tables.items["text"][0] == "Alien: Mis\xe9 (1979) Sci-Fi Horror"
    assert tables.items["item_id"].to_list() == ["1193", "661"]
    assert tables.notes[-1] == "items of movies.dat without an event, left out: 1"


def test_the_layout_of_32m(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,17,4.0,944249077\n")
    films = 'movieId,title,genres\n17,"Sense, and (1995)",(no genres listed)\n'
    (tmp_path / "movies.csv").write_text(films)
    tables = read_csvs(tmp_path)
    assert tables.events.rows() == [("1", "17", 944249077)]
    assert tables.items.rows() == [("17", "Sense, and (1995)")]
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,17,4.0\n")
    with pytest.raises(RecastError, match=r"ratings\.csv has no column 'timestamp'"):
        read_csvs(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("ratings.dat", "1::2::3::4\n1::2::3\n", "ratings.dat, row 2 is not user::item::rating"),
        ("ratings.dat", "1:2:3:4:5:6:7\n", "ratings.dat, row 1 is not user::item::rating"),
        ("ratings.dat", "1::2::3::4::5\n", r"ratings.dat cannot be read \(.*\): give user::item"),
        ("ratings.dat", "1::2::3::x\n", "ratings.dat, row 1, column 'time': 'x' is no time"),
        ("ratings.dat", "", "ratings.dat holds no row"),
        ("movies.dat", "2::A\n", "movies.dat, row 1 is not item::title::genres: mend the row"),
        ("movies.dat", "3::A::B\n", "movies.dat has a row for 0 of the 1 items of"),
    ],
)
def test_rows_that_are_not(tmp_path: Path, name: str, content: str, error: str) -> None:
    (tmp_path / "ratings.dat").write_text("1::2::3::4\n")
    (tmp_path / "movies.dat").write_text("2::A::B\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(RecastError, match=error):
        read_dat(tmp_path)
