"""MovieLens 1M and 10M (`ratings.dat`), 20M, 25M, 32M and latest (`ratings.csv`): a folder in,
`Tables` out.

Sources: the README of each at files.grouplens.org/datasets/movielens. An item's text is
"Title (year) Genre Genre", as for MovieLens-100K; every rating is an event.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recast.data.delimited import read_csv, read_unquoted
from recast.data.tables import Tables, check_events, check_items, drop_unseen, join_text
from recast.types import RecastError

_NO_GENRES = "(no genres listed)"
_LARGEST = 2**26
"""Bytes of movies.dat; that of 10M has 2**19."""


def read_dat(folder: Path) -> Tables:
    """`ratings.dat` and `movies.dat`, whose fields are separated by `::`.

    Raises `RecastError` for a row of another number of fields.
    """
    file, movies = folder / "ratings.dat", folder / "movies.dat"
    # Polars separates by one character: every second of 7 fields is the nothing between two colons.
    names = ("user", "_1", "item", "_2", "rating", "_3", "time")
    raw = read_unquoted(file, "user::item::rating::time a row", separator=":", names=names)
    for name in names:
        is_wrong = raw[name].is_not_null() if name.startswith("_") else raw[name].is_null()
        if is_wrong.any():
            row = int(is_wrong.arg_max() or 0) + 1
            raise RecastError(f"{file}, row {row:,} is not user::item::rating::time: mend the row")
    raw = raw.select("user", "item", "time")
    events, notes = check_events(raw, str(file), {name: name for name in raw.columns})
    items = _titles(_movies(movies), movies)
    return _tables(events, items, [file, movies], notes)


def read_csvs(folder: Path) -> Tables:
    """`ratings.csv` and `movies.csv`."""
    file, movies = folder / "ratings.csv", folder / "movies.csv"
    columns = {"user": "userId", "item": "movieId", "time": "timestamp"}
    raw, _ = read_csv(str(file), columns)
    events, notes = check_events(raw, str(file), columns)
    names = {"item_id": "movieId", "text title": "title", "text genres": "genres"}
    raw, _ = read_csv(str(movies), names)
    raw.columns = ["item_id", "title", "genres"]
    return _tables(events, _titles(raw, movies), [file, movies], notes)


def _movies(file: Path) -> pl.DataFrame:
    """UTF-8 in 10M, Latin-1 in 1M."""
    with file.open("rb") as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise RecastError(f"{file} has more than {_LARGEST:,} bytes: give MovieLens' movies.dat")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    # Not splitlines, which breaks a title at the Latin-1 of an ellipsis.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    rows = [line.split("::") for line in lines]
    for number, row in enumerate(rows, 1):
        if len(row) != 3:
            raise RecastError(f"{file}, row {number:,} is not item::title::genres: mend the row")
    return pl.DataFrame(
        rows, dict.fromkeys(("item_id", "title", "genres"), pl.String), orient="row"
    )


def _titles(movies: pl.DataFrame, file: Path) -> pl.DataFrame:
    genres = pl.when(pl.col("genres") != _NO_GENRES).then(
        pl.col("genres").str.replace_all("|", " ", literal=True)
    )
    return check_items(
        movies.select("item_id", text=join_text("title", genres)), str(file), "movieId"
    )


def _tables(
    events: pl.DataFrame, items: pl.DataFrame, files: list[Path], notes: list[str]
) -> Tables:
    used = f"MovieLens: every rating of {files[0].name}; texts title, genres of {files[1].name}"
    items, more = drop_unseen(items, events, files)
    return Tables(events, items, files, [used, *notes, *more])
