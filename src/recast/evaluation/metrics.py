"""Ranks and what follows from them: places of the targets in, metrics and `eval.json` out.

Item level comes first: an item is what a person is shown. The semantic-ID (SID) level, which a
policy decodes, stands beside it; the two are equal where every item has its own SID. A third
reading, `popular_item`, shows of every listed SID its most popular candidate alone.

Letters: T targets of the row with the most of them | A cuts k of a list.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import METRICS, Level
from recast.config.check import as_path
from recast.data.parquet import read_parquet
from recast.evaluation.facts import read_facts
from recast.evaluation.feasible import check_means
from recast.evaluation.places import SHOWN
from recast.evaluation.ranks import (
    Ranks,
    as_cuts,
    as_levels,
    as_metrics,
    check_ranks,
    refuse_impossible,
)
from recast.evaluation.resample import DRAWS, user_intervals
from recast.run.files import staged_folder
from recast.run.fingerprint import check_seal, seal
from recast.run.reading import kind_of, read_json, reading
from recast.types import Metrics, RecastError

HR_AT = (1, 5, 10, 50)
NDCG_AT = (5, 10)
"""Cuts of the lists unless a caller gives its own: the first are those of all hits."""
PRIMARY = "item/ndcg@10"
LEVELS: tuple[Level, ...] = ("item", "sid")

ONE_TARGET = ("hr", "ndcg")
SEVERAL_TARGETS = METRICS
"""With one target per row HR, Pass, first-target Pass and Recall are one number, given once."""


def table_cuts(name: str, beam_width: int | None) -> tuple[int, ...]:
    """Those of a metric that lists of so many reach.

    >>> table_cuts("ndcg", 7)
    (5,)
    """
    table = NDCG_AT if name == "ndcg" else HR_AT
    return tuple(k for k in table if beam_width is None or k <= beam_width)


def row_metrics(
    ranks: Ranks,
    at: Sequence[int] = (),
    levels: Sequence[Level] = LEVELS,
    names: Sequence[str] = (),
) -> dict[str, Float[Tensor, " N"]]:
    """`names` of every row at every k of `at` and every level, such as `item/ndcg@10`.

    With GT the distinct targets of a row (distinct SIDs at SID level):

        pass@k        1 if any of GT is among the first k; hr@k is another name for it
        first_pass@k  1 if the first of GT is
        recall@k      |first k and GT| / |GT|
        ndcg@k        sum of 1 / log2(place + 1) over these / the same of GT in the first places

    At item level a target that ties with m - 1 others, b items before them, gets the expectation
    over their random order: with c = clip(k - b, 0, m) it is among the first k with probability
    c / m, and one of g targets of the same tie with 1 - C(m - g, c) / C(m, c); the gain is the mean
    of [p <= k] / log2(p + 1) over the places p = b + 1 .. b + m. A target that is not listed gets
    0, so a list shorter than k is scored as it is; so does a row without a target (2512.24762).

    `at` is empty for the table's cuts, those of `HR_AT` and `NDCG_AT` that the lists reach; `names`
    for those of `SEVERAL_TARGETS` if a row has several, of `ONE_TARGET` if not. Raises
    `RecastError` for level `popular_item` of ranks without popularity, for a k beyond the
    `beam_width` that was listed, for names that there are not and for ranks that cannot be.

    >>> one, yes = torch.tensor([[1]]), torch.tensor([[True]])
    >>> third = dict(sid_rank=3 * one, items_before=2 * one, num_sharing=one)
    >>> ranks = Ranks(row_ids=one[0], users=one[0], item_mask=yes, sid_mask=yes, **third)
    >>> metrics = row_metrics(ranks)
    >>> round(metrics["item/ndcg@5"].item(), 6), metrics["item/hr@1"].item()
    (0.5, 0.0)
    """
    check_ranks(ranks)
    width = ranks.facts.beam_width
    at, levels, names = as_cuts(at, width), as_levels(levels), as_metrics(names)
    several = bool((ranks.item_mask.sum(1) > 1).any())
    chosen = names or (SEVERAL_TARGETS if several else ONE_TARGET)
    metrics: dict[str, Float[Tensor, " N"]] = {}
    for level in levels:
        places = _places(ranks, level)
        for name in chosen:
            cuts = at or table_cuts(name, width)
            values = _METRICS[name](places, torch.tensor(cuts, dtype=torch.long))
            metrics |= {f"{level}/{name}@{k}": values[:, i] for i, k in enumerate(cuts)}
    return metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class _Places:
    """The targets of one level: m = `sharing` places from b = `before` on, if `listed`."""

    before: Int[Tensor, "N T"]
    sharing: Int[Tensor, "N T"]
    listed: Bool[Tensor, "N T"]
    count: Int[Tensor, " N"]
    """Targets of the row, listed or not, at least 1."""

    def inside(self, cuts: Int[Tensor, " A"]) -> Int[Tensor, "N T A"]:
        """c: how many of the target's possible places are among the first k."""
        left = cuts - self.before[..., None]
        return left.clamp(min=0).minimum(self.sharing[..., None]) * self.listed[..., None]


def _places(ranks: Ranks, level: Level) -> _Places:
    before, sharing, mask = ranks.items_before, ranks.num_sharing.clamp(min=1), ranks.item_mask
    listed = mask & (ranks.sid_rank > 0)
    if level == "sid":
        before, mask = (ranks.sid_rank - 1).clamp(min=0), ranks.sid_mask
        sharing, listed = torch.ones_like(before), mask & (ranks.sid_rank > 0)
    if level == "popular_item":
        if ranks.popular_rank is None:
            raise RecastError(
                "levels has popular_item, and these ranks hold no popularity: evaluate again"
            )
        before = (ranks.popular_rank - 1).clamp(min=0)
        sharing, listed = torch.ones_like(before), mask & (ranks.popular_rank > 0)
    return _Places(before=before, sharing=sharing, listed=listed, count=mask.sum(1).clamp(min=1))


def _pass(places: _Places, cuts: Int[Tensor, " A"]) -> Float[Tensor, "N A"]:
    """One target after the other: the j-th of a tie, those before it outside the first k, is inside
    with probability c / (m - j). Ties of different SIDs are independent."""
    before, listed = places.before, places.listed
    same = (before[:, :, None] == before[:, None, :]) & listed[:, :, None] & listed[:, None, :]
    left = (places.sharing - same.tril(-1).sum(2)).clamp(min=1)
    chance = (places.inside(cuts) / left[..., None].double()).clamp(max=1)
    hit = torch.zeros(len(before), len(cuts), dtype=torch.float64)
    for target in chance.unbind(1):
        hit = hit + (1 - hit) * target
    return hit


def _first_pass(places: _Places, cuts: Int[Tensor, " A"]) -> Float[Tensor, "N A"]:
    return (places.inside(cuts) / places.sharing[..., None].double())[:, 0]


def _recall(places: _Places, cuts: Int[Tensor, " A"]) -> Float[Tensor, "N A"]:
    expected = (places.inside(cuts) / places.sharing[..., None].double()).sum(1)
    return expected / places.count[:, None]


def _ndcg(places: _Places, cuts: Int[Tensor, " A"]) -> Float[Tensor, "N A"]:
    positions = torch.arange(1, max(cuts.tolist(), default=0) + 1, dtype=torch.float64)
    gain = torch.nn.functional.pad((1 / torch.log2(positions + 1)).cumsum(0), (1, 0))
    start = places.before[..., None].minimum(cuts)
    sums = gain[start + places.inside(cuts)] - gain[start]
    mean = sums / places.sharing[..., None] * places.listed[..., None]
    return mean.sum(1) / gain[places.count[:, None].minimum(cuts)]


_METRICS = {
    "hr": _pass,
    "pass": _pass,
    "first_pass": _first_pass,
    "recall": _recall,
    "ndcg": _ndcg,
}


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


_PLACES = ("sid_rank", "items_before", "num_sharing", "popular_rank", "sid_mask")


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
