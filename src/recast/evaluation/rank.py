"""Evaluation: a way to rank in, the targets' places in the whole catalogue out, row by row.

Every method, policy or baseline, passes through the same metrics, candidates and rows. With
`exclude_seen` the items of a row's own history are no candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import ThinkConfig
from recast.config.think import NO_THOUGHT
from recast.data.history import seen
from recast.draws import uniforms
from recast.evaluation.facts import Facts
from recast.evaluation.places import (
    FIELDS,
    check_targets,
    distinct,
    pad_to,
    places_in_beams,
    places_in_scores,
    places_within_sids,
    shown_in_beams,
    shown_in_scores,
)
from recast.evaluation.ranks import Ranks
from recast.evaluation.thoughts import (
    as_list,
    search_lists,
    thought_sums,
)
from recast.items.catalog import Catalog
from recast.policy.baselines import Scorer
from recast.policy.load import Policy
from recast.policy.memory import all_bytes, cached_bytes
from recast.policy.tasks import Task
from recast.rollout.decoder import Decoder
from recast.run.parts import NO_PARTS, Parts
from recast.run.world import agreed
from recast.types import SPLITS, Draw, Interactions, RecastError, require

_CELLS = 2**24  # scores, or logits, held at a time
_MORE = 8  # times as many where a pass of few rows takes as long, as on a GPU
_SHARE = 8  # parts of a device's memory, of which keys and values take one
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
    _check_rows(rows)
    priority = torch.randperm(catalog.num_items, generator=torch.Generator().manual_seed(seed))
    if targets is None:
        targets = interactions.items[rows][:, None]
    fits = targets.shape[:1] == rows.shape and targets.ndim == 2 and targets.dtype == torch.long
    remedy = f"give item numbers [{len(rows)}, T], a row of them per row"
    require(fits, "targets", targets.tolist(), remedy)
    most = max([-1, *targets.flatten().tolist()])
    require(most < catalog.num_items, "target", most, f"the last item is {catalog.num_items - 1}")
    wanted = distinct(targets)
    places = torch.zeros(len(FIELDS), *wanted.shape, dtype=torch.long)
    shown = []
    for index in torch.arange(len(rows)).split(max(1, _CELLS // catalog.num_items)):
        chunk = rows[index]
        scores, excluded = scorer(interactions, chunk), seen(interactions, chunk)
        shape, due = tuple(scores.shape), (len(chunk), catalog.num_items)
        require(shape == due, "shape of the scores", shape, f"give {due}: rows and items")
        check_targets(wanted[index], excluded, chunk)
        own = catalog.trie.holds(catalog.domain_of[wanted[index, 0]].long())
        lost = (wanted[index] >= 0) & ~own.gather(1, wanted[index].clamp(min=0))
        remedy = "it is of another domain than the row's first target or has no semantic ID, leave "
        require(not bool(lost.any()), "target", wanted[index][lost].tolist()[:1], f"{remedy}it out")
        if bool(scores.isnan().any()):
            row = int(chunk[scores.isnan().any(1)][0])
            raise RecastError(f"the scorer gave NaN for row {row}: give every item a number")
        candidate = torch.ones(len(chunk), catalog.num_items + 1, dtype=torch.bool)
        candidate.scatter_(1, torch.where(excluded < 0, catalog.num_items, excluded), False)
        candidate = candidate[:, :-1] & own
        places[:, index] = places_in_scores(scores, candidate, priority, wanted[index], catalog)
        shown.append(shown_in_scores(scores, candidate, priority))
    splits = interactions.splits[rows].unique().tolist()
    facts = Facts(
        split=SPLITS[splits[0]] if len(splits) == 1 else None,
        split_name=interactions.split_name,
        num_candidates=num_candidates(catalog, catalog.domain_of[wanted[:, 0]].long()),
        exclude_seen=interactions.exclude_seen,
        ties="random",
        seed=seed,
        events_seen=events_seen,
    )
    return as_ranks(rows, interactions.users[rows], places, facts, shown)


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
    think: ThinkConfig = NO_THOUGHT,
    parts: Parts = NO_PARTS,
) -> Ranks:
    """Rank by constrained beam search in the policy's space: the list is the `beam_width` best
    SIDs, or all of them.

    With a guide, best by the mixture; it then scores the whole catalogue for every row. Behind
    thoughts, which are drawn from `seed`, the list is that of `think.select_k`. `split` names the
    rows. `popularity` (events of every item) tells which item stands for a SID at level
    `popular_item`; equals in a random order drawn from `seed`. `parts` keep what is done.

    Raises `RecastError` when a row has no target or a target is no candidate, for a guide behind
    thoughts and for a policy that cannot think.
    """
    _check_rows(rows)
    is_width = type(beam_width) is int and beam_width >= 1
    require(is_width, "beam_width", beam_width, "give a whole number of 1 or more")
    think.require_share(beam_width)
    need = "a guide ranks without a thought, leave one of them out"
    thinks = think.thoughts is not None
    require(not thinks or decoder.guide is None, "think.thoughts", think.thoughts, need)
    trie = policy.catalog.trie
    within = (
        popularity if popularity is None else places_within_sids(policy.catalog, popularity, seed)
    )
    width = min(beam_width, trie.num_leaves)
    guided = decoder.guide is not None
    batches = list(batches_of(policy, task, rows, width, guided=guided, think=think))
    draw = Draw(logprob_space=policy.logprob_space, seed=seed)

    def rank(index: Int[Tensor, " B"]) -> dict[str, Tensor]:
        prompts = task.prompts(rows[index])
        targets = distinct(prompts.target_items)
        check_targets(targets, prompts.seen, prompts.row_ids)
        groups = search_lists(policy, prompts, beam_width, draw, think, decoder)
        thoughts = {"thoughts": thought_sums(groups.thoughts)} if groups.thoughts else {}
        listed = (as_list(groups, think.select_k) if thinks else groups).items[:, :width]
        return thoughts | {
            "places": places_in_beams(listed, prompts.seen, policy.catalog, targets, within).cpu(),
            "shown": shown_in_beams(listed, prompts.seen, policy.catalog).cpu(),
            "domains": prompts.domains.unique().cpu(),
        }

    done = parts.collect("rows", batches, rank)
    found = [torch.zeros(len(FIELDS), 0, 1, dtype=torch.long), *(part["places"] for part in done)]
    num_targets = max(places.shape[2] for places in found)
    places = torch.cat([pad_to(places, num_targets) for places in found], dim=1)
    order = torch.cat([torch.zeros(0, dtype=torch.long), *batches])
    every = torch.arange(len(policy.catalog.domains))
    domains = torch.cat([part["domains"] for part in done]) if done else every
    most = int(trie.num_below(0, domains.to(trie.items.device)).max())
    facts = Facts(
        split=split,
        split_name=task.split_name,
        num_candidates=num_candidates(policy.catalog, domains),
        exclude_seen=task.exclude_seen,
        beam_width=beam_width if beam_width < most or thinks else None,
        thoughts=think.thoughts,
        ties="expectation",
        seed=None if within is None else seed,
    )
    shown = [part["shown"] for part in done]
    ranks = as_ranks(rows, task.users(rows), places[:, order.argsort()], facts, shown)
    if thinks and done:
        thoughts = torch.stack([part["thoughts"] for part in done]).sum(0)
        ranks = replace(ranks, thoughts=thoughts)
    return ranks if within is not None else replace(ranks, popular_rank=None)


def num_candidates(catalog: Catalog, domains: Int[Tensor, " N"]) -> int:
    """Items that are candidates of some row, seen ones among them; of no row all."""
    domains = domains.unique() if len(domains) else torch.arange(len(catalog.domains))
    return int(catalog.num_candidates(domains.to(catalog.device)).sum())


def _check_rows(rows: Int[Tensor, " N"]) -> None:
    fits = rows.ndim == 1 and rows.dtype == torch.long
    require(fits, "rows", rows.tolist(), "give row numbers, as `task.rows(split)` does")
    negative = rows[rows < 0].tolist()[:1]
    require(not negative, "row", negative, "row numbers start at 0")


def as_ranks(
    rows: Int[Tensor, " N"],
    users: Int[Tensor, " N"],
    places: Int[Tensor, "F N T"],
    facts: Facts,
    shown: Sequence[Tensor],
) -> Ranks:
    fields = dict(zip(FIELDS, places, strict=True))
    masks = {name: fields.pop(name).bool() for name in ("item_mask", "sid_mask")}
    num_shown = len(torch.cat(list(shown)).unique()) if shown else None
    return Ranks(row_ids=rows, users=users, facts=facts, num_shown=num_shown, **fields, **masks)


def sample_rows(rows: Int[Tensor, " N"], count: int) -> Int[Tensor, " C"]:
    """A fixed sample of a split's rows, the same for every seed and every method."""
    return rows[uniforms(0, 0, rows, "sample_rows", 1)[:, 0].argsort()[:count]].sort().values


def rows_of_tasks(task: Task, rows: Int[Tensor, " N"]) -> dict[str, Bool[Tensor, " N"]]:
    """Which rows are of each task, by its name; of tasks that have any, and where there are
    several."""
    if len(task.tasks) == 1:
        return {}
    number = task.task_of(rows)
    found = {name: number == place for place, name in enumerate(task.tasks)}
    return {name: inside for name, inside in found.items() if bool(inside.any())}


def rows_to_rank(task: Task | Interactions, data: str, split: str) -> Int[Tensor, " N"]:
    """The rows of a split; `RecastError` when there is none."""
    rows = task.rows(split)
    if not len(rows):
        others = [name for name in ("train", "valid", "test") if len(task.rows(name))]
        raise RecastError(
            f"{data} has no row to rank in {split}, only in {', '.join(others) or 'no split'}: "
            "prepare it with some, or ask for another split"
        )
    return rows


def batches_of(
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    beam_width: int,
    *,
    guided: bool = False,
    think: ThinkConfig = NO_THOUGHT,
) -> Iterator[Int[Tensor, " B"]]:
    """Positions within `rows`, longest prompts first, so that a batch holds prompts of like length.

    The batch shrinks as prompts, thoughts, beams or vocabulary grow, and with a guide as the
    catalogue does; the numbers do not depend on it.
    """
    lengths = task.lengths(rows)
    order = lengths.argsort(descending=True, stable=True)
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    device, cells, room = policy.catalog.device, _CELLS, 2**62
    if device.type != "cpu":
        cells = _MORE * _CELLS
        room = int(min(agreed(all_bytes(device)), room) / _SHARE / cached_bytes(policy))
    below = beam_width * policy.catalog.max_length
    start = 0
    while start < len(rows):
        tokens = int(lengths[order[start]]) + (think.thoughts or 0) * think.max_thought_tokens
        scores = 2 * policy.catalog.num_items * guided  # float64, two cells each
        size = cells // max(beam_width * vocabulary, 256 * tokens, scores)
        size = max(1, min(size, _MAX_BATCH, room // (tokens + below)))
        yield order[start : start + size]
        start += size
