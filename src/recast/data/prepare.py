"""`recast prepare`: a config in, a data folder (and its `Interactions`) out."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recast.config import PrepareConfig
from recast.config.check import refuse_ranks, take
from recast.data.events import first_events, index_events, k_core, order_events, sorted_ids
from recast.data.folder import load_data, save_data
from recast.data.movielens import read_packaged, read_zip
from recast.data.split import RL_FRAC, SPLIT_NAMES, leave_one_out, split_events
from recast.data.tables import read_tables
from recast.run.files import refuse_existing
from recast.types import SPLITS, Interactions, RecastError


def prepare(config: PrepareConfig) -> Interactions:
    """Read, filter, order and split the events; write `config.output` and load it.

    The catalogue is every item of the items file and of the events; above k_core 1 it is what the
    filter left. Raises `RecastError` for bad input, before anything is written.
    """
    take(config, PrepareConfig)
    refuse_ranks()
    refuse_existing(config.output)
    raw, texts, files = _read(config)
    events, exclude_seen = raw, config.exclude_seen
    if exclude_seen is None:
        exclude_seen = len(raw) == len(raw.select("user", "item").unique())
    if exclude_seen:
        events = first_events(events)
    num_distinct = len(events)
    if config.k_core > 1:
        events = k_core(events, config.k_core)
    users = sorted_ids(events["user"])
    _require_two(users, "user", config)
    with_events = events["item"].unique()
    ids = with_events if config.k_core > 1 else pl.concat([with_events, texts["item_id"]])
    items = sorted_ids(ids).alias("item_id").to_frame()
    _require_two(items["item_id"], "item", config)
    without_row = len(items.join(texts, on="item_id", how="anti")) if config.items else 0
    items = items.join(texts, on="item_id", how="left", maintain_order="left")
    items = items.with_columns(pl.col("text").fill_null(""))

    events = order_events(index_events(events, users, items["item_id"]), config.seed)
    if config.split == "global_time":
        rl_frac = config.rl_frac or RL_FRAC
        splits, cuts = split_events(events["time"].to_numpy(), rl_frac)
        config = replace(config, rl_frac=rl_frac)
    else:
        splits, cuts = leave_one_out(events["user"].to_numpy())
    starts = np.searchsorted(events["user"].to_numpy(), events["user"].to_numpy())
    facts: dict[str, Any] = {
        "source": config.interactions,
        "sha256": [_sha256(file) for file in files],
        "split_name": SPLIT_NAMES[config.split],
        "cuts": cuts._asdict(),
        "exclude_seen": exclude_seen,
        "seed": config.seed,
        "events": len(events),
        "users": len(users),
        "items": len(items),
        **_count_splits(events["user"].to_numpy(), splits, starts),
        "empty_texts": int((items["text"] == "").sum()),
        "items_without_row": without_row,
        "dropped_repeats": len(raw) - num_distinct,
        "dropped_k_core": num_distinct - len(events),
    }
    events = events.with_columns(split=pl.Series(splits).cast(pl.UInt8).cat.to(pl.Enum(SPLITS)))
    save_data(config, events, users.alias("user_id").to_frame(), items, facts)
    return load_data(config.output)


def _require_two(ids: pl.Series, kind: str, config: PrepareConfig) -> None:
    if len(ids) < 2:
        which = f"the one {kind} {ids[0]!r}" if len(ids) else f"no {kind}"
        lower = f" after the filter k_core {config.k_core}" if config.k_core > 1 else ""
        remedy = "give a lower k_core" if lower else f"give events of two {kind}s or more"
        raise RecastError(f"{config.interactions} holds {which}{lower}: {remedy}")


def _read(config: PrepareConfig) -> tuple[pl.DataFrame, pl.DataFrame, list[Path]]:
    source = config.interactions
    is_zip = source.lower().endswith(".zip")
    if source != "movielens-100k" and not is_zip:
        return read_tables(config)
    defaults = {f.name: f.default for f in fields(PrepareConfig)} | {"text": []}
    for name in ("user", "item", "time", "items", "text"):
        if (value := getattr(config, name)) != defaults[name]:
            raise RecastError(f"{name} is {value!r}: {source} knows its own columns, leave it out")
    return read_zip(source) if is_zip else read_packaged()


def _count_splits(users: np.ndarray, splits: np.ndarray, starts: np.ndarray) -> dict[str, Any]:
    """Events, rows (events with an earlier one) and the users of the rows, per split.

    Raises `RecastError` for a split without a row.
    """
    is_row = starts < np.arange(len(users))
    counts = {}
    for index, name in enumerate(SPLITS):
        chosen = splits == index
        counts[name] = {
            "events": int(chosen.sum()),
            "rows": int((chosen & is_row).sum()),
            "users": len(np.unique(users[chosen & is_row])),
        }
        if not counts[name]["rows"]:
            raise RecastError(
                f"the split {name!r} has {counts[name]['events']} events but none with an earlier "
                "event of the same user: give longer histories"
            )
    test = splits == SPLITS.index("test")
    new = np.setdiff1d(users[test], users[~test])
    return {"splits": counts, "new_test_users": len(new)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
