"""An evaluation on disk: ranks in, `rows.parquet` and `eval.json` out, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import Level
from recast.config.check import as_path
from recast.data.parquet import read_parquet
from recast.evaluation.facts import read_facts
from recast.evaluation.feasible import check_means
from recast.evaluation.metrics import LEVELS, row_metrics
from recast.evaluation.places import SHOWN
from recast.evaluation.ranks import Ranks, refuse_impossible
from recast.evaluation.resample import DRAWS, user_intervals
from recast.run.files import staged_folder
from recast.run.fingerprint import check_seal, seal
from recast.run.reading import kind_of, read_json, reading
from recast.types import Metrics, RecastError

_PLACES = ("sid_rank", "items_before", "num_sharing", "popular_rank", "sid_mask")


def write_evaluation(
    ranks: Ranks,
    folder: str | Path,
    settings: dict[str, Any],
    seed: int = 0,
    at: Sequence[int] = (),
    levels: Sequence[Level] = LEVELS,
    tasks: dict[str, Bool[Tensor, " N"]] | None = None,
) -> Metrics:
    """A new folder with `rows.parquet` (a line per row) and `eval.json`; returns the means, which
    of single targets are held to what ranks can give (`feasible.py`).

    `eval.json` holds `settings`, the facts, the rows and users, and every metric of `row_metrics`
    with its 95 % interval; the same of the rows of each of the `tasks`, whose means are returned
    under `TASK/` besides.
    """
    values = row_metrics(ranks, at, levels)
    parts = {
        name: _measured(
            {key: value[inside] for key, value in values.items()}, ranks.users[inside], seed
        )
        for name, inside in (tasks or {}).items()
    }
    whole = _measured(values, ranks.users, seed)
    if ranks.item_mask.shape[1] == 1:
        check_means({name: metric["value"] for name, metric in whole["metrics"].items()})
    content = settings | {
        "facts": asdict(ranks.facts),
        "rows": whole["rows"],
        "users": whole["users"],
        "resampled": "users",
        "draws": DRAWS,
        "seed": seed,
        "coverage": _coverage(ranks),
        "metrics": whole["metrics"],
    }
    if parts:
        content["tasks"] = parts
    with staged_folder(folder) as stage:
        _to_table(ranks).write_parquet(stage / "rows.parquet")
        content = seal(content, stage, "rows.parquet")
        (stage / "eval.json").write_text(json.dumps(content, indent=2) + "\n")
    named = {"": whole} | {f"{name}/": part for name, part in parts.items()}
    return {
        f"{prefix}{name}": metric["value"]
        for prefix, part in named.items()
        for name, metric in part["metrics"].items()
    }


def _measured(
    values: dict[str, Float[Tensor, " N"]], users: Int[Tensor, " N"], seed: int
) -> dict[str, Any]:
    """Rows, users, and the mean of every metric with its 95 % interval."""
    table = torch.stack(list(values.values()), 1).numpy()
    mean, low, high = user_intervals(table, users.numpy(), seed=seed)
    metrics = {
        name: {"value": float(mean[i]), "low": float(low[i]), "high": float(high[i])}
        for i, name in enumerate(values)
    }
    return {"rows": len(users), "users": len(users.unique()), "metrics": metrics}


def _coverage(ranks: Ranks) -> dict[str, Any] | None:
    if ranks.num_shown is None:
        return None
    every = ranks.facts.num_candidates
    share = ranks.num_shown / every if every else None
    return {"first": SHOWN, "items": ranks.num_shown, "of": every, "share": share}


def _to_table(ranks: Ranks) -> pl.DataFrame:
    """A number per target: as it is where T is 1, in lists without padding where it is more."""
    columns: dict[str, Any] = {"row_id": ranks.row_ids.numpy(), "user": ranks.users.numpy()}
    counts = ranks.item_mask.sum(1).tolist()
    for name in _PLACES:
        values = getattr(ranks, name)
        if values is None or (name == "sid_mask" and set(counts) <= {1}):
            continue
        if set(counts) <= {1}:
            columns[name] = values[:, 0].numpy()
        else:
            rows = zip(values.long().tolist(), counts, strict=True)
            columns[name] = pl.Series([row[:n] for row, n in rows], dtype=pl.List(pl.Int64))
    return pl.DataFrame(columns)


def read_ranks(folder: str | Path) -> Ranks:
    """The ranks in a folder that `write_evaluation` wrote, of earlier releases too; `RecastError`
    when it is damaged."""
    remedy = "make it again with `recast evaluate`"
    folder = Path(as_path("folder", folder))
    if not (folder / "eval.json").is_file():
        raise RecastError(f"{folder}{kind_of(folder)} is no evaluation (no eval.json): {remedy}")
    with reading(folder / "eval.json", remedy):
        content = read_json(folder / "eval.json", dict)
        check_seal(content)
        facts = read_facts(content)
    with reading(folder / "rows.parquet", remedy):
        table = read_parquet(folder / "rows.parquet", content)
        columns = {name: _from_column(table[name]) for name in ("row_id", "user")}
        places = {name: _from_column(table[name]) for name in _PLACES if name in table.columns}
        mask = _targets_of(table["sid_rank"])
        sid_mask = places.pop("sid_mask", mask)
        if not bool(((sid_mask == 0) | (sid_mask == 1)).all()):
            raise ValueError("column 'sid_mask' is not all 0 and 1")
        ranks = Ranks(
            row_ids=columns["row_id"][:, 0],
            users=columns["user"][:, 0],
            sid_mask=sid_mask.bool(),
            item_mask=mask,
            facts=facts,
            num_shown=(content.get("coverage") or {}).get("items"),
            **places,
        )
        refuse_impossible(ranks)
    return ranks


def _from_column(column: pl.Series) -> Int[Tensor, "N T"]:
    """Whole numbers, or lists of them padded on the right with 0."""
    inner = column.explode() if column.dtype == pl.List else column
    if not inner.dtype.is_integer() or column.null_count():
        raise ValueError(f"column {column.name!r} is not all whole numbers")
    if column.name in ("row_id", "user") and column.dtype == pl.List:
        raise ValueError(f"column {column.name!r} holds lists")
    if column.dtype != pl.List:
        return torch.from_numpy(column.cast(pl.Int64).to_numpy(writable=True))[:, None]
    rows = column.to_list()
    width = max(map(len, rows), default=1) or 1
    return torch.tensor([row + [0] * (width - len(row)) for row in rows]).reshape(-1, width)


def _targets_of(column: pl.Series) -> Bool[Tensor, "N T"]:
    if column.dtype != pl.List:
        return torch.ones(len(column), 1, dtype=torch.bool)
    lengths = torch.from_numpy(np.array(column.list.len().cast(pl.Int64)))
    return torch.arange(max(int(lengths.max()), 1)) < lengths[:, None]
