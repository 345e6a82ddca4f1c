"""Evaluation: a way to rank in, the targets' places in the whole catalogue out, row by row.

Every method, policy or baseline, passes through the same metrics, candidates and rows. With
`exclude_seen` the items of a row's own history are no candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.config import VALID_METRICS, EvaluateConfig, split_metric
from recast.config.check import refuse_ranks, take
from recast.data.history import seen
from recast.draws import uniforms
from recast.evaluation.facts import Facts, training_of
from recast.evaluation.metrics import Ranks, row_metrics, write_evaluation
from recast.evaluation.places import (
    FIELDS,
    check_targets,
    distinct,
    pad_to,
    places_in_beams,
    places_in_scores,
    places_within_sids,
)
from recast.items.catalog import Catalog
from recast.policy.baselines import Scorer, popularity
from recast.policy.device import find_device
from recast.policy.load import Policy, load_policy
from recast.policy.ranker import load_ranker
from recast.policy.tasks import Task, load_task
from recast.policy.threads import choose_threads
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.run.files import refuse_existing
from recast.types import SPLITS, Interactions, Metrics, RecastError

_CELLS = 2**24  # scores, or logits, held at a time
_MAX_BATCH = 256


def rank_scores(
    scorer: Scorer,
    interactions: Interactions,
    catalog: Catalog,
    rows: Int[Tensor, " N"],
    seed: int = 0,
    *,
    targets: Int[Tensor, "N T"] | None = None,
    events_seen: tuple[str, ...] | None = None,
) -> Ranks:
    """Rank the whole catalogue by the scorer, best first, in chunks of rows.

    Equal scores are ordered by one random permutation of the items, drawn from `seed`: it knows
    neither popularity nor the target. A SID stands where its best item stands. `targets` are items,
    right-padded with -1; by default each row has one, its own event. `events_seen` says on which
    splits the scorer was fitted.

    Raises `RecastError` when a score is NaN, a row has no target or a target is no candidate.
    """
    priority = torch.randperm(catalog.num_items, generator=torch.Generator().manual_seed(seed))
    wanted = distinct(interactions.items[rows][:, None] if targets is None else targets)
    places = torch.zeros(len(FIELDS), *wanted.shape, dtype=torch.long)
    for index in torch.arange(len(rows)).split(max(1, _CELLS // catalog.num_items)):
        chunk = rows[index]
        scores, excluded = scorer(interactions, chunk), seen(interactions, chunk)
        check_targets(wanted[index], excluded, chunk)
        if bool(scores.isnan().any()):
            row = int(chunk[scores.isnan().any(1)][0])
            raise RecastError(f"the scorer gave NaN for row {row}: give every item a number")
        candidate = torch.ones(len(chunk), catalog.num_items + 1, dtype=torch.bool)
        candidate.scatter_(1, torch.where(excluded < 0, catalog.num_items, excluded), False)
        places[:, index] = places_in_scores(
            scores, candidate[:, :-1], priority, wanted[index], catalog
        )
    splits = interactions.splits[rows].unique().tolist()
    facts = Facts(
        split=SPLITS[splits[0]] if len(splits) == 1 else None,
        split_name=interactions.split_name,
        num_candidates=catalog.num_items,
        exclude_seen=interactions.exclude_seen,
        ties="random",
        seed=seed,
        events_seen=events_seen,
    )
    return _ranks(rows, interactions.users[rows], places, facts)


def rank_policy(
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    beam_width: int,
    decoder: Decoder = Decoder(),
    *,
    split: str | None = None,
    popularity: Float[Tensor, " I"] | None = None,
    seed: int = 0,
) -> Ranks:
    """Rank by constrained beam search: the list is the `beam_width` best SIDs, or all of them.

    With a guide, best by D3's mixture; it then scores the whole catalogue for every row. `split`
    names the rows. `popularity` (events of every item) tells which item stands for a SID at level
    `popular_item`; equals in a random order drawn from `seed`.

    Raises `RecastError` when a row has no target or a target is no candidate.
    """
    num_leaves = policy.catalog.trie.num_leaves
    within = (
        popularity if popularity is None else places_within_sids(policy.catalog, popularity, seed)
    )
    parts = [torch.zeros(len(FIELDS), 0, 1, dtype=torch.long)]
    order = [torch.zeros(0, dtype=torch.long)]
    width = min(beam_width, num_leaves)
    for index in _batches(policy, task, rows, width, guided=decoder.guide is not None):
        prompts = task.prompts(rows[index])
        targets = distinct(prompts.target_items)
        check_targets(targets, prompts.seen, prompts.row_ids)
        groups = beam_search(policy, prompts, width, decoder=decoder)
        parts.append(places_in_beams(groups, policy.catalog, targets, within).cpu())
        order.append(index)
    num_targets = max(part.shape[2] for part in parts)
    places = torch.cat([pad_to(part, num_targets) for part in parts], dim=1)
    facts = Facts(
        split=split,
        split_name=task.split_name,
        num_candidates=policy.catalog.num_items,
        exclude_seen=task.exclude_seen,
        beam_width=beam_width if beam_width < num_leaves else None,
        ties="expectation",
        seed=None if within is None else seed,
    )
    ranks = _ranks(rows, task.users(rows), places[:, torch.cat(order).argsort()], facts)
    return ranks if within is not None else replace(ranks, popular_rank=None)


def _ranks(
    rows: Int[Tensor, " N"], users: Int[Tensor, " N"], places: Int[Tensor, "F N T"], facts: Facts
) -> Ranks:
    fields = dict(zip(FIELDS, places, strict=True))
    masks = {name: fields.pop(name).bool() for name in ("item_mask", "sid_mask")}
    return Ranks(row_ids=rows, users=users, facts=facts, **fields, **masks)


def invalid_frac(policy: Policy, task: Task, rows: Int[Tensor, " N"], beam_width: int) -> float:
    """Share of unconstrained beams, no more than there are SIDs, that spell no item."""
    beam_width = min(beam_width, policy.catalog.trie.num_leaves)
    invalid = total = 0
    for index in _batches(policy, task, rows, beam_width):
        prompts = task.prompts(rows[index])
        # What a row has seen belongs to the catalogue too: none of it makes room for other beams.
        prompts = replace(prompts, seen=prompts.seen[:, :0])
        groups = beam_search(policy, prompts, beam_width, decoder=Decoder(constrained=False))
        invalid += int((groups.exists & (groups.items < 0)).sum())
        total += int(groups.exists.sum())
    return invalid / max(total, 1)


def sample_rows(rows: Int[Tensor, " N"], count: int) -> Int[Tensor, " C"]:
    """A fixed sample of a split's rows, the same for every seed and every method."""
    return rows[uniforms(0, 0, rows, "sample_rows", 1)[:, 0].argsort()[:count]].sort().values


def validate(
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    names: Sequence[str] = VALID_METRICS,
) -> Metrics:
    """Metrics at item level, such as `ndcg@10`, of a policy in training, whose mode is left as it
    was; by 32 beams, or as many as the largest k."""
    asked = [split_metric(name) for name in names]
    training = policy.model.training
    policy.model.eval()
    ranks = rank_policy(policy, task, rows, max(32, *(k for _, k in asked)))
    policy.model.train(training)
    values: dict[str, Float[Tensor, " N"]] = {}
    for metric, k in asked:
        values |= row_metrics(ranks, [k], ["item"], [metric])
    return {f"valid/{name}": float(values[f"item/{name}"].mean()) for name in names}


def evaluate_policy(config: EvaluateConfig) -> Metrics:
    """`recast evaluate`: rank a whole split, write `eval.json` and `rows.parquet`.

    Returns the means; `eval.json` adds their 95 % intervals over users, what they cover and the
    settings. Raises `RecastError` when data and policy do not belong together or the split has no
    row.
    """
    take(config, EvaluateConfig)
    refuse_ranks()
    refuse_existing(config.output)
    find_device(config.device)
    policy = load_policy(config.policy).to(config.device)
    policy.model.float()  # as in training, where near ties are told apart
    task = load_task(config.data, policy.catalog, policy.window)
    rows = rows_to_rank(task.rows(config.split), config.data, config.split)
    guide = load_ranker(config.guide, policy.catalog) if config.guide else None
    decoder = Decoder(guide=guide, alpha=config.alpha)
    popular = popularity(task.interactions)(task.interactions, rows[:1])[0]

    def rank(chosen: Int[Tensor, " N"]) -> Ranks:
        return rank_policy(
            policy,
            task,
            chosen,
            config.beam_width,
            decoder,
            split=config.split,
            popularity=popular,
            seed=config.seed,
        )

    few = rows[next(_batches(policy, task, rows, config.beam_width))[:32]]
    threads = choose_threads(lambda: rank(few), config.threads, config.device)
    events_seen, training_seed = training_of(config.policy, config.data)
    ranks = rank(rows)
    facts = replace(ranks.facts, events_seen=events_seen, training_seed=training_seed)
    unconstrained = sample_rows(rows, config.invalid_rows)
    invalid = invalid_frac(policy, task, unconstrained, config.beam_width)
    settings = asdict(config) | {"threads": threads, "invalid_frac": invalid}
    settings |= {"split_name": task.split_name}
    means = write_evaluation(
        replace(ranks, facts=facts),
        config.output,
        settings,
        config.seed,
        config.at,
        config.levels,
    )
    counts = {"rows": float(len(rows)), "users": float(len(ranks.users.unique()))}
    return means | {"invalid_frac": invalid} | counts


def rows_to_rank(rows: Int[Tensor, " N"], data: str, split: str) -> Int[Tensor, " N"]:
    """The rows of a split; `RecastError` when there is none."""
    if not len(rows):
        raise RecastError(f"{data} has no row to rank in {split}: give more data")
    return rows


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
