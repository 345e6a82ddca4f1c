"""Evaluation: a way to rank in, the target's place per row and metrics out.

Item level comes first: an item is what a person is shown. The semantic-ID (SID) level, which a
policy decodes, stands beside it; the two are equal where every item has its own SID. Every method,
policy or baseline, passes through the same metrics, candidates and rows. With `exclude_seen` the
items of a row's own history are no candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor

from recast.baselines import Scorer
from recast.checkpoint import staged_file, staged_folder
from recast.config import EvaluateConfig
from recast.data.folder import load_data
from recast.data.history import seen
from recast.draws import uniforms
from recast.items.catalog import Catalog
from recast.policy.load import Policy, load_policy
from recast.policy.prompts import build_prompts, check_catalog
from recast.policy.threads import choose_threads
from recast.resample import DRAWS, user_intervals
from recast.rollout.beam import beam_search
from recast.types import Interactions, Metrics, RecastError, RolloutGroups

HR_AT = (1, 5, 10, 32)
NDCG_AT = (5, 10)
PRIMARY = "item/ndcg@10"

_CELLS = 2**24  # scores, or logits, held at a time
_MAX_BATCH = 256


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


def rank_scores(
    scorer: Scorer,
    interactions: Interactions,
    catalog: Catalog,
    rows: Int[Tensor, " N"],
    seed: int = 0,
) -> Ranks:
    """Rank the whole catalogue by the scorer, best first, in chunks of rows.

    Equal scores are ordered by one random permutation of the items, drawn from `seed`: it knows
    neither popularity nor the target. A SID stands where its best item stands.

    Raises `RecastError` when a score is NaN.
    """
    priority = torch.randperm(catalog.num_items, generator=torch.Generator().manual_seed(seed))
    leaves = catalog.trie.leaves.long()
    sid_rank, items_before = torch.zeros(2, len(rows), dtype=torch.long)
    for index in torch.arange(len(rows)).split(max(1, _CELLS // catalog.num_items)):
        chunk = rows[index]
        scores, target = scorer(interactions, chunk), interactions.items[chunk][:, None]
        if bool(scores.isnan().any()):
            row = int(chunk[scores.isnan().any(1)][0])
            raise RecastError(f"the scorer gave NaN for row {row}: give every item a number")
        excluded = seen(interactions, chunk)
        candidate = torch.ones(len(chunk), catalog.num_items + 1, dtype=torch.bool)
        candidate.scatter_(1, torch.where(excluded < 0, catalog.num_items, excluded), False)
        candidate = candidate[:, :-1]
        assert bool(candidate.gather(1, target).all()), "a target is among the seen items"
        before = candidate & _precedes(scores, priority, scores.gather(1, target), priority[target])
        items_before[index] = before.sum(1)
        if catalog.trie.num_leaves < catalog.num_items:
            shared = candidate & (leaves == leaves[target])
            best = scores.masked_fill(~shared, -torch.inf).amax(1, keepdim=True)
            first = priority.where(shared & (scores == best), catalog.num_items)
            before = candidate & _precedes(scores, priority, best, first.amin(1, keepdim=True))
            counts = torch.zeros(len(chunk), catalog.trie.num_leaves, dtype=torch.int32)
            before = counts.index_add_(1, leaves, before.int()) > 0
        sid_rank[index] = before.sum(1) + 1
    return Ranks(
        row_ids=rows,
        users=interactions.users[rows],
        sid_rank=sid_rank,
        items_before=items_before,
        num_sharing=torch.ones_like(sid_rank),
    )


def rank_policy(
    policy: Policy, interactions: Interactions, rows: Int[Tensor, " N"], beam_width: int
) -> Ranks:
    """Rank by constrained beam search: the list is the `beam_width` best SIDs."""
    places = torch.zeros(3, len(rows), dtype=torch.long)
    for index in _batches(policy, interactions, rows, beam_width):
        prompts = build_prompts(interactions, policy.catalog, rows[index], policy.window)
        places[:, index] = _place(beam_search(policy, prompts, beam_width), policy.catalog)
    sid_rank, items_before, num_sharing = places
    return Ranks(
        row_ids=rows,
        users=interactions.users[rows],
        sid_rank=sid_rank,
        items_before=items_before,
        num_sharing=num_sharing,
    )


def invalid_frac(
    policy: Policy, interactions: Interactions, rows: Int[Tensor, " N"], beam_width: int
) -> float:
    """Share of unconstrained beams that spell no item of the catalogue."""
    invalid = total = 0
    for index in _batches(policy, interactions, rows, beam_width):
        prompts = build_prompts(interactions, policy.catalog, rows[index], policy.window)
        groups = beam_search(policy, prompts, beam_width, constrained=False)
        invalid += int((groups.exists & (groups.items < 0)).sum())
        total += int(groups.exists.sum())
    return invalid / total


def sample_rows(interactions: Interactions, split: str, count: int) -> Int[Tensor, " N"]:
    """A fixed sample of a split's rows, the same for every seed and every method."""
    rows = interactions.rows(split)
    return rows[uniforms(0, 0, rows, "sample_rows", 1)[:, 0].argsort()[:count]].sort().values


def validate(policy: Policy, interactions: Interactions, rows: Int[Tensor, " N"]) -> Metrics:
    """NDCG@10 and HR@10 at item level of a policy in training, whose mode is left as it was."""
    training = policy.model.training
    policy.model.eval()
    values = row_metrics(rank_policy(policy, interactions, rows, 32))
    policy.model.train(training)
    return {f"valid/{key}": float(values[f"item/{key}"].mean()) for key in ("ndcg@10", "hr@10")}


def evaluate_policy(config: EvaluateConfig) -> Metrics:
    """`recast evaluate`: write `eval.json`, `rows.parquet` and `config.yaml` for a whole split.

    Returns the means; `eval.json` adds their 95 % intervals over users and what they cover. Raises
    `RecastError` when data and policy do not belong together or `output` holds something.
    """
    interactions, policy = load_data(config.data), load_policy(config.policy)
    check_catalog(config.data, policy.catalog)
    rows = interactions.rows(config.split)
    with staged_folder(config.output) as stage:
        few = rows[next(_batches(policy, interactions, rows, config.beam_width))[:32]]
        choose_threads(
            lambda: rank_policy(policy, interactions, few, config.beam_width), config.threads
        )
        ranks = rank_policy(policy, interactions, rows, config.beam_width)
        write_ranks(ranks, stage / "rows.parquet")
        values = row_metrics(ranks)
        mean, low, high = user_intervals(
            torch.stack(list(values.values()), 1).numpy(), ranks.users.numpy(), seed=config.seed
        )
        unconstrained = sample_rows(interactions, config.split, config.invalid_rows)
        facts: dict[str, Any] = {
            "split": config.split,
            "split_name": interactions.split_name,
            "rows": len(rows),
            "users": len(ranks.users.unique()),
            "resampled": "users",
            "draws": DRAWS,
            "seed": config.seed,
            "beam_width": config.beam_width,
            "invalid_rows": len(unconstrained),
            "invalid_frac": invalid_frac(policy, interactions, unconstrained, config.beam_width),
            "metrics": {
                name: {"value": float(mean[i]), "low": float(low[i]), "high": float(high[i])}
                for i, name in enumerate(values)
            },
        }
        (stage / "eval.json").write_text(json.dumps(facts, indent=2) + "\n")
        (stage / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    means = dict(zip(values, mean.tolist(), strict=True))
    return means | {name: float(facts[name]) for name in ("invalid_frac", "rows", "users")}


_COLUMNS = {"row_ids": "row_id", "users": "user"}


def write_ranks(ranks: Ranks, file: str | Path) -> None:
    """One row per evaluated row: row_id, user, sid_rank, items_before, num_sharing."""
    columns = {_COLUMNS.get(f.name, f.name): getattr(ranks, f.name).numpy() for f in fields(Ranks)}
    with staged_file(file) as stage:
        pl.DataFrame(columns).write_parquet(stage)


def read_ranks(file: str | Path) -> Ranks:
    """What `write_ranks` wrote."""
    table = pl.read_parquet(file)
    columns = {f.name: table[_COLUMNS.get(f.name, f.name)].to_numpy() for f in fields(Ranks)}
    return Ranks(**{name: torch.from_numpy(np.array(column)) for name, column in columns.items()})


def _precedes(
    scores: Float[Tensor, "N I"],
    priority: Int[Tensor, " I"],
    than_score: Float[Tensor, "N 1"],
    than_priority: Int[Tensor, "N 1"],
) -> Tensor:
    return (scores > than_score) | ((scores == than_score) & (priority < than_priority))


def _place(groups: RolloutGroups, catalog: Catalog) -> Int[Tensor, "3 B"]:
    """`sid_rank`, `items_before` and `num_sharing` of each prompt's target in its beams."""
    prompts, trie = groups.prompts, catalog.trie
    assert prompts.target_items.shape[1] == 1, "one target per row"
    leaves, nowhere = trie.leaves.long(), trie.num_leaves
    sizes = torch.nn.functional.pad(torch.diff(trie.children[-1].long()), (0, 1))
    # Padding sorts behind every leaf, that of beams included.
    taken = torch.where(prompts.seen >= 0, leaves[prompts.seen.clamp(min=0)], nowhere + 1)
    taken = taken.sort(1).values

    def candidates(leaf: Int[Tensor, "B N"]) -> Int[Tensor, "B N"]:
        low, high = (torch.searchsorted(taken, leaf, right=right) for right in (False, True))
        return sizes[leaf] - (high - low)

    listed = torch.where(groups.items >= 0, leaves[groups.items.clamp(min=0)], nowhere)
    target = leaves[prompts.target_items]
    hit = listed == target
    found = hit.any(1)
    place = torch.where(found, hit.int().argmax(1), hit.shape[1])
    earlier = torch.arange(hit.shape[1], device=place.device) < place[:, None]
    return torch.stack(
        [
            torch.where(found, place + 1, 0),
            (candidates(listed) * earlier).sum(1),
            candidates(target)[:, 0],
        ]
    )


def _batches(
    policy: Policy, interactions: Interactions, rows: Int[Tensor, " N"], beam_width: int
) -> Iterator[Int[Tensor, " B"]]:
    """Positions within `rows`, longest prompts first, so that a batch holds prompts of like length.

    The batch shrinks as prompts, beams or vocabulary grow; the numbers do not depend on it.
    """
    items = (rows - interactions.starts[rows]).clamp(max=policy.window - 1)
    order = items.argsort(descending=True, stable=True)
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    start = 0
    while start < len(rows):
        tokens = 1 + int(items[order[start]]) * policy.catalog.num_levels
        size = _CELLS // max(beam_width * vocabulary, 256 * tokens)
        size = min(max(size, 1), _MAX_BATCH)
        yield order[start : start + size]
        start += size
