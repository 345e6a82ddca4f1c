"""Baselines, judged as policies are: a folder of `recast baselines` and a split in, `eval.json` and
`rows.parquet` out."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from recast.config import EvaluateConfig
from recast.data.folder import data_hash, load_data, load_items
from recast.evaluation.breakdown import breakdown
from recast.evaluation.disk import write_evaluation
from recast.evaluation.rank import rank_scores, rows_to_rank
from recast.items.catalog import Catalog, build_catalog
from recast.policy.baseline_folder import FACTS, load_baseline, require_of
from recast.types import Metrics, require


def is_baseline(folder: str | Path) -> bool:
    """Whether a folder is that of a baseline, not of a policy."""
    return (Path(folder) / FACTS).is_file()


def evaluate_baseline(config: EvaluateConfig) -> Metrics:
    """Rank a split by the baseline `config.policy`: the whole catalogue, without beams.

    Its items have no semantic IDs, so level `sid` is that of the items. Returns the means. Raises
    `RecastError` for a guide and for `exact_rows`, which are of a policy alone, and for other items
    or events than it was fitted on.
    """
    assert config.policy is not None
    remedy = f"{config.policy} is a baseline, which mixes with no guide: leave it out"
    require(config.decoder == "beam", "decoder", config.decoder, remedy)
    remedy = f"{config.policy} is a baseline, which ranks without beams: leave it out"
    require(not config.exact_rows, "exact_rows", config.exact_rows, remedy)
    remedy = f"{config.policy} is a baseline, which writes no thought: leave it out"
    require(config.think.thoughts is None, "think.thoughts", config.think.thoughts, remedy)
    remedy = f"{config.policy} is a baseline, which has the items of the data: leave it out"
    require(config.catalog is None, "catalog", config.catalog, remedy)
    baseline, facts = load_baseline(config.policy)
    catalog = items_alone(config.data)
    require_of(facts, f"policy {config.policy}", catalog.item_ids, config.data)
    interactions = load_data(config.data)
    rows = rows_to_rank(interactions, config.data, config.split)
    ranks = rank_scores(
        baseline.scorer, interactions, catalog, rows, config.seed, events_seen=baseline.splits
    )
    valid = facts["measured"].get("ndcg@10")
    ranks = replace(
        ranks, facts=replace(ranks.facts, data=data_hash(config.data), valid_ndcg=valid)
    )
    settings = asdict(config) | {
        "beam_width": None,
        "invalid_frac": None,
        "split_name": interactions.split_name,
        "alpha_chosen_on": None,
        "exact": None,
        "breakdown": breakdown(ranks, interactions, baseline.splits),
    }
    means = write_evaluation(ranks, config.output, settings, config.seed, config.at, config.levels)
    counts = {"rows": float(len(rows)), "users": float(len(ranks.users.unique()))}
    return means | counts


def items_alone(data: str | Path) -> Catalog:
    """The items of a data folder, each of them its own semantic ID."""
    ids = load_items(data)["item_id"].to_list()
    return build_catalog(torch.arange(len(ids))[:, None], (len(ids),), item_ids=ids)
