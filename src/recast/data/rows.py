"""Rows of a data folder: prompts and their targets as somebody else wrote them, whole or not there.

`rows.parquet` stands in place of `interactions.parquet`: `user`, `split`, `task`, `time`, `prompt`,
`is_chat`, and lists of item indices `history`, `targets`, `seen`. Names of tasks, domains and the
split are in `data.json` (`"kind": "rows"`), which `folder` reads and checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recast.config.check import as_path
from recast.data.folder import REMEDY, ROWS, load_facts, to_tensor
from recast.data.parquet import check_parquet, read_parquet
from recast.data.row_tables import BATCH_SCHEMA
from recast.run.reading import reading
from recast.types import SPLITS, RecastError

SCHEMA = pl.Schema({**BATCH_SCHEMA, "user": pl.Int32(), "split": pl.Enum(SPLITS)})
"""Of `rows.parquet`. `time` is null in all rows or in none; a row without a `prompt` has a
`history`, and no other row has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ragged:
    """Lists of item indices of any length, one per row.

    Example, the lists [5, 7], [] and [5]: `offsets=[0, 2, 2, 3]  values=[5, 7, 5]`.
    """

    offsets: Int[Tensor, " M"]
    """N + 1 of them: list n is `values[offsets[n]:offsets[n + 1]]`."""
    values: Int[Tensor, " K"]

    @property
    def lengths(self) -> Int[Tensor, " N"]:
        return self.offsets.diff()

    def take(self, rows: Int[Tensor, " B"], last: int | None = None) -> Int[Tensor, "B H"]:
        """The lists of these rows, right-padded with -1; of longer ones the `last` items.

        >>> lists = Ragged(offsets=torch.tensor([0, 2, 2, 3]), values=torch.tensor([5, 7, 5]))
        >>> lists.take(torch.tensor([2, 0, 1])).tolist()
        [[5, -1], [5, 7], [-1, -1]]
        >>> lists.take(torch.tensor([0]), last=1).tolist()
        [[7]]
        """
        length = self.lengths[rows]
        if last is not None:
            length = length.clamp(max=last)
        width = int(length.max()) if len(rows) else 0
        column = torch.arange(width)
        inside = column < length[:, None]
        places = (self.offsets[rows + 1] - length)[:, None] + column
        padded = self.values.new_full((len(rows), width), -1)
        padded[inside] = self.values[places[inside]]
        return padded


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """N rows; a row's number is its id. Items are numbers below `num_items`, in reading order.

    Example, one row of user 0 that asks for item 7, after item 5, of the only task:
    `users=[0]  splits=[0]  tasks=[0]  prompts=[None]  is_chat=[False]`
    `history=[[5]]  targets=[[7]]  seen=[[]]` (the three as `Ragged`).
    """

    users: Int[Tensor, " N"]
    splits: Int[Tensor, " N"]
    tasks: Int[Tensor, " N"]
    """Index into `task_names`."""
    times: Int[Tensor, " N"] | None
    prompts: pl.Series
    """Messages as JSON (a list of {"role", "content"} whose contents are texts, without the
    answer) where `is_chat`, else a text that is read as it is; null where `history` is the
    prompt."""
    is_chat: Bool[Tensor, " N"]
    history: Ragged
    """Oldest first; empty where there is a prompt."""
    targets: Ragged
    """At least one, none twice."""
    seen: Ragged
    """Items that are no candidates of the row; all empty unless `exclude_seen`."""
    task_names: tuple[str, ...]
    task_domains: Int[Tensor, " M"]
    """Of each task the domain of its items, an index into `domains`."""
    domains: tuple[str, ...]
    num_users: int
    num_items: int
    exclude_seen: bool
    split_name: str
    """How the rows were split, in words; printed above every table."""

    def rows(self, split: str, task: int | None = None) -> Int[Tensor, " N"]:
        """Row ids of a split (and of a task), in the order of the file."""
        chosen = self.splits == SPLITS.index(split)
        return (chosen if task is None else chosen & (self.tasks == task)).nonzero()[:, 0]


def has_rows(folder: str | Path) -> bool:
    """Whether a data folder holds rows, no events. Raises `RecastError` unless it is whole."""
    return load_facts(folder).get("kind") == "rows"


def load_rows(folder: str | Path) -> Rows:
    """Raises `RecastError` when the folder holds no rows, is not whole or contradicts itself."""
    folder = as_path("data", folder)
    facts = load_facts(folder)
    if facts.get("kind") != "rows":
        raise RecastError(f"{folder} holds events, no rows: make them with `recast prepare --rows`")
    with reading(folder, REMEDY):
        return _load(Path(folder), facts)


def _load(folder: Path, facts: Mapping[str, Any]) -> Rows:
    check_parquet(folder / "users.parquet", facts)
    check_parquet(folder / "items.parquet", facts)
    frame = read_parquet(folder / ROWS, facts)
    if frame.schema != SCHEMA:
        raise ValueError(f"{ROWS} holds {dict(frame.schema)}")
    _check(frame, facts)
    return Rows(
        users=to_tensor(frame["user"]),
        splits=to_tensor(frame["split"].to_physical()),
        tasks=to_tensor(frame["task"]),
        times=None if frame["time"].null_count() else to_tensor(frame["time"]),
        prompts=frame["prompt"],
        is_chat=torch.from_numpy(frame["is_chat"].to_numpy(writable=True)),
        history=_ragged(frame["history"]),
        targets=_ragged(frame["targets"]),
        seen=_ragged(frame["seen"]),
        task_names=tuple(facts["tasks"]),
        task_domains=torch.tensor([facts["domains"].index(d) for d in facts["tasks"].values()]),
        domains=tuple(facts["domains"]),
        num_users=facts["users"],
        num_items=facts["items"],
        exclude_seen=facts["exclude_seen"],
        split_name=facts["split_name"],
    )


def _check(frame: pl.DataFrame, facts: Mapping[str, Any]) -> None:
    if len(frame) != facts["rows"]:
        raise ValueError(f"{ROWS} holds {len(frame)} rows, data.json says {facts['rows']}")
    for name in ("user", "split", "task", "is_chat", "history", "targets", "seen"):
        if frame[name].null_count():
            raise ValueError(f"{ROWS}, row {frame[name].is_null().arg_max()} has no {name}")
    limits = {"user": facts["users"], "task": len(facts["tasks"])}
    limits |= dict.fromkeys(("history", "targets", "seen"), facts["items"])
    for name, count in limits.items():
        values = frame[name].explode().drop_nulls() if name not in ("user", "task") else frame[name]
        if not values.is_between(0, count - 1).all():
            raise ValueError(f"column {name!r} is not all numbers from 0 to {count - 1}")
    if frame["time"].null_count() not in (0, len(frame)):
        raise ValueError("column 'time' has a value in some rows alone")
    if not (frame["targets"].list.len() > 0).all():
        raise ValueError("a row has no target")


def _ragged(lists: pl.Series) -> Ragged:
    ends = lists.list.len().cum_sum()
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), to_tensor(ends)])
    return Ragged(offsets=offsets, values=to_tensor(lists.explode().drop_nulls()))
