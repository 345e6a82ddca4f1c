"""A baseline on disk: what was counted in, a whole folder or none out, and back.

`baseline.json` holds kind, settings, splits, the hash of the events, the digest of the item ids and
what was measured; `tables.safetensors` the counts and, of an item-kNN, the votes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from recast.config.check import MOST_WINDOW
from recast.data.folder import data_hash, load_items
from recast.policy.baselines import FIT_SPLITS, Baseline, KNNSettings, as_table, as_votes
from recast.run.checkpoint import save_tensors
from recast.run.doors import require_kind
from recast.run.files import staged_folder
from recast.run.fingerprint import check_seal, check_stamp, digest_texts, seal
from recast.run.reading import read_json, reading
from recast.types import Metrics, RecastError

FACTS, TABLES = "baseline.json", "tables.safetensors"
_MOST_FACTS = 2**20  # bytes; they have about 1,000
_REMEDY = "make it again with `recast baselines`"


def save_baseline(
    baseline: Baseline, folder: str | Path, data: str | Path, measured: Metrics
) -> None:
    """Write a baseline that was fitted on a data folder; `measured` is what its facts tell of it,
    such as `valid/ndcg@10`."""
    tensors = {"counts": baseline.counts}
    if baseline.table is not None:
        votes = as_votes(baseline.table)
        tensors |= dict(zip(("starts", "items", "values"), votes, strict=True))
    settings = None if baseline.settings is None else asdict(baseline.settings)
    facts = {
        "kind": baseline.kind,
        "settings": settings,
        "splits": list(baseline.splits),
        "data": data_hash(data),
        "items": digest_texts(load_items(data)["item_id"]),
        "measured": measured,
    }
    with staged_folder(folder) as stage:
        save_tensors(tensors, stage / TABLES)
        content = json.dumps(seal(facts, stage, TABLES), indent=2)
        (stage / FACTS).write_text(content + "\n", encoding="utf-8")


def load_baseline(folder: str | Path) -> tuple[Baseline, dict[str, Any]]:
    """What `save_baseline` wrote, and its facts; `RecastError` when a byte is another."""
    path = Path(folder)
    require_kind("baseline", path)
    with reading(path / FACTS, _REMEDY):
        facts = read_json(path / FACTS, dict, _MOST_FACTS)
        settings = _check_facts(facts)
        if not (path / TABLES).is_file():
            raise ValueError(f"no {TABLES} beside it")
        if check_stamp(path / TABLES, facts) is None:
            raise ValueError(f"no stamp of {TABLES}")
    with reading(path / TABLES, _REMEDY):
        return _tables(path / TABLES, tuple(facts["splits"]), settings), facts


def require_of(
    facts: Mapping[str, Any], name: str, item_ids: Sequence[str], data: str | Path | None
) -> None:
    """Raise `RecastError` unless a baseline, as an error calls it, ranks these items and was fitted
    on these events."""
    if facts["items"] != digest_texts(item_ids):
        raise RecastError(
            f"{name} ranks other items than these {len(item_ids):,}: fit it on the same data, with "
            "`recast baselines`"
        )
    if data is not None and facts["data"] != (now := data_hash(data)):
        raise RecastError(
            f"{name} was fitted on other events ({facts['data'][:12]}) than those of {data} "
            f"({now[:12]}), and may have seen what is judged: fit it on this data, with `recast "
            "baselines`"
        )


def _check_facts(facts: Mapping[str, Any]) -> KNNSettings | None:
    """The settings of an item-kNN; raises what `reading` makes a `RecastError` of."""
    if "digest" not in facts:
        raise ValueError("no digest")
    check_seal(facts)
    kind, splits = facts["kind"], facts["splits"]
    if kind not in ("popularity", "item_knn"):
        raise ValueError(f"kind is {str(kind)[:40]!r}")
    if not (isinstance(splits, list) and splits) or any(x not in FIT_SPLITS for x in splits):
        raise ValueError(f"splits is {str(splits)[:40]}")
    for name in ("data", "items"):
        if not (isinstance(facts[name], str) and re.fullmatch("[0-9a-f]{64}", facts[name])):
            raise ValueError(f"{name} is no sha256")
    for name, value in facts["measured"].items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} is {str(value)[:40]}")
    if kind == "popularity":
        if facts["settings"] is not None:
            raise ValueError("popularity has settings")
        return None
    settings = dict(facts["settings"])
    for name, default in asdict(KNNSettings()).items():
        value = settings[name]
        least = 1 if isinstance(default, int) else 0
        if type(value) is not type(default) or not least <= value <= MOST_WINDOW:
            raise ValueError(f"{name} is {str(value)[:40]}")
    return KNNSettings(**settings)


def _tables(file: Path, splits: tuple[str, ...], settings: KNNSettings | None) -> Baseline:
    with safe_open(file, "pt") as stored:
        found: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    kinds = {"counts": (torch.float64, 1)}
    if settings is not None:
        kinds |= dict.fromkeys(("starts", "items"), (torch.int64, 1))
        kinds["values"] = (torch.float32, 1)
    if found.keys() != kinds.keys():
        raise ValueError(f"it holds {', '.join(sorted(found))[:100]}")
    for name, (dtype, num_dims) in kinds.items():
        tensor = found[name]
        if tensor.dtype != dtype or tensor.ndim != num_dims:
            raise ValueError(f"{name} is {tensor.dtype} of {list(tensor.shape)}")
        if not bool(((tensor >= 0) & tensor.isfinite()).all()):
            raise ValueError(f"{name} has a number below 0 or none")
    counts = found["counts"]
    if not len(counts):
        raise ValueError("it has no item")
    if settings is None:
        return Baseline(counts=counts, splits=splits)
    fits = len(found["items"]) == len(found["values"]), len(found["starts"]) == len(counts) + 1
    if not all(fits):
        raise ValueError("its votes are of other items than it counts")
    try:
        table = as_table(found["starts"], found["items"], found["values"])
    except RuntimeError as error:
        raise ValueError(f"its votes are no table: {error}") from error
    return Baseline(counts=counts, splits=splits, settings=settings, table=table)
