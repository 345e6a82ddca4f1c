"""`recast evaluate --predictions`: published lists and a data folder in, `eval.json` out.

The lists are judged as ours are, by items. Each is of the row with its history or prompt and its
targets; a prediction that names no item, or one that the list has named already, keeps its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config import EvaluateConfig
from recast.data.folder import data_hash
from recast.data.history import seen
from recast.data.rows import Rows
from recast.evaluation.breakdown import grouped
from recast.evaluation.disk import write_evaluation
from recast.evaluation.facts import Facts
from recast.evaluation.places import (
    distinct,
    places_in_beams,
    places_within_sids,
    shown_in_beams,
)
from recast.evaluation.published import Published, read_published
from recast.evaluation.published_metrics import EVALUATORS, own_numbers
from recast.evaluation.published_rows import Matched, match_rows
from recast.evaluation.rank import as_ranks, num_candidates, rows_of_tasks, rows_to_rank
from recast.evaluation.ranks import Ranks
from recast.items.catalog import Catalog, load_catalog
from recast.policy.baselines import FIT_SPLITS
from recast.policy.chat import ChatTask
from recast.policy.tasks import HistoryTask, Task, check_catalog, load_source
from recast.types import Interactions, Metrics, RecastError, require

_CHUNK = 1024
"""Rows whose places are found together."""


@dataclass(frozen=True, kw_only=True)
class _Lists:
    """Predictions as items, -1 where one keeps its place for nothing."""

    items: Int[Tensor, "N W"]
    counts: dict[str, int]


def evaluate_predictions(config: EvaluateConfig) -> Metrics:
    """Rank a split by the lists of `config.predictions`, at most `beam_width` of each row.

    Returns the means; `eval.json` also holds the numbers of the format's own evaluator and counts
    of what its lists hold. Raises `RecastError` for a file of other rows, for a row without a list
    and for one with two.
    """
    assert config.predictions is not None
    assert config.catalog is not None
    catalog = load_catalog(config.catalog)
    check_catalog(config.data, catalog)
    remedy = "published lists are of semantic IDs, and this one writes texts: give that of the SIDs"
    require(bool(catalog.codebook_sizes), "catalog", config.catalog, remedy)
    source = load_source(config.data)
    task = _task(source, catalog)
    rows = rows_to_rank(task, config.data, config.split)
    published = read_published(config.predictions, config.split)
    matched = match_rows(published, task, source, rows, f"{config.split} of {config.data}")
    rows = matched.rows
    lists = _lists(matched, catalog, _seen(source, rows), config.beam_width)
    if bool((lists.items < 0).all()):
        raise RecastError(
            f"{config.predictions}: none of its {lists.counts['predictions']:,} predictions names "
            f"an item of {config.catalog}: give the lists of these rows, or the catalogue that "
            "they were written with"
        )
    width = lists.items.shape[1]
    most = max(config.at, default=0)
    remedy = f"a list holds {width} predictions at most, leave {most} out of at"
    require(most <= width, "at", config.at, remedy)
    ranks = _ranks(lists, task, source, rows, config)
    settings = asdict(config) | {
        "beam_width": width,
        "invalid_frac": lists.counts["unknown"] / max(lists.counts["predictions"], 1),
        "split_name": task.split_name,
        "alpha_chosen_on": None,
        "exact": None,
        "breakdown": grouped(
            ranks,
            FIT_SPLITS,
            task.item_counts(FIT_SPLITS)[task.targets(rows)[:, 0]],
            task.history_lengths(rows),
        ),
        "lists": lists.counts | {"left_out": len(matched.left_out)},
        "own_numbers": {str(file.path): own_numbers(file) for file in published},
        "notes": list(_notes(published, matched, lists)),
    }
    tasks = rows_of_tasks(task, rows)
    means = write_evaluation(
        ranks, config.output, settings, config.seed, config.at, config.levels, tasks
    )
    return means | {"rows": float(len(rows)), "users": float(len(ranks.users.unique()))}


def _task(source: Rows | Interactions, catalog: Catalog) -> Task:
    """Its rows and targets; nobody reads its prompts."""
    if isinstance(source, Rows):
        return ChatTask(source=source, catalog=catalog, window=1, renderer=None, limit=None)
    return HistoryTask(interactions=source, catalog=catalog, window=1)


def _seen(source: Rows | Interactions, rows: Int[Tensor, " N"]) -> Int[Tensor, "N S"]:
    return source.seen.take(rows) if isinstance(source, Rows) else seen(source, rows)


def _lists(
    matched: Matched, catalog: Catalog, taken: Int[Tensor, "N S"], beam_width: int
) -> _Lists:
    """The first `beam_width` predictions of each row."""
    beam_width = min(beam_width, catalog.trie.num_leaves)
    texts = [entry.lists[:beam_width] for entry in matched.entries]
    width = max(1, *map(len, texts))
    counts = dict.fromkeys(("predictions", "unknown", "repeated", "seen", "short"), 0)
    items = torch.full((len(texts), width), -1)
    leaves = catalog.trie.leaves.long().cpu()
    for row, (domain, some) in enumerate(zip(matched.domains, texts, strict=True)):
        once: set[int] = set()
        for place, text in enumerate(some):
            item = matched.names.item(domain, text)
            counts["unknown"] += item is None
            counts["repeated"] += item in once
            if item is not None and item not in once:
                once.add(item)
                items[row, place] = item
        counts["predictions"] += len(some)
        counts["short"] += len(some) < width
    if taken.shape[1]:
        gone = leaves[taken.clamp(min=0)].masked_fill(taken < 0, catalog.trie.num_leaves)
        own = leaves[items.clamp(min=0)]
        number = torch.stack([(gone == leaf[:, None]).sum(1) for leaf in own.unbind(1)], 1)
        is_seen = (items >= 0) & (number >= catalog.trie.sharing(own))
        counts["seen"] = int(is_seen.sum())
    return _Lists(items=items, counts=counts)


def _ranks(
    lists: _Lists,
    task: Task,
    source: Rows | Interactions,
    rows: Int[Tensor, " N"],
    config: EvaluateConfig,
) -> Ranks:
    catalog, width = task.catalog, lists.items.shape[1]
    within = places_within_sids(catalog, task.item_counts(FIT_SPLITS).float(), config.seed)
    targets, taken = distinct(task.targets(rows)), _seen(source, rows)
    places, shown = [], []
    for some in torch.arange(len(rows)).split(_CHUNK):
        beams = lists.items[some]
        places.append(places_in_beams(beams, taken[some], catalog, targets[some], within))
        shown.append(shown_in_beams(beams, taken[some], catalog))
    domains = catalog.domain_of.cpu()[targets[:, 0]].long()
    facts = Facts(
        split=config.split,
        split_name=task.split_name,
        data=data_hash(config.data),
        num_candidates=num_candidates(catalog, domains),
        exclude_seen=task.exclude_seen,
        beam_width=width,
        ties="expectation",
        seed=config.seed,
    )
    return as_ranks(rows, task.users(rows), torch.cat(places, 1), facts, shown)


def _notes(published: list[Published], matched: Matched, lists: _Lists) -> Iterator[str]:
    """What differs from the lists of a policy, and the numbers of the formats' own evaluators."""
    counts, width = lists.counts, lists.items.shape[1]
    formats = " and ".join(sorted({file.format for file in published}))
    yield (
        f"{len(matched.rows):,} published lists in {formats}'s format, {width} predictions each: "
        "how they were searched, and what their policy has read, is not known"
    )
    kept = {
        "unknown": "that name no item",
        "repeated": "named by their list before",
        "seen": "of seen items, which are no candidates",
    }
    some = [f"{counts[name]:,} {words}" for name, words in kept.items() if counts[name]]
    if some:
        yield f"predictions that keep their place for nothing: {', '.join(some)}"
    if counts["short"]:
        yield f"rows with fewer than {width} predictions, scored as they are: {counts['short']:,}"
    if matched.left_out:
        yield (
            f"entries left out, whose targets no item has or the row has seen: "
            f"{len(matched.left_out):,}, first {matched.left_out[0].place}"
        )
    for file in published:
        values = "  ".join(f"{name} {value:.4f}" for name, value in own_numbers(file).items())
        yield f"by {EVALUATORS[file.format]}, semantic IDs of {len(file.entries):,} rows: {values}"
