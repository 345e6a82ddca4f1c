"""The data folder: what `recast prepare` made, written whole or not at all, and read back.

`interactions.parquet` (user and item index, time, split; sorted as `Interactions`),
`users.parquet` and `items.parquet` (ids by index, item text), `data.json` (source, hashes,
counts, cuts), `config.yaml`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import torch
import yaml
from torch import Tensor

from recast.config import PrepareConfig
from recast.config.check import as_path
from recast.run.files import kind_of, reading, staged_folder
from recast.types import SPLITS, Interactions, RecastError

_FILES = ("interactions.parquet", "users.parquet", "items.parquet", "data.json")
_REMEDY = "make it again with `recast prepare`"


def save_data(
    config: PrepareConfig,
    events: pl.DataFrame,
    users: pl.DataFrame,
    items: pl.DataFrame,
    facts: dict[str, Any],
) -> None:
    """Write the folder `config.output`; `events` has `user`, `item`, `time`, `split`."""
    with staged_folder(config.output) as stage:
        events.write_parquet(stage / "interactions.parquet")
        users.write_parquet(stage / "users.parquet")
        items.write_parquet(stage / "items.parquet")
        (stage / "data.json").write_text(json.dumps(facts, indent=2) + "\n")
        (stage / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))


def load_data(folder: str | Path) -> Interactions:
    """The events of a data folder; times that are not whole are replaced by their rank.

    Raises `RecastError` when the folder is not whole or its files do not fit each other.
    """
    folder = as_path("data", folder)
    facts = load_facts(folder)
    with reading(folder, _REMEDY):
        return _interactions(Path(folder), facts)


def _interactions(folder: Path, facts: dict[str, Any]) -> Interactions:
    events = _table(folder / "interactions.parquet")
    if len(events) != facts["events"]:
        raise RecastError(
            f"{folder} holds {len(events)} events, data.json says {facts['events']}: {_REMEDY}"
        )
    for name, count in (("user", facts["users"]), ("item", facts["items"])):
        if not (events[name].dtype.is_integer() and events[name].is_between(0, count - 1).all()):
            raise ValueError(f"column {name!r} is not all numbers from 0 to {count - 1}")
    if not events["user"].is_sorted():
        raise ValueError("column 'user' is not sorted")
    if events["split"].dtype != pl.Enum(SPLITS):
        raise ValueError(f"column 'split' holds {events['split'].dtype}")
    times = events["time"]
    if times.dtype == pl.Float64:
        times = times.rank("dense").cast(pl.Int64) - 1
    users = _tensor(events["user"])
    return Interactions(
        users=users,
        items=_tensor(events["item"]),
        times=_tensor(times),
        starts=torch.searchsorted(users, users),
        splits=_tensor(events["split"].to_physical()),
        num_users=facts["users"],
        num_items=facts["items"],
        exclude_seen=facts["exclude_seen"],
        split_name=facts["split_name"],
    )


def load_items(folder: str | Path) -> pl.DataFrame:
    """`item_id` and `text` of every item, by item index."""
    facts = load_facts(folder)
    with reading(folder, _REMEDY):
        items = _table(Path(folder) / "items.parquet").select("item_id", "text")
        if items.schema != {"item_id": pl.String, "text": pl.String}:
            raise ValueError(f"items.parquet holds {dict(items.schema)}")
        if len(items) != facts["items"]:
            raise ValueError(f"{len(items)} items, data.json says {facts['items']}")
    return items


def load_facts(folder: str | Path) -> dict[str, Any]:
    """`data.json`; raises `RecastError` unless the folder is whole."""
    folder = as_path("data", folder)
    for name in _FILES:
        if not (Path(folder) / name).is_file():
            raise RecastError(
                f"{folder}{kind_of(folder)} is no data folder (no {name}): make one with "
                "`recast prepare`"
            )
    with reading(Path(folder) / "data.json", _REMEDY):
        facts = json.loads((Path(folder) / "data.json").read_text())
        if not isinstance(facts, dict):
            raise ValueError("no JSON object")
    return facts


def data_hash(folder: str | Path) -> str:
    """Sha256 of the events, for the record of a run that used them."""
    load_facts(folder)
    with (Path(folder) / "interactions.parquet").open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe(folder: str | Path) -> str:
    """What a data folder holds, one fact per line, for the screen."""
    facts = load_facts(folder)
    with reading(Path(folder) / "data.json", _REMEDY):
        return _described(facts)


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
    lines.append(f"items of a user's own history are {excluded}")
    for key, words in (
        ("dropped_repeats", "repeats of a user's item, dropped"),
        ("dropped_k_core", "events dropped by the k-core filter"),
        ("items_without_row", "warning: items of the events without a row in the items file"),
        ("empty_texts", "warning: items without text"),
    ):
        if facts[key]:
            lines.append(f"{words}: {facts[key]:,}")
    return "\n".join(lines)


def _table(file: Path) -> pl.DataFrame:
    table = pl.read_parquet(file.absolute(), glob=False)
    for column in table:
        if column.null_count():
            raise ValueError(f"{file.name}, row {column.is_null().arg_max()} has no {column.name}")
    return table


def _tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.cast(pl.Int64).to_numpy(writable=True))
