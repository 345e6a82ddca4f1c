"""Ranks and what follows from them: places of the targets in, metrics and `eval.json` out.

Item level comes first: an item is what a person is shown. The semantic-ID (SID) level, which a
policy decodes, stands beside it; the two are equal where every item has its own SID.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.evaluation.resample import DRAWS, user_intervals
from recast.run.files import reading, staged_folder
from recast.types import Metrics

HR_AT = (1, 5, 10, 32)
NDCG_AT = (5, 10)
PRIMARY = "item/ndcg@10"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Where each row's one target stands; all metrics follow from it.

    Example: a beam lists the SIDs a, b, c; a is shared by 2 items, b and c by 1. A row whose target
    is b has `sid_rank=2, items_before=2, num_sharing=1`, one whose target has SID a
    `sid_rank=1, items_before=0, num_sharing=2`.
    """

    row_ids: Int[Tensor, " N"]
    users: Int[Tensor, " N"]
    sid_rank: Int[Tensor, " N"]
    """Place of the target's SID among distinct SIDs, from 1; 0 = not in the list."""
    items_before: Int[Tensor, " N"]
    """Candidate items listed before the target and those it ties with."""
    num_sharing: Int[Tensor, " N"]
    """Candidate items the method cannot tell apart from the target, the target included: those
    that share its SID for a policy, 1 for a scorer of items."""


def row_metrics(ranks: Ranks) -> dict[str, Float[Tensor, " N"]]:
    """HR@k and NDCG@k of every row, at item and at SID level; with one target, Pass@k and Recall@k
    are HR@k.

    At item level a target that ties with m - 1 others gets the expectation over their random
    order: HR@k = clip((k - items_before) / m, 0, 1), NDCG@k = the mean of [p <= k] / log2(p + 1)
    over the places p = items_before + 1 .. items_before + m. A target that is not listed gets 0,
    so a list shorter than k is scored as it is.

    >>> third = dict(sid_rank=torch.tensor([3]), items_before=torch.tensor([2]))
    >>> one = torch.tensor([1])
    >>> metrics = row_metrics(Ranks(row_ids=one, users=one, num_sharing=one, **third))
    >>> round(metrics["item/ndcg@5"].item(), 6), metrics["item/hr@1"].item()
    (0.5, 0.0)
    """
    places = torch.arange(1, max(NDCG_AT) + 1, dtype=torch.float64)
    gain = torch.nn.functional.pad((1 / torch.log2(places + 1)).cumsum(0), (1, 0))
    found = ranks.sid_rank > 0
    metrics = {}
    for level, before, sharing in (
        ("item", ranks.items_before, ranks.num_sharing),
        ("sid", (ranks.sid_rank - 1).clamp(min=0), torch.ones_like(ranks.sid_rank)),
    ):
        for k in HR_AT:
            metrics[f"{level}/hr@{k}"] = ((k - before) / sharing.double()).clamp(0, 1) * found
        for k in NDCG_AT:
            inside = gain[(before + sharing).clamp(max=k)] - gain[before.clamp(max=k)]
            metrics[f"{level}/ndcg@{k}"] = inside / sharing * found
    return metrics


_COLUMNS = {"row_ids": "row_id", "users": "user"}


def write_evaluation(
    ranks: Ranks, folder: str | Path, facts: dict[str, Any], seed: int = 0
) -> Metrics:
    """A new folder with `rows.parquet` (a line per row) and `eval.json`; returns the means.

    `eval.json` holds `facts`, the rows and users, and every metric with its 95 % interval.
    """
    values = row_metrics(ranks)
    table = torch.stack(list(values.values()), 1).numpy()
    mean, low, high = user_intervals(table, ranks.users.numpy(), seed=seed)
    content = facts | {
        "rows": len(ranks.row_ids),
        "users": len(ranks.users.unique()),
        "resampled": "users",
        "draws": DRAWS,
        "seed": seed,
        "metrics": {
            name: {"value": float(mean[i]), "low": float(low[i]), "high": float(high[i])}
            for i, name in enumerate(values)
        },
    }
    columns = {_COLUMNS.get(f.name, f.name): getattr(ranks, f.name).numpy() for f in fields(Ranks)}
    with staged_folder(folder) as stage:
        pl.DataFrame(columns).write_parquet(stage / "rows.parquet")
        (stage / "eval.json").write_text(json.dumps(content, indent=2) + "\n")
    return dict(zip(values, mean.tolist(), strict=True))


def read_ranks(folder: str | Path) -> Ranks:
    """The ranks in a folder that `write_evaluation` wrote; `RecastError` when it is damaged."""
    file = Path(folder) / "rows.parquet"
    with reading(file, "make it again with `recast evaluate`"):
        table = pl.read_parquet(file.absolute(), glob=False)
        columns = {f.name: table[_COLUMNS.get(f.name, f.name)] for f in fields(Ranks)}
        for name, column in columns.items():
            if not column.dtype.is_integer() or column.null_count():
                raise ValueError(f"column {name!r} is not all whole numbers")
        return Ranks(**{name: torch.from_numpy(np.array(c)) for name, c in columns.items()})
