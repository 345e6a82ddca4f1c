"""MovieLens-100K in its two published layouts: a folder or a zip in, the same two frames out.

Its licence forbids redistribution, so it is read from where it is published. An item's text is
"Title (year) Genre Genre", its category the first genre; the one item without a real title (267)
has the text "".
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import polars as pl
from polars.exceptions import PanicException, PolarsError

from recast.data.tables import Tables, check_events, check_items, join_text
from recast.run.fetch import fetch_from_wheel
from recast.run.reading import UNPACKING, reason_of
from recast.types import RecastError

_WHEEL = "recbole==1.2.1"
_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_MEMBER = "recbole/dataset_example/ml-100k"
_CONTENT = "4ad28b467209f8764ae903f340a73dd0ba84c52436e280ddd857bcea63511290"
_LARGEST = 2**26
"""Bytes of a member of the publisher's zip; u.data has 2 million."""

# The columns of u.data and u.item (README of GroupLens' ml-100k.zip); a genre's column is a flag.
# fmt: off
_GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
]
# fmt: on
_DATA = ["user", "item", "rating", "time"]
_ITEM = ["item_id", "title", "release_date", "video_date", "url", *_GENRES]

_UNREADABLE = (*UNPACKING, KeyError, ValueError, OSError, PolarsError, PanicException)
"""What zipfile and polars raise for another archive, an encrypted or a damaged one."""

# How the sources write "no value"; the packaged copy misspells it.
_PLACEHOLDERS = ["unknown", "unkonwn"]


def read_packaged() -> Tables:
    """The copy inside the RecBole wheel (fetched once, then cached).

    Raises `RecastError` when the cache does not hold what was fetched.
    """
    folder = fetch_from_wheel(_WHEEL, _SHA256, _MEMBER, _CONTENT)
    files = [folder / "ml-100k.inter", folder / "ml-100k.item"]
    data = [file.read_bytes() for file in files]
    events = _table(data[0], "\t", has_header=True).rename(lambda name: name.split(":")[0])
    items = _table(data[1], "\t", has_header=True).rename(lambda name: name.split(":")[0])
    year = pl.format("({})", _real("release_year"))
    text = join_text(_real("movie_title"), year, _real("class"))
    raw = events.select(user="user_id", item="item_id", time="timestamp")
    events, notes = _events(raw, str(files[0]))
    first = _real("class").str.split(" ").list.first()
    chosen = items.select("item_id", text=text, category=first)
    items = check_items(chosen, str(files[1]), "item_id")
    return Tables(events, items, files, notes)


def read_zip(file: str) -> Tables:
    """GroupLens' own ml-100k.zip (u.data, and u.item in Latin-1)."""
    try:
        if Path(file).exists() and not Path(file).is_file():
            raise ValueError("no regular file")
        with zipfile.ZipFile(file) as archive:
            data, item = (_member(archive, f"ml-100k/{name}") for name in ("u.data", "u.item"))
        events = _table(data, "\t", has_header=False)
        items = _table(item.decode("latin-1").encode(), "|", has_header=False)
        if events.width != len(_DATA) or items.width != len(_ITEM):
            raise ValueError("u.data has not 4 columns or u.item not 24")
        # A row with too few fields; the last of each file is never empty.
        for name, last in (("u.data", events[:, -1]), ("u.item", items[:, -1])):
            if last.null_count():
                raise ValueError(
                    f"row {int(last.is_null().arg_max() or 0) + 1} of {name} is too short"
                )
    except _UNREADABLE as error:
        reason = error.args[0] if isinstance(error, KeyError) else reason_of(error)
        raise RecastError(
            f"{file} is not MovieLens-100K ({reason}): give GroupLens' ml-100k.zip"
        ) from error
    events.columns, items.columns = _DATA, _ITEM
    genres = [g for g in _GENRES if g not in _PLACEHOLDERS]
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in genres]
    text = join_text(_real("title"), *flags)  # the title ends in the year already
    events, notes = _events(events.select("user", "item", "time"), file)
    chosen = items.select("item_id", text=text, category=pl.coalesce(flags))
    items = check_items(chosen, file, "item id")
    return Tables(events, items, [Path(file)], notes)


def _events(raw: pl.DataFrame, file: str) -> tuple[pl.DataFrame, list[str]]:
    return check_events(raw, file, {name: name for name in raw.columns})


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive, refused by the size it states and by the size it has."""
    with archive.open(name) as stream:
        data = stream.read(_LARGEST + 1) if archive.getinfo(name).file_size <= _LARGEST else None
    if data is None or len(data) > _LARGEST:
        raise ValueError(f"{name} unpacks to more than {_LARGEST:,} bytes")
    return data


def _table(data: bytes, separator: str, *, has_header: bool) -> pl.DataFrame:
    return pl.read_csv(
        data, separator=separator, has_header=has_header, quote_char=None, infer_schema=False
    )


def _real(column: str) -> pl.Expr:
    return pl.when(~pl.col(column).is_in(_PLACEHOLDERS)).then(pl.col(column))
