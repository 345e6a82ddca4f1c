"""What is known of the rows of a data folder: the written file in, counts for `data.json` out, and
from there lines for the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from recast.config import PrepareConfig
from recast.data.row_tables import RowTables
from recast.types import SPLITS, RecastError


def count_rows(
    file: Path, tables: RowTables, config: PrepareConfig, num_users: int
) -> dict[str, Any]:
    """Rows by task and split. Raises `RecastError` for a task, and for a split that was asked for,
    without one, and for a single user."""
    targets = pl.col("targets").list.len()
    table = (
        pl.scan_parquet(file, glob=False)
        .group_by("task", "split")
        .agg(
            rows=pl.len(),
            users=pl.col("user").n_unique(),
            fewest=targets.min(),
            mean=targets.mean(),
            most=targets.max(),
            without_time=pl.col("time").null_count(),
        )
        .collect()
    )
    counts: dict[str, dict[str, Any]] = {}
    dropped = "; ".join(f"{what}: {count:,}" for what, count in (+tables.dropped).items())
    because = f" (dropped: {dropped})" if dropped else ""
    for number, task in enumerate(tables.tasks):
        parts = table.filter(pl.col("task") == number).sort("split")
        if parts.is_empty():
            raise RecastError(
                f"{config.rows}: the task {task!r} has no row{because}: mend its rows or leave "
                "the task out"
            )
        counts[task] = {
            row["split"]: {
                "rows": row["rows"],
                "users": row["users"],
                "targets": [row["fewest"], round(row["mean"], 2), row["most"]],
            }
            for row in parts.iter_rows(named=True)
        }
    num_rows, num_without = int(table["rows"].sum()), int(table["without_time"].sum())
    if num_without not in (0, num_rows):
        raise RecastError(
            f"{config.rows} has times in {num_rows - num_without:,} of {num_rows:,} rows: give "
            "all files the column, or set time to row_order to read none"
        )
    if num_users < 2:
        raise RecastError(f"{config.rows} holds rows of one user: give rows of two or more")
    has_train = any("train" in parts for parts in counts.values())
    for setting, split in (("valid_frac", "valid"), ("rl_frac", "rl")):
        if getattr(config, setting) and not any(split in parts for parts in counts.values()):
            raise RecastError(
                f"{setting} is {getattr(config, setting)}: the split {split!r} gets none of the "
                "users, give a larger one, more users, or 0 for none"
            )
        if getattr(config, setting) and "train" in tables.splits and not has_train:
            raise RecastError(
                f"{setting} is {getattr(config, setting)}: it leaves no train rows, give a smaller "
                "one or more users"
            )
    return {"rows": num_rows, "parts": counts}


def count_items(items: pl.DataFrame) -> dict[str, dict[str, int]]:
    """By domain: items, those with a text, those with a SID, and those that share theirs."""
    table = items.group_by("domain", maintain_order=True).agg(
        items=pl.len(),
        texts=(pl.col("text") != "").sum(),
        sids=pl.col("sid").count(),
        shared=pl.col("sid").drop_nulls().is_duplicated().sum(),
    )
    return {row.pop("domain"): row for row in table.iter_rows(named=True)}


def described(facts: dict[str, Any]) -> Iterator[str]:
    """What a data folder of rows holds, one fact per line."""
    yield (
        f"{facts['source']}: {facts['found']}: {facts['rows']:,} rows, {facts['users']:,} users, "
        f"{facts['items']:,} items"
    )
    yield f"split {facts['split_name']}"
    for task, parts in facts["parts"].items():
        for split in SPLITS:
            if split in parts:
                part = parts[split]
                fewest, mean, most = part["targets"]
                spread = (
                    f"{fewest}" if fewest == most else f"{fewest} to {most}, {mean:g} on average"
                )
                yield (
                    f"{task}, {split}: {part['rows']:,} rows, {part['users']:,} users, targets a "
                    f"row: {spread}"
                )
    for domain, items in facts["item_counts"].items():
        yield (
            f"items ({domain}): {items['items']:,}, with text {items['texts']:,}, with a SID "
            f"{items['sids']:,}, sharing one {items['shared']:,}"
        )
    excluded = "no candidates" if facts["exclude_seen"] else "candidates like any other"
    yield f"items that a row has seen are {excluded} (exclude_seen)"
    yield from facts["notes"]
    for what, count in facts["dropped"].items():
        yield f"dropped, {what}: {count:,}"
