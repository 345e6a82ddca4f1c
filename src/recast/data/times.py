"""Times of events: a column as it was read in, numbers out, and what they look like in words."""

from __future__ import annotations

import datetime as dt

import polars as pl

_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
_EARLIEST, _LATEST = 631_152_000, 4_102_444_800
"""1990-01-01 and 2100-01-01 as seconds since 1970: what a time of now looks like in each unit,
and in no other, since the two are less than a factor of 1000 apart."""


def parse_times(times: pl.Series) -> pl.Series | None:
    """Times as Int64 (Float64 if one is not whole), null where not understood.

    Numbers and Parquet dates keep their unit; texts that are no numbers are read as ISO 8601, as
    microseconds since 1970, in UTC unless they name their offset. The first value decides which
    of the two a text column holds. Numbers beyond 64 bits are not understood. None: a type that
    holds no times.
    """
    if times.dtype == pl.String:
        times = times.str.strip_chars()
        if not is_number(times):
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
    times = times.set(~(times.is_finite() & (times.abs() < 2**63)), None)
    # Beyond 2**53 a float is no exact integer any more.
    is_whole = ((times.round() == times) & (times.abs() <= 2**53)).all()
    return times.cast(pl.Int64) if is_whole else times


def is_number(texts: pl.Series) -> bool:
    """Whether the first of a column's texts is a number."""
    return texts.head(1).cast(pl.Float64, strict=False).null_count() == 0


def _iso(text: pl.Expr) -> pl.Expr:
    text = text.str.replace(" ", "T", literal=True).str.replace(r"[Zz]$", "+00:00")
    formats = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d")
    return pl.coalesce(
        text.str.to_datetime(form, time_unit="us", strict=False).dt.epoch("us") for form in formats
    )


def zone_notes(times: pl.Series) -> list[str]:
    """A warning, if some of the ISO 8601 texts name their offset and others do not."""
    if times.dtype != pl.String or is_number(times):
        return []
    without = int((~times.str.contains(r"\d:\d\d.*([Zz]|[+-]\d\d(:?\d\d)?)\s*$")).sum())
    if without in (0, len(times)):
        return []
    return [f"warning: times without an offset among others, read as UTC: {without:,}"]


def range_notes(times: pl.Series) -> list[str]:
    """The first and the last time, as dates where the last looks like one; a warning, if times of
    two units look like dates.

    >>> range_notes(pl.Series([881250949, 893286638]))
    ['times from 881250949 (1997-12-04 15:55) to 893286638 (1998-04-22 23:10), read as seconds']
    """
    first, last = times.to_frame("t").select(pl.min("t").alias("first"), pl.max("t")).row(0)
    counts = {
        unit: int(times.is_between(_EARLIEST * factor, _LATEST * factor).sum())
        for unit, factor in _UNITS.items()
    }
    units = {unit: count for unit, count in counts.items() if count}
    words = [f"{time}" for time in (first, last)]
    readable = ""
    if len(units) == 1:
        (unit,) = units
        words = [f"{time} ({_date(time / _UNITS[unit])})" for time in (first, last)]
        readable = f", read as {unit}"
    notes = [f"times from {words[0]} to {words[1]}{readable}"]
    if len(units) > 1:
        counted = " and ".join(f"{count:,} as {unit}" for unit, count in units.items())
        notes.append(f"warning: times of several units, read as dates {counted}: give one unit")
    return notes


def _date(seconds: float) -> str:
    try:
        date = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)
    except OverflowError:
        return "no date"
    return date.isoformat(" ", "minutes")
