"""Evaluation: a way to rank in, the target's place in the whole catalogue out, row by row.

Every method, policy or baseline, passes through the same metrics, candidates and rows. With
`exclude_seen` the items of a row's own history are no candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.config import EvaluateConfig
from recast.data.history import seen
from recast.draws import uniforms
from recast.evaluation.metrics import Ranks, row_metrics, write_evaluation
from recast.items.catalog import Catalog
from recast.policy.baselines import Scorer
from recast.policy.load import Policy, load_policy
from recast.policy.ranker import load_ranker
from recast.policy.tasks import Task, load_task
from recast.policy.threads import choose_threads
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.run.files import refuse_existing
from recast.types import Interactions, Metrics, RecastError, RolloutGroups

_CELLS = 2**24  # scores, or logits, held at a time
_MAX_BATCH = 256


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
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    beam_width: int,
    decoder: Decoder = Decoder(),
) -> Ranks:
    """Rank by constrained beam search: the list is the `beam_width` best SIDs, or all of them.

    With a guide, best by D3's mixture; it then scores the whole catalogue for every row.
    """
    beam_width = min(beam_width, policy.catalog.trie.num_leaves)
    places = torch.zeros(3, len(rows), dtype=torch.long)
    for index in _batches(policy, task, rows, beam_width, guided=decoder.guide is not None):
        prompts = task.prompts(rows[index])
        groups = beam_search(policy, prompts, beam_width, decoder=decoder)
        places[:, index] = _place(groups, policy.catalog).cpu()
    sid_rank, items_before, num_sharing = places
    return Ranks(
        row_ids=rows,
        users=task.users(rows),
        sid_rank=sid_rank,
        items_before=items_before,
        num_sharing=num_sharing,
    )


def invalid_frac(policy: Policy, task: Task, rows: Int[Tensor, " N"], beam_width: int) -> float:
    """Share of unconstrained beams, no more than there are SIDs, that spell no item."""
    beam_width = min(beam_width, policy.catalog.trie.num_leaves)
    invalid = total = 0
    for index in _batches(policy, task, rows, beam_width):
        prompts = task.prompts(rows[index])
        groups = beam_search(policy, prompts, beam_width, decoder=Decoder(constrained=False))
        invalid += int((groups.exists & (groups.items < 0)).sum())
        total += int(groups.exists.sum())
    return invalid / max(total, 1)


def sample_rows(rows: Int[Tensor, " N"], count: int) -> Int[Tensor, " C"]:
    """A fixed sample of a split's rows, the same for every seed and every method."""
    return rows[uniforms(0, 0, rows, "sample_rows", 1)[:, 0].argsort()[:count]].sort().values


def validate(policy: Policy, task: Task, rows: Int[Tensor, " N"]) -> Metrics:
    """NDCG@10 and HR@10 at item level of a policy in training, whose mode is left as it was."""
    training = policy.model.training
    policy.model.eval()
    values = row_metrics(rank_policy(policy, task, rows, 32))
    policy.model.train(training)
    return {f"valid/{key}": float(values[f"item/{key}"].mean()) for key in ("ndcg@10", "hr@10")}


def evaluate_policy(config: EvaluateConfig) -> Metrics:
    """`recast evaluate`: rank a whole split, write `eval.json` and `rows.parquet`.

    Returns the means; `eval.json` adds their 95 % intervals over users, what they cover and the
    settings. Raises `RecastError` when data and policy do not belong together or the split has no
    row.
    """
    refuse_existing(config.output)
    policy = load_policy(config.policy).to(config.device)
    task = load_task(config.data, policy.catalog, policy.window)
    rows = rows_to_rank(task.rows(config.split), config.data, config.split)
    guide = load_ranker(config.guide, policy.catalog) if config.guide else None
    decoder = Decoder(guide=guide, alpha=config.alpha)

    def rank(chosen: Int[Tensor, " N"]) -> Ranks:
        return rank_policy(policy, task, chosen, config.beam_width, decoder)

    few = rows[next(_batches(policy, task, rows, config.beam_width))[:32]]
    threads = choose_threads(lambda: rank(few), config.threads, config.device)
    ranks = rank(rows)
    unconstrained = sample_rows(rows, config.invalid_rows)
    invalid = invalid_frac(policy, task, unconstrained, config.beam_width)
    facts = asdict(config) | {"threads": threads, "invalid_frac": invalid}
    facts |= {"split_name": task.split_name}
    means = write_evaluation(ranks, config.output, facts, config.seed)
    counts = {"rows": float(len(rows)), "users": float(len(ranks.users.unique()))}
    return means | {"invalid_frac": invalid} | counts


def rows_to_rank(rows: Int[Tensor, " N"], data: str, split: str) -> Int[Tensor, " N"]:
    """The rows of a split; `RecastError` when there is none."""
    if not len(rows):
        raise RecastError(f"{data} has no row to rank in {split}: give more data")
    return rows


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
    nowhere = trie.num_leaves

    def leaves(items: Int[Tensor, "B N"], missing: int) -> Int[Tensor, "B N"]:
        return torch.where(items >= 0, trie.leaves[items.clamp(min=0)].long(), missing)

    # Padding sorts behind every leaf, that of beams included.
    taken = leaves(prompts.seen, nowhere + 1).sort(1).values

    def candidates(leaf: Int[Tensor, "B N"]) -> Int[Tensor, "B N"]:
        low, high = (torch.searchsorted(taken, leaf, right=right) for right in (False, True))
        return trie.sharing(leaf) - (high - low)

    listed, target = leaves(groups.items, nowhere), leaves(prompts.target_items, nowhere)
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
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    beam_width: int,
    *,
    guided: bool = False,
) -> Iterator[Int[Tensor, " B"]]:
    """Positions within `rows`, longest prompts first, so that a batch holds prompts of like length.

    The batch shrinks as prompts, beams or vocabulary grow, and with a guide as the catalogue does;
    the numbers do not depend on it.
    """
    lengths = task.lengths(rows)
    order = lengths.argsort(descending=True, stable=True)
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    start = 0
    while start < len(rows):
        tokens = int(lengths[order[start]])
        scores = 2 * policy.catalog.num_items * guided  # float64, two cells each
        size = _CELLS // max(beam_width * vocabulary, 256 * tokens, scores)
        size = min(max(size, 1), _MAX_BATCH)
        yield order[start : start + size]
        start += size
