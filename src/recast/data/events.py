"""Which events stay and in which order: frames with `user`, `item`, `time` in and out."""

from __future__ import annotations

import polars as pl
import torch

from recast.draws import uniforms


def k_core(events: pl.DataFrame, k: int) -> pl.DataFrame:
    """Drop users and items with fewer than `k` events until none is left to drop."""
    while True:
        before = len(events)
        for column in ("user", "item"):
            enough = events.group_by(column).len().filter(pl.col("len") >= k)
            events = events.join(enough, on=column, how="semi")
        if len(events) == before:
            return events


def pairs(events: pl.DataFrame) -> pl.Series:
    """User and item, numbers below 2**31, as one number."""
    return events.select(pl.col("user").cast(pl.Int64) * 2**31 + pl.col("item")).to_series()


def first_events(events: pl.DataFrame) -> pl.DataFrame:
    """Each user's first event with each item; repeats go."""
    return events.group_by("user", "item").agg(pl.col("time").min())


def sorted_ids(ids: pl.Series) -> pl.Series:
    """Distinct ids, by number if every one is an integer, by text otherwise.

    >>> sorted_ids(pl.Series(["10", "9", "9"])).to_list()
    ['9', '10']
    """
    ids = ids.unique()
    numbers = ids.cast(pl.Int64, strict=False)
    if numbers.null_count():
        return ids.sort()
    return ids.to_frame("id").sort(numbers.alias("number"), "id")["id"]


def index_events(events: pl.DataFrame, users: pl.Series, items: pl.Series) -> pl.DataFrame:
    """Ids replaced by their position in `users` and `items` (Int32)."""
    for name, ids in (("user", users), ("item", items)):
        table = ids.alias(name).to_frame().with_row_index("index")
        events = events.join(table, on=name, how="inner").drop(name).rename({"index": name})
    return events.select(pl.col("user", "item").cast(pl.Int32), "time")


def order_events(events: pl.DataFrame, seed: int) -> pl.DataFrame:
    """By user, then by time; a user's events of one time in a seeded random order.

    The draw belongs to an event's place in the order (user, time, item), so that the order of the
    file has no influence.
    """
    events = events.sort("user", "time", "item")
    draw = uniforms(seed, 0, torch.arange(len(events)), "event order", 1)[:, 0]
    events = events.with_columns(pl.Series("draw", draw.numpy()))
    return events.sort("user", "time", "draw", maintain_order=True).drop("draw")


def count_ties(events: pl.DataFrame) -> int:
    """Events that share user and time with another; `events` in order."""
    same = pl.all_horizontal(pl.col(c) == pl.col(c).shift() for c in ("user", "time"))
    is_tied = (same | same.shift(-1)).fill_null(value=False)
    return int(events.select(is_tied.sum()).item())
