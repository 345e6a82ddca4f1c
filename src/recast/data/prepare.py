"""`recast prepare`: a config in, a data folder (and its `Interactions`) out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recast.config import PrepareConfig
from recast.config.check import refuse_set
from recast.data.archive import is_folder, unpacked
from recast.data.events import (
    count_ties,
    first_events,
    index_events,
    k_core,
    order_events,
    pairs,
    sorted_ids,
)
from recast.data.folder import load_data, save_data
from recast.data.formats import find_format
from recast.data.movielens import read_packaged, read_zip
from recast.data.prepare_rows import prepare_rows
from recast.data.rows import Rows
from recast.data.split import RL_FRAC, SPLIT_NAMES, leave_one_out, split_events
from recast.data.tables import Tables, read_tables
from recast.run.doors import enter
from recast.run.fingerprint import sha256_of
from recast.types import SPLITS, Interactions, RecastError, one_line, require


def prepare(config: PrepareConfig) -> Interactions | Rows:
    """Read, filter, order and split the events, or take rows as they are; write `config.output` and
    load it.

    The catalogue is every item of the items file and of the events; above k_core 1 it is what the
    filter left. Raises `RecastError` for bad input, before anything is written.
    """
    enter(config, PrepareConfig)
    return _prepare(config) if config.rows is None else prepare_rows(config)


def _prepare(config: PrepareConfig) -> Interactions:
    raw, texts, files, notes = _read(config)
    users = sorted_ids(raw["user"])
    item_ids = sorted_ids(pl.concat([raw["item"], texts["item_id"]]))
    events = index_events(raw, users, item_ids)
    num_copies = len(raw) - len(distinct := events.unique())
    events = events if config.keep_copies else distinct
    num_kept = len(events)
    num_repeats = num_kept - pairs(events).n_unique()
    exclude_seen = config.exclude_seen
    if exclude_seen is None:
        exclude_seen = num_repeats == 0
    if exclude_seen:
        events = first_events(events)
    num_distinct = len(events)
    if config.k_core > 1:
        events = k_core(events, config.k_core)
        names = [users.gather(events["user"]), item_ids.gather(events["item"])]
        users, item_ids = map(sorted_ids, names)
        events = pl.DataFrame([names[0].alias("user"), names[1].alias("item"), events["time"]])
        events = index_events(events, users, item_ids)
    _require_two(users, "user", config)
    _require_two(item_ids, "item", config)
    items = item_ids.alias("item_id").to_frame()
    without_row = len(items.join(texts, on="item_id", how="anti")) if len(texts) else 0
    items = items.join(texts, on="item_id", how="left", maintain_order="left")
    items = items.with_columns(pl.col(pl.String).fill_null(""))

    events = order_events(events, config.seed)
    if config.split == "global_time":
        rl_frac = config.rl_frac or RL_FRAC
        splits, cuts = split_events(events["time"].to_numpy(), rl_frac)
        config = replace(config, rl_frac=rl_frac)
    else:
        splits, cuts = leave_one_out(events["user"].to_numpy())
    starts = np.searchsorted(events["user"].to_numpy(), events["user"].to_numpy())
    facts: dict[str, Any] = {
        "source": config.interactions,
        "sha256": [sha256_of(file) for file in files],
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
        "notes": notes,
        "ties": count_ties(events),
        "copies": num_copies,
        "dropped_copies": len(raw) - num_kept,
        "repeats": num_repeats,
        "users_below_k_core": _count_below(events, config.k_core),
        "dropped_repeats": num_kept - num_distinct,
        "dropped_k_core": num_distinct - len(events),
    }
    events = events.with_columns(split=pl.Series(splits).cast(pl.UInt8).cat.to(pl.Enum(SPLITS)))
    save_data(config, events, users.alias("user_id").to_frame(), items, facts)
    return load_data(config.output)


def _count_below(events: pl.DataFrame, k: int) -> int:
    """Users of fewer than `k` different items: the filter counts events."""
    return int((events.group_by("user").agg(pl.col("item").n_unique())["item"] < k).sum())


def _require_two(ids: pl.Series, kind: str, config: PrepareConfig) -> None:
    if len(ids) < 2:
        which = f"the one {kind} {ids[0]!r}" if len(ids) else f"no {kind}"
        lower = f" after the filter k_core {config.k_core}" if config.k_core > 1 else ""
        remedy = "give a lower k_core" if lower else f"give events of two {kind}s or more"
        raise RecastError(f"{config.interactions} holds {which}{lower}: {remedy}")


def _read(config: PrepareConfig) -> Tables:
    """The tables of a data set of the field, or of files whose columns the settings name."""
    source = config.interactions
    if source == "movielens-100k":
        _refuse_columns(config, takes_items=False)
        return read_packaged()
    if source.lower().endswith(".zip"):
        if not is_folder(source):
            _refuse_columns(config, takes_items=False)
            return read_zip(source)
        with unpacked(source) as folder:
            return _read_format(config, folder)._replace(files=[Path(source)])
    return _read_format(config, Path(source))


def _read_format(config: PrepareConfig, source: Path) -> Tables:
    found = find_format(source, config.items)
    if found is None:
        return read_tables(config)
    _refuse_columns(config, takes_items=found.takes_items)
    remedy = f"{found.name} has no times that two users share: set it to leave_one_out"
    require(found.has_times or config.split == "leave_one_out", "split", config.split, remedy)
    tables = found.read()
    if source.is_dir():
        read = {file.name for file in tables.files}
        others = sorted(f.name for f in source.iterdir() if f.is_file() and f.name not in read)
        if others := [name for name in others if not name.startswith(".")]:
            tables.notes.append(f"files beside them, not read: {one_line(', '.join(others), 200)}")
    return tables


def _refuse_columns(config: PrepareConfig, *, takes_items: bool) -> None:
    names = ("user", "item", "time", "items_id", "text", "category")
    remedy = f"{config.interactions} knows its own columns, leave it out"
    refuse_set(config, (*names, *(() if takes_items else ("items",))), remedy)


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
