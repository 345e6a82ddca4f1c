from __future__ import annotations

import datetime as dt
from typing import Any

import polars as pl
import pytest

from recast.data.times import parse_times, range_notes, zone_notes

DAY = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
MICRO = int(DAY.timestamp()) * 10**6


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["5", " 7 ", "-1"], [5, 7, -1]),
        (["5", "7.0"], [5, 7]),
        (["5", "7.5"], [5.0, 7.5]),
        (["9007199254740993", "1"], [9007199254740993, 1]),  # more than a float64 holds exactly
        ([5, 7], [5, 7]),
        ([5.0, 7.0], [5, 7]),
        ([5.25, 7.0], [5.25, 7.0]),
        ([dt.date(1970, 1, 3), dt.date(1970, 1, 2)], [2, 1]),
        ([DAY], [MICRO]),
        ([DAY.replace(tzinfo=None)], [MICRO]),
        (["2026-01-31T12:00:00", "2026-01-31T12:00:00Z"], [MICRO, MICRO]),
        (["2026-01-31 12:00:00.5", "2026-01-31T14:00:00+02:00"], [MICRO + 500_000, MICRO]),
        (["2026-01-31T12:00", "2026-01-31T14:00:00+02"], [MICRO, MICRO]),
        (["2026-01-31"], [MICRO - 12 * 3600 * 10**6]),
        (["2026-01-31", "31.1.2026", None], [MICRO - 12 * 3600 * 10**6, None, None]),
        (["1", "1e300"], [1.0, None]),
        ([2**63, 1], [None, 1]),  # more than 64 bits
        (["5", "soon", "inf", "nan"], [5.0, None, None, None]),
        (["2026-02-30"], [None]),
    ],
)
def test_times(values: list[Any], expected: list[int | float | None]) -> None:
    times = parse_times(pl.Series("when", values))
    assert times is not None
    assert times.name == "time"
    assert times.to_list() == expected
    if None not in expected:
        assert times.dtype == (pl.Float64 if isinstance(expected[0], float) else pl.Int64)


def test_times_are_shown_as_dates_in_the_unit_that_they_look_like() -> None:
    seconds = pl.Series([1_000_000_000, 1_700_000_000])
    dates = "times from {} (2001-09-09 01:46) to {} (2023-11-14 22:13), read as {}"
    for factor, unit in ((1, "seconds"), (10**3, "milliseconds"), (10**9, "nanoseconds")):
        times = seconds * factor
        assert range_notes(times) == [dates.format(times[0], times[1], unit)]
    assert range_notes(pl.Series([1.5, 7.25])) == ["times from 1.5 to 7.25"]
    assert range_notes(pl.Series([-(2**62), 1_700_000_000]))[0].endswith(
        "(no date) to 1700000000 (2023-11-14 22:13), read as seconds"
    )


def test_seconds_among_milliseconds() -> None:
    times = pl.Series([1_700_000_000, 1_700_000_001_000, 1_700_000_002_000])
    assert range_notes(times) == [
        "times from 1700000000 to 1700000002000",
        "warning: times of several units, read as dates 1 as seconds and 2 as milliseconds: "
        "give one unit",
    ]


def test_times_with_and_without_an_offset() -> None:
    texts = ["2026-01-31", "2026-01-31T12:00:00Z", "2026-01-31 12:00:00-05", "2026-01-31T12:00"]
    warning = "warning: times without an offset among others, read as UTC: 2"
    assert zone_notes(pl.Series(texts)) == [warning]
    for alike in (texts[::3], texts[1:3], ["5", "7"], [5, 7]):
        assert zone_notes(pl.Series(alike)) == []
