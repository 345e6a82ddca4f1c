"""The data sets of the field: a file, a folder or a zip in, the reader of its format out.

Formats are told by names (`ratings.dat`, NAME.inter) and, of JSON lines, by the keys of the first
one. docs/formats.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from recast.data.amazon import AMAZON_2014, AMAZON_2018, AMAZON_2023
from recast.data.amazon_ratings import is_ratings, read_ratings
from recast.data.lcrec import read_inter
from recast.data.lines import read_lines
from recast.data.movielens_files import read_csvs, read_dat
from recast.data.recbole import read_atomic
from recast.data.reviews import Layout, read_reviews
from recast.data.steam import STEAM
from recast.data.tables import Tables
from recast.data.yelp import YELP
from recast.run.reading import kind_of
from recast.types import RecastError, one_line

LAYOUTS = (AMAZON_2014, AMAZON_2018, AMAZON_2023, YELP, STEAM)
"""Of reviews, the first that fits counts."""

_KNOWN = (
    "Amazon reviews 2014, 2018 and 2023, MovieLens 100K to 32M, Yelp, Steam, RecBole's atomic "
    "files and LC-Rec (docs/formats.md)"
)
_LINES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


class Format(NamedTuple):
    """What was found, and what reads it."""

    name: str
    read: Callable[[], Tables]
    takes_items: bool = False
    """Whether `items` may name the file of its items."""
    has_times: bool = True
    """False: only the events of one user are in order."""


def find_format(path: Path, items: str | None) -> Format | None:
    """The format of a file or folder; None for one that is no data set of the field.

    Raises `RecastError` for a folder without one, or with several, and for lines of other keys.
    """
    if path.is_dir():
        return _of_folder(path, items)
    return _of_file(path, items) if path.is_file() else None


def _of_file(path: Path, items: str | None) -> Format | None:
    name = path.name.lower()
    items_file = Path(items) if items else None
    if name == "ratings.dat":
        return Format("MovieLens", partial(read_dat, path.parent))
    if name.endswith(".inter"):
        return Format("RecBole's atomic files", partial(read_atomic, path))
    if name.endswith(".inter.json"):
        return Format("LC-Rec", partial(read_inter, path), has_times=False)
    if name.endswith(".csv") and is_ratings(path):
        if items_file is not None:
            _require_items(AMAZON_2018, items_file)
        return Format("Amazon ratings", partial(read_ratings, path, items_file), takes_items=True)
    if not name.endswith(_LINES):
        return None
    keys = _keys(path)
    layout = _events_layout(keys)
    if layout is None:
        what = "items, no events" if _items_layout(keys) else "lines of no known format"
        raise RecastError(
            f"{path} holds {what} (keys {one_line(', '.join(sorted(keys)), 120)}): give one of "
            f"{_KNOWN}, or a CSV or Parquet file of events"
        )
    if items_file is not None:
        _require_items(layout, items_file)
    read = partial(read_reviews, layout, path, items_file)
    return Format(layout.name, read, takes_items=True)


def _require_items(layout: Layout, file: Path) -> None:
    """Raise `RecastError` for a file whose lines are reviews, or of no item of this layout."""
    keys = _keys(file)
    other = _events_layout(keys)
    what = f"reviews ({other.name})" if other else f"lines without {layout.item_id!r}"
    if other or layout.item_id not in keys:
        raise RecastError(
            f"items is {str(file)!r}, which holds {what}: give the file of the items, with "
            f"{', '.join(layout.text_keys)} under each {layout.item_id}"
        )


def _keys(file: Path) -> set[str]:
    """Of the first object of a file; raises as `read_lines` does."""
    return set(next(read_lines(file)).fields)


def _events_layout(keys: set[str]) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.holds_events(keys)), None)


def _items_layout(keys: set[str]) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.holds_items(keys)), None)


def _of_folder(folder: Path, items: str | None) -> Format:
    files = {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}
    files = {name: file for name, file in files.items() if not name.startswith(".")}
    found = list[Format]()
    if {"ratings.dat", "movies.dat"} <= set(files):
        found.append(Format("MovieLens", partial(read_dat, folder)))
    if {"ratings.csv", "movies.csv"} <= set(files):
        found.append(Format("MovieLens", partial(read_csvs, folder)))
    special = [file for name, file in files.items() if name.endswith((".inter", ".inter.json"))]
    found += filter(None, (_of_file(file, None) for file in special))
    if not found:
        found = _reviews_in(list(files.values()), items)
    if len(found) == 1:
        return found[0]
    names = one_line(", ".join(files), 200) or "nothing"
    if found:
        several = ", ".join(sorted(format.name for format in found))
        raise RecastError(
            f"{folder} holds several data sets ({several}; files {names}): name the file to read"
        )
    raise RecastError(
        f"{folder}{kind_of(folder)} holds no data set that recast knows (files {names}): give one "
        f"of {_KNOWN}, or a CSV or Parquet file of events"
    )


def _reviews_in(files: list[Path], items: str | None) -> list[Format]:
    """Every file of reviews or ratings, with the one file of items beside it unless `items` is
    another."""
    keys = {file: _keys(file) for file in files if file.name.lower().endswith(_LINES)}
    events = {file: layout for file in keys if (layout := _events_layout(keys[file]))}
    ratings = [file for file in files if file.suffix.lower() == ".csv" and is_ratings(file)]
    events |= dict.fromkeys(ratings, AMAZON_2018)
    beside = {file: layout for file in keys if (layout := _items_layout(keys[file]))}
    if items is None and len(beside) > 1 and events:
        names = one_line(", ".join(file.name for file in beside), 200)
        raise RecastError(
            f"{files[0].parent} holds several files of items ({names}): name the two files to read "
            "as interactions and items"
        )
    for file, layout in events.items():
        for other, kind in beside.items() if items is None else ():
            if kind.item_id != layout.item_id:
                raise RecastError(
                    f"{file} is {layout.name}, and {other.name} beside it holds the items of "
                    f"{kind.name}: keep one data set in a folder, or name the two files to read as "
                    "interactions and items"
                )
            items = str(other)
    return list(filter(None, (_of_file(file, items) for file in events)))
