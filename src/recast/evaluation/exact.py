"""Is the beam honest? Every item of the catalogue scored, and the targets' places among them.

A beam search may drop the beginning of a target that would have come out on top. Here nothing is
dropped: the distinct prefixes of the catalogue go through the model as the branches of one packed
forward, a part of them at a time, and items are ranked as the search ranks its beams.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.evaluation.places import distinct, pad_to
from recast.items.catalog import Catalog
from recast.policy.load import Policy
from recast.policy.logprobs import item_logprobs, tokens_sent
from recast.policy.tasks import Task
from recast.rollout.decoder import Decoder
from recast.run.parts import NO_PARTS, Parts
from recast.types import LogprobSpace, Prompts

_ROWS = 8
_ROUNDING = 1e-5
"""Scores that are closer are equal: the search adds them up in another order."""
_SHARE = 10  # of the ranking
_MOST_ROWS = 500


@torch.no_grad()
def exact_scores(
    policy: Policy, prompts: Prompts, decoder: Decoder, space: LogprobSpace
) -> Float[Tensor, "B _leaves"]:
    """What a beam search as wide as the catalogue would rank every leaf of the trie by; -inf for
    those that are no candidates."""
    trie = policy.catalog.trie
    leaf = torch.arange(trie.num_leaves + 1, device=prompts.tokens.device)
    first, end = (trie.first_leaf(0, prompts.domains + i)[:, None] for i in (0, 1))
    is_open = (first <= leaf) & (leaf < end)
    is_open = is_open.scatter(1, trie.excluded(prompts.seen), False)[:, :-1]
    items = trie.items[trie.children[-1][:-1].long()].long()
    total = item_logprobs(policy, prompts, items.expand(len(prompts), -1), space, is_open)
    masses = decoder.masses(prompts, trie)
    if masses is not None:
        total = decoder.mix(total, masses[-1])
    return total.masked_fill(~is_open, -torch.inf)


def exact_places(
    scores: Float[Tensor, "B _leaves"], catalog: Catalog, targets: Int[Tensor, "B T"]
) -> Int[Tensor, "2 B T"]:
    """First and last place of each target's SID that rounding allows, from 1; 0 where there is no
    target.

    >>> from recast.items.catalog import build_catalog
    >>> catalog = build_catalog(torch.arange(4)[:, None], (4,))
    >>> scores = torch.tensor([[-1.0, -3.0, -2.0, -2.000001]])
    >>> exact_places(scores, catalog, torch.tensor([[1, 2]])).tolist()
    [[[4, 2]], [[4, 3]]]
    """
    own = scores.gather(1, catalog.trie.leaves[targets.clamp(min=0)].long())
    above = (scores[:, None] > own[..., None] + _ROUNDING).sum(2)
    level = (scores[:, None] >= own[..., None] - _ROUNDING).sum(2)
    return torch.stack([above + 1, level]) * (targets >= 0)


def is_elsewhere(
    sid_rank: Int[Tensor, "N T"], exact: Int[Tensor, "2 N T"], listed: int
) -> Bool[Tensor, "N T"]:
    """Whether the beams have a target at another place than it has in the whole catalogue; behind
    the first `listed` ones all places are one, "not listed".

    >>> place, exact = torch.tensor([[2], [2], [0], [0]]), torch.tensor([[2], [1], [9], [3]])
    >>> is_elsewhere(place, exact.expand(2, -1, -1), listed=5)[:, 0].tolist()
    [False, True, False, True]
    """
    first, last = exact
    sid_rank = sid_rank.where(sid_rank <= listed, 0)
    inside = (first <= sid_rank) & (sid_rank <= last)
    return torch.where(sid_rank > 0, ~inside, (last > 0) & (last <= listed))


def affordable_rows(catalog: Catalog, lengths: Int[Tensor, " N"], beam_width: int) -> int:
    """Rows, one or more, whose exact scores cost about a tenth of N rows' beams, at most 500."""
    ranking = int(lengths.sum()) + len(lengths) * beam_width * catalog.max_length
    return max(1, min(_MOST_ROWS, ranking // (_SHARE * tokens_sent(catalog))))


def places_of(
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    decoder: Decoder,
    space: LogprobSpace,
    parts: Parts = NO_PARTS,
) -> Int[Tensor, "2 N T"]:
    """`exact_places` of rows; `parts` keep what is done."""

    def work(batch: Int[Tensor, " B"]) -> dict[str, Tensor]:
        prompts = task.prompts(batch)
        scores = exact_scores(policy, prompts, decoder, space)
        targets = distinct(prompts.target_items)
        return {"places": exact_places(scores, policy.catalog, targets).cpu()}

    done = [part["places"] for part in parts.collect("rows exactly", rows.split(_ROWS), work)]
    width = max(places.shape[2] for places in done)
    return torch.cat([pad_to(places, width) for places in done], dim=1)
