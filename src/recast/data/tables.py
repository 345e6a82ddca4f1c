"""The user's own CSV or Parquet files: paths and column names in, checked frames out.

Events: `user`, `item` (String) and `time` (Int64, or Float64 where a time is not whole). Items:
`item_id` and `text` (String). Row numbers in messages count from 1, the header left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import polars as pl
from polars.exceptions import PolarsError

from recast.config import PrepareConfig
from recast.data.columns import ROW_ORDER, choose_columns, named
from recast.data.delimited import Suspect, read_csv
from recast.data.ids import MISSING, check_overlap, mixed_notes, read_ids, trimmed_notes
from recast.data.parquet import try_parquet
from recast.data.times import parse_times, range_notes, zone_notes
from recast.run.reading import reason_of
from recast.types import RecastError

NO_ITEMS = pl.DataFrame(schema={"item_id": pl.String, "text": pl.String})
"""The items of a data set without a file of them: those of its events."""


class Tables(NamedTuple):
    """What a reader returns: events and items (none without an items file), the files they were
    read from, and what a person should know of them, one line each."""

    events: pl.DataFrame
    items: pl.DataFrame
    files: list[Path]
    notes: list[str]


def read_tables(config: PrepareConfig) -> Tables:
    """Raises `RecastError` for what cannot be read, what is missing and what contradicts itself."""
    columns = {"user": config.user, "item": config.item, "time": config.time}
    if len(set(columns.values())) < len(columns):
        raise RecastError(
            f"user, item and time are set to {list(columns.values())}: name 3 columns"
        )
    require_items(config)
    file = config.interactions
    raw, suspects = read_columns(file, columns)
    if config.time == ROW_ORDER:
        raw = raw.with_row_index("time")
    events, notes = check_events(raw, file, columns)
    event_items = events["item"].unique()
    refuse_swallowed(suspects, file, event_items)
    notes += [*trimmed_notes(raw["user"], "user"), *trimmed_notes(raw["item"], "item")]
    notes += [*mixed_notes(events["user"], "user"), *mixed_notes(event_items, "item")]
    if config.items is None:
        return Tables(events, NO_ITEMS, [Path(file)], notes)
    items, more = read_items(config, config.items, event_items)
    check_overlap(event_items, items["item_id"], file, config.items)
    return Tables(events, items, [Path(file), Path(config.items)], notes + more)


def require_items(config: PrepareConfig) -> None:
    """Raise `RecastError` for settings of an items file without one, and for one without texts."""
    for setting in ("text", "items_id", "category"):
        if (value := getattr(config, setting)) and config.items is None:
            raise RecastError(f"{setting} is {value!r} without a file: set items as well")
    if config.items is not None and not config.text:
        raise RecastError(f"items is {config.items!r} without columns: set text as well")


def read_items(
    config: PrepareConfig, file: str, event_items: pl.Series
) -> tuple[pl.DataFrame, list[str]]:
    """`item_id` and `text` of the items file, and what to say of them; raises `RecastError`."""
    column = config.items_id or config.item
    parts = {f"text {i}": name for i, name in enumerate(config.text)}
    category = {"category": config.category} if config.category else {}
    raw, suspects = read_columns(file, {"items_id": column, **parts, **category})
    refuse_swallowed(suspects, file, event_items)
    num_missing = raw.select(*parts).null_count().sum_horizontal().item()
    for name, part in (parts | category).items():
        kind = raw[name].dtype
        if kind.is_nested() or kind in (pl.Binary, pl.Duration, pl.Object):
            raise RecastError(f"{file}, column {named(part)} holds {kind}: give text or numbers")
        is_word = pl.col(name).cast(pl.String).str.strip_chars().is_in(MISSING)
        raw = raw.with_columns(pl.when(~is_word).then(pl.col(name)))
    num_words = raw.select(*parts).null_count().sum_horizontal().item() - num_missing
    chosen = raw.select(
        item_id="items_id",
        text=join_text(*parts),
        **{name: pl.col(name).cast(pl.String).str.strip_chars() for name in category},
    )
    items = check_items(chosen, file, column)
    notes = trimmed_notes(raw["items_id"], "items file")
    notes += [f"texts that stand for a missing value, left out: {num_words:,}"] if num_words else []
    return items, notes


def refuse_swallowed(suspects: list[Suspect], file: str, ids: pl.Series) -> None:
    """Text may hold line breaks, but a line with a row's commas and one of these ids is a row."""
    known = set(ids) if suspects else set()
    for row, line, id in suspects:
        if id in known:
            raise RecastError(
                f"{file}, row {row} holds another row in quotes ({named(line)}): "
                "close the quote where its field ends, or write it as two in a quoted field"
            )


def join_text(*columns: str | pl.Expr) -> pl.Expr:
    """One text out of several columns: missing parts left out, white space made single."""
    parts = [pl.col(c) if isinstance(c, str) else c for c in columns]
    text = pl.concat_str([p.cast(pl.String) for p in parts], separator=" ", ignore_nulls=True)
    return text.str.replace_all(r"\s+", " ").str.strip_chars()


def check_events(
    raw: pl.DataFrame, file: str, columns: dict[str, str]
) -> tuple[pl.DataFrame, list[str]]:
    """`user`, `item`, `time` with ids as text and times as numbers, in the order of `raw`; and
    what to say of the times.

    `columns` holds the file's own column names, for the messages. Raises `RecastError` for an
    empty file, a missing id and a time that cannot be understood.
    """
    if raw.is_empty():
        raise RecastError(f"{file} holds no row: give at least one event of two users")
    times = parse_times(raw["time"])
    if times is None:
        raise RecastError(
            f"{file}, column {named(columns['time'])} holds {raw['time'].dtype}: "
            "give numbers, dates or ISO 8601 texts"
        )
    if times.null_count():
        row = int(times.is_null().arg_max() or 0)
        raise RecastError(
            f"{file}, row {row + 1}, column {named(columns['time'])}: "
            f"{named(raw['time'][row])} is no time: give a number, a date or an "
            "ISO 8601 text such as 2026-01-31T12:00:00"
        )
    ids = [read_ids(raw[name], file, columns[name]) for name in ("user", "item")]
    is_order = columns["time"] == ROW_ORDER
    notes = ["no times: the rows of the file are in the order of time"] if is_order else []
    return pl.DataFrame([*ids, times]), notes or [*range_notes(times), *zone_notes(raw["time"])]


def check_items(items: pl.DataFrame, file: str, column: str) -> pl.DataFrame:
    """`item_id`, `text` with ids as text; raises `RecastError` for a missing or repeated id."""
    if items.is_empty():
        raise RecastError(f"{file} holds no row: give one row per item")
    items = items.with_columns(
        read_ids(items["item_id"], file, column), pl.col("text").fill_null("")
    )
    first = items["item_id"].is_first_distinct()
    if not first.all():
        row = int(first.not_().arg_max() or 0)
        raise RecastError(
            f"{file}, row {row + 1}, column {named(column)}: the item id "
            f"{named(items['item_id'][row])} appears more than once: keep one row per item"
        )
    return items


def drop_unseen(
    items: pl.DataFrame, events: pl.DataFrame, files: list[Path]
) -> tuple[pl.DataFrame, list[str]]:
    """The items that have an event, of a data set whose texts are of a whole shop, and a note of
    those that have none; `files` are of events and of items. Raises as `check_overlap`."""
    ids = events["item"].unique()
    check_overlap(ids, items["item_id"], *map(str, files))
    seen = items.filter(pl.col("item_id").is_in(ids.implode()))
    num_unseen = len(items) - len(seen)
    note = f"items of {files[1].name} without an event, left out: {num_unseen:,}"
    return seen, [note] if num_unseen else []


def read_columns(file: str, columns: dict[str, str]) -> tuple[pl.DataFrame, list[Suspect]]:
    """The named columns of a file, streamed, and lines of a CSV that look swallowed; `columns` maps
    our names to the file's.

    Raises `RecastError` for what is no readable CSV or Parquet file and for a column that it lacks.
    """
    with readable(file):
        # Absolute and without globs: polars would read a leading ~ and brackets as patterns.
        path = Path(file).absolute()
        if path.suffix.lower() == ".csv":
            return read_csv(file, columns)
        columns = choose_columns(file, try_parquet(path, tuple(columns.values())).names, columns)
        scan = pl.scan_parquet(path, glob=False)
        chosen = scan.select(pl.col(column).alias(name) for name, column in columns.items())
        return chosen.collect(engine="streaming"), []


@contextmanager
def readable(file: str, suffixes: tuple[str, ...] = (".csv", ".parquet")) -> Iterator[None]:
    """Around code that reads a user's file; raises `RecastError` when it is no CSV and no Parquet
    file, or cannot be read."""
    path, suffix = Path(file).absolute(), Path(file).suffix.lower()
    if suffix == ".gz":
        suffix = "".join(path.suffixes[-2:]).lower()
    kinds = f"give a {', '.join(suffixes[:-1])} or {suffixes[-1]} file"
    try:
        if path.is_dir():
            raise RecastError(f"{file} is a folder: {kinds}")
        if not path.exists():
            raise RecastError(f"{file}: no such file: check the path")
        if not path.is_file():
            raise RecastError(f"{file} is a pipe or a device, no file: {kinds}")
        if suffix not in suffixes:
            raise RecastError(f"{file} ends in {suffix!r}: {kinds}")
        yield
    except RecastError:
        raise
    except (PolarsError, OSError, ValueError) as error:
        raise RecastError(
            f"{file} cannot be read ({reason_of(error)}): give "
            + ("a UTF-8 CSV with a header, or Parquet" if ".csv" in suffixes else "a whole file")
        ) from error
