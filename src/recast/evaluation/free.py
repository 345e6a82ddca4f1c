"""What a policy writes without the trie: rows in, hits and shares of beams that are no item out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config import ThinkConfig
from recast.config.think import NO_THOUGHT
from recast.evaluation.places import check_targets, distinct, places_in_beams
from recast.evaluation.rank import batches_of
from recast.evaluation.thoughts import as_list, search_lists
from recast.groups import reorder
from recast.policy.load import Policy
from recast.policy.tasks import Task
from recast.rollout.decoder import Decoder
from recast.run.parts import NO_PARTS, Parts
from recast.types import Draw, Metrics, RolloutGroups

FREE_ROWS = 1000
"""That are decoded without the trie while a policy trains, at most."""
_WIDTH = 32
"""Beams, as of a validation."""


def free_metrics(
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    beam_width: int = _WIDTH,
    at: Sequence[int] = (),
    *,
    think: ThinkConfig = NO_THOUGHT,
    seed: int = 0,
    parts: Parts = NO_PARTS,
) -> Metrics:
    """Shares of unconstrained beams, no more than there are SIDs: `invalid_frac`, that spell no
    item, and `malformed_frac`, those of them that are no semantic ID either (of texts: that leave
    the catalogue at once); `parts` keep what is done.

    `free_hr@k`: rows whose target stands among the first k beams. A beam that spells no item takes
    a place; one of a seen item, which is no candidate, takes none. Behind thoughts, drawn from
    `seed`, beams are as many as without, an equal share below each.

    Empty for a policy of the `trie` space, which says nothing of other sequences.
    """
    if policy.logprob_space == "trie":
        return {}
    draw = Draw(logprob_space=policy.logprob_space, seed=seed)
    batches = list(batches_of(policy, task, rows, beam_width, think=think))

    def count(index: Int[Tensor, " B"]) -> dict[str, Tensor]:
        prompts = task.prompts(rows[index])
        # What a row has seen belongs to the catalogue too: none of it makes room for other beams.
        unseen = replace(prompts, seen=prompts.seen[:, :0])
        free = Decoder(constrained=False)
        groups = search_lists(policy, unseen, beam_width, draw, think, free)
        count = groups.items.shape[1]
        place = torch.arange(count, device=groups.items.device) % (count // (think.thoughts or 1))
        number = policy.catalog.trie.num_below(0, prompts.domains)[:, None]
        counted = groups.exists & (place < number)
        wrong = counted & (groups.items < 0)
        malformed = wrong & (groups.predictions < 0).flatten(2).all(-1)
        hits = torch.zeros(0, dtype=torch.long, device=place.device)
        if at:
            targets = distinct(prompts.target_items)
            check_targets(targets, prompts.seen, prompts.row_ids)
            listed = as_list(groups, think.select_k) if groups.thoughts else groups
            ranked = _seen_last(listed, prompts.seen, policy)
            rank = places_in_beams(ranked.items, unseen.seen, policy.catalog, targets, None)[0]
            hits = torch.stack([((rank > 0) & (rank <= k)).any(1).sum() for k in at])
        sums = torch.stack([wrong.sum(), malformed.sum(), counted.sum()])
        return {"sums": torch.cat([sums, hits]).cpu()}

    done = parts.collect("unconstrained rows", batches, count)
    start = torch.zeros(3 + len(at), dtype=torch.long)
    wrong, malformed, total, *hits = sum((part["sums"] for part in done), start).tolist()
    shares = {"invalid_frac": wrong / max(total, 1), "malformed_frac": malformed / max(total, 1)}
    at_k = {f"free_hr@{k}": hit / max(len(rows), 1) for k, hit in zip(at, hits, strict=True)}
    return at_k | shares


def _seen_last(groups: RolloutGroups, seen: Int[Tensor, "B S"], policy: Policy) -> RolloutGroups:
    """The beams that are candidates in their order, those of seen items behind them."""
    items = policy.catalog.items_of(groups.tokens, seen, groups.prompts.domains)
    is_seen = (items >= 0) & (items[..., None] == seen[:, None]).any(-1)
    return reorder(groups, is_seen.int().argsort(dim=1, stable=True))
