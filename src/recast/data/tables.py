"""The user's own CSV or Parquet files: paths and column names in, checked frames out.

Events: `user`, `item` (String) and `time` (Int64, or Float64 where a time is not whole). Items:
`item_id` and `text` (String). Row numbers in messages count from 1, the header left out.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import polars as pl

from recast.config import PrepareConfig
from recast.run.files import reason_of
from recast.types import RecastError


def read_tables(config: PrepareConfig) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
    """Events, items (none without an items file) and the files they were read from."""
    columns = {"user": config.user, "item": config.item, "time": config.time}
    if len(set(columns.values())) < len(columns):
        raise RecastError(
            f"user, item and time are set to {list(columns.values())}: name 3 columns"
        )
    if config.text and config.items is None:
        raise RecastError(f"text is {config.text!r} without a file: set items as well")
    if config.items is not None and not config.text:
        raise RecastError(f"items is {config.items!r} without columns: set text as well")
    events = check_events(_read(config.interactions, columns), config.interactions, columns)
    if config.items is None:
        empty = pl.DataFrame(schema={"item_id": pl.String, "text": pl.String})
        return events, empty, [Path(config.interactions)]
    parts = {f"text {i}": column for i, column in enumerate(config.text)}
    raw = _read(config.items, {"item": config.item, **parts})
    for name, column in parts.items():
        kind = raw[name].dtype
        if kind.is_nested() or kind in (pl.Binary, pl.Duration, pl.Object):
            raise RecastError(
                f"{config.items}, column {_named(column)} holds {kind}: give text or numbers"
            )
    items = check_items(
        raw.select(item_id="item", text=join_text(*parts)), config.items, config.item
    )
    return events, items, [Path(config.interactions), Path(config.items)]


def join_text(*columns: str | pl.Expr) -> pl.Expr:
    """One text out of several columns: missing parts left out, white space made single."""
    parts = [pl.col(c) if isinstance(c, str) else c for c in columns]
    text = pl.concat_str([p.cast(pl.String) for p in parts], separator=" ", ignore_nulls=True)
    return text.str.replace_all(r"\s+", " ").str.strip_chars()


def check_events(raw: pl.DataFrame, file: str, columns: dict[str, str]) -> pl.DataFrame:
    """`user`, `item`, `time` with ids as text and times as numbers, in the order of `raw`.

    `columns` holds the file's own column names, for the messages. Raises `RecastError` for an
    empty file, a missing id and a time that cannot be understood.
    """
    if raw.is_empty():
        raise RecastError(f"{file} holds no row: give at least one event of two users")
    times = parse_times(raw["time"])
    if times is None:
        raise RecastError(
            f"{file}, column {_named(columns['time'])} holds {raw['time'].dtype}: "
            "give numbers, dates or ISO 8601 texts"
        )
    if times.null_count():
        row = int(times.is_null().arg_max() or 0)
        raise RecastError(
            f"{file}, row {row + 1}, column {_named(columns['time'])}: "
            f"{_named(raw['time'][row])} is no time: give a number, a date or an "
            "ISO 8601 text such as 2026-01-31T12:00:00"
        )
    ids = [_ids(raw[name], file, columns[name]) for name in ("user", "item")]
    return pl.DataFrame([*ids, times])


def check_items(items: pl.DataFrame, file: str, column: str) -> pl.DataFrame:
    """`item_id`, `text` with ids as text; raises `RecastError` for a missing or repeated id."""
    if items.is_empty():
        raise RecastError(f"{file} holds no row: give one row per item")
    items = items.with_columns(_ids(items["item_id"], file, column), pl.col("text").fill_null(""))
    first = items["item_id"].is_first_distinct()
    if not first.all():
        row = int(first.not_().arg_max() or 0)
        raise RecastError(
            f"{file}, row {row + 1}, column {_named(column)}: the item id "
            f"{_named(items['item_id'][row])} appears more than once: keep one row per item"
        )
    return items


def parse_times(times: pl.Series) -> pl.Series | None:
    """Times as Int64 (Float64 if one is not whole), null where not understood.

    Numbers and Parquet dates keep their unit; texts that are no numbers are read as ISO 8601, as
    microseconds since 1970, in UTC unless they name their offset. The first value decides which
    of the two a text column holds. None: a type that holds no times.
    """
    if times.dtype == pl.String:
        times = times.str.strip_chars()
        is_number = times.head(1).cast(pl.Float64, strict=False).null_count() == 0
        if not is_number:
            return times.to_frame("time").select(_iso(pl.col("time")))["time"]
        whole = times.cast(pl.Int64, strict=False)
        times = whole if whole.null_count() == 0 else times.cast(pl.Float64, strict=False)
    if times.dtype == pl.Date or isinstance(times.dtype, pl.Datetime):
        times = times.to_physical()  # a Datetime with a zone is stored in UTC
    if times.dtype.is_integer():
        return times.cast(pl.Int64, strict=False).alias("time")
    if not times.dtype.is_numeric():
        return None
    times = times.cast(pl.Float64).alias("time")
    times = times.set(~times.is_finite(), None)
    # Beyond 2**53 a float is no exact integer any more.
    is_whole = ((times.round() == times) & (times.abs() <= 2**53)).all()
    return times.cast(pl.Int64) if is_whole else times


def _iso(text: pl.Expr) -> pl.Expr:
    text = text.str.replace(" ", "T", literal=True).str.replace(r"[Zz]$", "+00:00")
    formats = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d")
    return pl.coalesce(
        text.str.to_datetime(form, time_unit="us", strict=False).dt.epoch("us") for form in formats
    )


def _ids(ids: pl.Series, file: str, column: str) -> pl.Series:
    """Ids as text; integers and texts are ids, fractions are not."""
    if not (ids.dtype.is_integer() or ids.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise RecastError(
            f"{file}, column {_named(column)} holds {ids.dtype}: give ids as integers or text"
        )
    ids = ids.cast(pl.String)
    missing = ids.is_null() | (ids == "").fill_null(False)
    if missing.any():
        row = int(missing.arg_max() or 0)
        raise RecastError(
            f"{file}, row {row + 1}, column {_named(column)} has no id: fill or drop the row"
        )
    return ids


def _read(file: str, columns: dict[str, str]) -> pl.DataFrame:
    """The named columns of a file, streamed; `columns` maps our names to the file's."""
    # Absolute and without globs: polars would read a leading ~ and brackets as patterns.
    path, suffix = Path(file).absolute(), Path(file).suffix.lower()
    if path.is_dir():
        raise RecastError(f"{file} is a folder: give a .csv or .parquet file")
    if not path.is_file():
        raise RecastError(f"{file}: no such file: check the path")
    if suffix not in (".csv", ".parquet"):
        raise RecastError(f"{file} ends in {suffix!r}: give a .csv or .parquet file")
    try:
        # Texts first, so that a value of the wrong kind can be named with its row.
        scan = (
            pl.scan_csv(path, infer_schema=False, glob=False)
            if suffix == ".csv"
            else pl.scan_parquet(path, glob=False)
        )
        present = scan.collect_schema().names()
        for name, column in columns.items():
            if column not in present:
                near = difflib.get_close_matches(column, [p[:80] for p in present], n=1, cutoff=0)
                raise RecastError(
                    f"{file} has no column {_named(column)}: set {name.split()[0]} to one it has, "
                    f"the nearest is {_named(near[0])}"
                )
        chosen = scan.select(pl.col(column).alias(name) for name, column in columns.items())
        return chosen.collect(engine="streaming")
    except pl.exceptions.NoDataError as error:
        raise RecastError(f"{file} is empty: give a file with a header and rows") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RecastError(
            f"{file} cannot be read ({reason_of(error)}): "
            "give a UTF-8 CSV with a header, or Parquet"
        ) from error


def _named(value: object) -> str:
    """A name or value out of a file for a message; of a binary file it can be any length."""
    if isinstance(value, str) and len(value) > 60:
        value = f"{value[:57]}..."
    return repr(value)
