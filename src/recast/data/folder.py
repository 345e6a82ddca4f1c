"""The data folder: what `recast prepare` made, written whole or not at all, and read back.

`interactions.parquet` (user and item index, time, split; sorted as `Interactions`),
`users.parquet` and `items.parquet` (ids by index, item text), `data.json` (source, hashes,
counts, cuts), `config.yaml`. What was changed since is found by the hashes in `data.json`, its own
among them; folders without them, of earlier releases, are read as well.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from torch import Tensor

from recast.config import PrepareConfig
from recast.config.check import as_path
from recast.data.events import pairs
from recast.data.parquet import check_parquet, read_parquet
from recast.data.row_facts import described
from recast.data.split import SPLIT_NAMES
from recast.run.doors import require_kind
from recast.run.files import staged_folder
from recast.run.fingerprint import check_seal, check_stamp, seal, sha256_of
from recast.run.reading import read_json, reading
from recast.types import SPLITS, Interactions, RecastError

EVENTS, ROWS = "interactions.parquet", "rows.parquet"
"""Of a data folder: one of the two."""
REMEDY = "make it again with `recast prepare`"
_LARGEST_FACTS = 2**20
"""Bytes of `data.json`; it has about 2,000."""


def save_data(
    config: PrepareConfig,
    events: pl.DataFrame,
    users: pl.DataFrame,
    items: pl.DataFrame,
    facts: dict[str, Any],
) -> None:
    """Write the folder `config.output`; `events` has `user`, `item`, `time`, `split`."""
    with staged_folder(config.output) as stage:
        events.write_parquet(stage / EVENTS)
        users.write_parquet(stage / "users.parquet")
        items.write_parquet(stage / "items.parquet")
        save_facts(config, stage, facts)


def save_facts(config: PrepareConfig, folder: Path, facts: dict[str, Any]) -> None:
    """Write `data.json`, with the sizes and hashes of the tables that are there, and the config."""
    facts = seal(facts, folder, *sorted(file.name for file in folder.glob("*.parquet")))
    (folder / "data.json").write_text(json.dumps(facts, indent=2) + "\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))


def load_data(folder: str | Path) -> Interactions:
    """The events of a data folder; times that are not whole are replaced by their rank.

    Raises `RecastError` when the folder is not whole or its files do not fit each other.
    """
    folder = as_path("data", folder)
    facts = load_facts(folder)
    if facts.get("kind") == "rows":
        raise RecastError(
            f"{folder} holds rows, no events: give a data folder of `recast prepare --interactions`"
        )
    with reading(folder, REMEDY):
        return _interactions(Path(folder), facts)


def _interactions(folder: Path, facts: dict[str, Any]) -> Interactions:
    check_parquet(folder / "users.parquet", facts)
    check_parquet(folder / "items.parquet", facts)
    events = _table(folder / EVENTS, facts, ("user", "item", "time", "split"))
    if len(events) != facts["events"]:
        raise RecastError(
            f"{folder} holds {len(events)} events, data.json says {facts['events']}: {REMEDY}"
        )
    for name, count in (("user", facts["users"]), ("item", facts["items"])):
        num_ids = pl.scan_parquet((folder / f"{name}s.parquet").absolute(), glob=False)
        if type(count) is not int or count != num_ids.select(pl.len()).collect().item():
            raise ValueError(f"{name}s.parquet does not hold {count!r} {name}s")
        if not (events[name].dtype.is_integer() and events[name].is_between(0, count - 1).all()):
            raise ValueError(f"column {name!r} is not all numbers from 0 to {count - 1}")
    if events["split"].dtype != pl.Enum(SPLITS):
        raise ValueError(f"column 'split' holds {events['split'].dtype}")
    times = events["time"]
    if not (times.dtype.is_integer() or times.dtype == pl.Float64):
        raise ValueError(f"column 'time' holds {times.dtype}")
    _check_order(events, facts)
    if times.dtype == pl.Float64:
        times = times.rank("dense").cast(pl.Int64) - 1
    users = to_tensor(events["user"])
    return Interactions(
        users=users,
        items=to_tensor(events["item"]),
        times=to_tensor(times),
        starts=torch.searchsorted(users, users),
        splits=to_tensor(events["split"].to_physical()),
        num_users=facts["users"],
        num_items=facts["items"],
        exclude_seen=facts["exclude_seen"],
        split_name=facts["split_name"],
    )


def _check_order(events: pl.DataFrame, facts: dict[str, Any]) -> None:
    """Users one after the other, each forwards in time and in splits; nobody's seen item again."""
    if not events["user"].is_sorted():
        raise ValueError("column 'user' is not sorted")
    same_user = np.diff(events["user"].to_numpy()) == 0
    for name in ("time", "split"):
        values = events[name].to_physical().to_numpy()
        if (same_user & (values[1:] < values[:-1])).any():
            raise ValueError(f"column {name!r} goes backwards within a user")
    if facts["split_name"] == SPLIT_NAMES["global_time"]:
        spans = events.group_by("split").agg(first=pl.col("time").min(), last=pl.col("time").max())
        spans = spans.sort("split")
        if not (spans["first"][1:] > spans["last"][:-1]).all():
            raise ValueError("the splits overlap in time")
    if type(facts["exclude_seen"]) is not bool:
        raise ValueError(f"exclude_seen is {facts['exclude_seen']!r}")
    if facts["exclude_seen"] and pairs(events).n_unique() < len(events):
        raise ValueError("a user's item repeats, though seen items are no candidates")


def load_items(folder: str | Path) -> pl.DataFrame:
    """`item_id` and `text` of every item, by item index."""
    facts = load_facts(folder)
    with reading(folder, REMEDY):
        items = _table(Path(folder) / "items.parquet", facts, ("item_id", "text"))
        if items.schema != {"item_id": pl.String, "text": pl.String}:
            raise ValueError(f"items.parquet holds {dict(items.schema)}")
        if len(items) != facts["items"]:
            raise ValueError(f"{len(items)} items, data.json says {facts['items']}")
    return items


def load_categories(folder: str | Path) -> list[str]:
    """Of every item, by item index, "" where it has none; empty where the folder knows none."""
    facts = load_facts(folder)
    with reading(folder, REMEDY):
        table = read_parquet(Path(folder) / "items.parquet", facts)
        if "category" not in table.columns:
            return []
        column = table["category"]
        if column.dtype != pl.String or column.null_count() or len(column) != facts["items"]:
            raise ValueError(f"items.parquet holds {len(table)} rows of {dict(table.schema)}")
        found: list[str] = column.to_list()
    return found


def load_facts(folder: str | Path) -> dict[str, Any]:
    """`data.json`; raises `RecastError` unless the folder is whole."""
    folder = as_path("data", folder)
    require_kind("data", folder)
    with reading(Path(folder) / "data.json", REMEDY):
        facts: dict[str, Any] = read_json(Path(folder) / "data.json", dict, _LARGEST_FACTS)
        check_seal(facts)
    return facts


def data_hash(folder: str | Path) -> str:
    """Sha256 of the events or rows, for the record of a run that used them."""
    facts = load_facts(folder)
    file = Path(folder) / (ROWS if facts.get("kind") == "rows" else EVENTS)
    with reading(folder, REMEDY):
        return check_stamp(file, facts) or sha256_of(file)


def describe(folder: str | Path) -> str:
    """What a data folder holds, one fact per line, for the screen."""
    facts = load_facts(folder)
    with reading(Path(folder) / "data.json", REMEDY):
        return "\n".join(described(facts)) if facts.get("kind") == "rows" else _described(facts)


def _described(facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['source']}: {facts['events']:,} events, {facts['users']:,} users, "
        f"{facts['items']:,} items",
        f"split {facts['split_name']} at {facts['cuts']['valid']} and {facts['cuts']['test']}; "
        f"rl from {facts['cuts']['rl']}",
    ]
    for name in SPLITS:
        part = facts["splits"][name]
        lines.append(
            f"{name}: {part['events']:,} events, {part['rows']:,} rows with a history, "
            f"{part['users']:,} users"
        )
    lines[-1] += f" ({facts['new_test_users']:,} of the test users are new)"
    excluded = "no candidates" if facts["exclude_seen"] else "candidates like any other"
    repeats = facts.get("repeats", facts["dropped_repeats"])
    lines.append(
        f"items of a user's own history are {excluded} (exclude_seen); "
        f"events that repeat an item of their user: {repeats:,}"
    )
    lines += facts.get("notes", [])
    if ties := facts.get("ties", 0):
        most = "warning: " if ties > facts["events"] / 2 else ""
        lines.append(f"{most}events that share user and time, in random order: {ties:,}")
    if copies := facts.get("copies", 0):
        done = "dropped" if facts["dropped_copies"] else "kept"
        lines.append(f"duplicate events (same user, item and time), {done}: {copies:,}")
    for key, words in (
        ("dropped_repeats", "repeats of a user's item, dropped"),
        ("dropped_k_core", "events dropped by the k-core filter"),
        ("users_below_k_core", "warning: users of fewer different items than k_core"),
        ("items_without_row", "warning: items of the events without a row in the items file"),
        ("empty_texts", "warning: items without text"),
    ):
        if facts.get(key):
            lines.append(f"{words}: {facts[key]:,}")
    return "\n".join(lines)


def _table(file: Path, facts: dict[str, Any], columns: tuple[str, ...]) -> pl.DataFrame:
    table = read_parquet(file, facts).select(columns)
    for column in table:
        if column.null_count():
            raise ValueError(f"{file.name}, row {column.is_null().arg_max()} has no {column.name}")
    return table


def to_tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.cast(pl.Int64).to_numpy(writable=True))
