"""Decoding G branches of every prompt over one copy of the prompt's keys and values.

The prompt is prefilled once per row, its targets with it. Every step adds one query per distinct
branch to the *same* row, or a chain of them where tokens are forced; the cache is neither expanded
nor reordered, a mask tells each query who its ancestors are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.policy.attention import Layout
from recast.policy.body import hidden_states
from recast.policy.encoder_decoder import new_cache, start_token
from recast.policy.head import node_scores
from recast.policy.load import Policy
from recast.policy.logprobs import read_branches, require_levels, token_scores
from recast.policy.packed import grow_branches, pack, packed_forward
from recast.rollout.check import check_prompts
from recast.types import Draw, LogprobSpace, Prompts, RolloutGroups


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What may follow each of N branches: C candidates."""

    tokens: Int[Tensor, "B N C"]
    nodes: Int[Tensor, "B N C"]
    """Of the trie, that a candidate leads to; 0 for all of them without the trie."""
    allowed: Bool[Tensor, "B N C"]
    logprobs: Float[Tensor, "B N C"]
    """In the decoder's space; -inf where not allowed, 0 for the pad behind an end."""


class Prefilled(NamedTuple):
    """Prompts that have gone through the model, their targets with them."""

    cache: Any
    """Keys and values, as transformers keeps them."""
    layout: Layout
    """Its first R queries are the places that items are searched behind."""
    hidden: Float[Tensor, "B R W"]
    """Of these places: the prompts' last tokens, R = 1, or thoughts."""
    target_logprobs: Float[Tensor, "B T L"]


def prefill(policy: Policy, prompts: Prompts, space: LogprobSpace) -> Prefilled:
    """Raises `RecastError` for no prompt, one with a token that the model does not have, and a
    space that the items do not have."""
    check_prompts(policy, prompts)
    catalog = policy.catalog
    if space == "level":
        require_levels(catalog)
    reading = read_branches(catalog, prompts, prompts.targets, prompts.target_mask, space)
    targets, start = prompts.targets, start_token(policy.model)
    packed = pack(prompts.tokens, prompts.lengths, targets, reading.asked, start_token=start)
    cache = new_cache(policy.model)
    hidden = packed_forward(policy.model, packed, past_key_values=cache)
    return Prefilled(cache, packed.layout, hidden[:, :1], reading.logprobs(policy, packed, hidden))


class TreeDecoder:
    """The prompts' keys and values, and N branches of each prompt grown on them so far.

    At first one branch, the root, or one for every place of a `start`. A sampler asks for
    `choices`, decides, and takes some of them, once for every level. Constrained, a level is a
    decision and a choice brings the tokens that have to follow it; otherwise a level is a token.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        space: LogprobSpace,
        *,
        constrained: bool = True,
        start: Prefilled | None = None,
    ) -> None:
        self.policy, self.prompts, self.space = policy, prompts, space
        self.constrained = constrained
        catalog = policy.catalog
        self.num_levels = catalog.num_levels if constrained else catalog.max_length
        self.excluded: Int[Tensor, "B S"] = catalog.trie.excluded(prompts.seen)
        start = start or prefill(policy, prompts, space)
        self._cache, self._layout, self._hidden = start.cache, start.layout, start.hidden
        self.target_logprobs: Float[Tensor, "B T L"] = start.target_logprobs
        places = torch.arange(start.hidden.shape[1], device=prompts.domains.device)
        self._queries = places.expand(len(prompts), -1)
        self.lengths = torch.zeros_like(self._queries)
        self.nodes = self.lengths + prompts.domains[:, None] if constrained else self.lengths
        self._alive = torch.ones_like(self.nodes, dtype=torch.bool)
        self.level = 0
        shape = (*self.lengths.shape, catalog.max_length)
        self.tokens = prompts.targets.new_full(shape, catalog.pad_token)
        self.logprobs = self.target_logprobs.new_zeros(shape)

    def choices(self) -> Choices:
        """Of every branch at the next level."""
        catalog = self.policy.catalog
        if self.constrained:
            tokens, nodes, allowed = catalog.children(self.level, self.nodes, self.excluded)
        else:
            width = self.policy.model.get_output_embeddings().weight.shape[0]
            is_whole = self.space == "full" or not catalog.codebook_sizes
            start, end = (0, width) if is_whole else catalog.level_tokens(self.level)
            tokens = torch.arange(start, end, device=self.nodes.device)
            tokens = tokens.expand(*self.nodes.shape, -1)
            nodes, allowed = torch.zeros_like(tokens), self._unseen(tokens)
        scored = (self._hidden, tokens, allowed)
        if self._has_ends:  # behind an end there is the pad alone, and no output layer
            ended = self._has_ended()
            allowed = allowed & (~ended[..., None] | (tokens == catalog.pad_token))
            scored = (self._hidden[~ended][None], tokens[~ended][None], allowed[~ended][None])
        hidden, some, may = scored
        scores = token_scores(self.policy, hidden, some, may, space=self.space, level=self.level)
        if self._has_ends:
            nothing = torch.zeros(allowed.shape, dtype=scores.dtype, device=scores.device)
            nothing = nothing.masked_fill(~allowed, -torch.inf)
            scores = nothing.masked_scatter(~ended[..., None].expand_as(allowed), scores)
        return Choices(tokens=tokens, nodes=nodes, allowed=allowed, logprobs=scores)

    def _unseen(self, tokens: Int[Tensor, "B N V"]) -> Bool[Tensor, "B N V"]:
        """Without the trie: False for a token, of those in a row, that would write a seen item."""
        catalog, trie, level = self.policy.catalog, self.policy.catalog.trie, self.level
        allowed = torch.ones_like(tokens, dtype=torch.bool)
        if not self.excluded.shape[1]:
            return allowed
        leaf = self.excluded.clamp(max=trie.num_leaves - 1)
        items = trie.items[trie.children[-1][leaf].long()].long()
        seen = catalog.tokens_of(items)
        ends = (catalog.lengths[items] == level + 1) & (self.excluded < trie.num_leaves)
        # What is written here names an item of the row's own domain.
        ends &= catalog.domain_of[items] == self.prompts.domains[:, None]
        begun = (self.tokens[:, :, None, :level] == seen[:, None, :, :level]).all(-1)
        row, branch, place = (begun & ends[:, None]).nonzero(as_tuple=True)
        allowed[row, branch, seen[row, place, level] - int(tokens[0, 0, 0])] = False
        return allowed

    @property
    def _has_ends(self) -> bool:
        """Whether an item may end before the last level."""
        return self.policy.catalog.trie.ends is not None

    @property
    def is_done(self) -> bool:
        """Whether every branch has ended."""
        return self.level > 0 and self._has_ends and bool((self._has_ended() | ~self._alive).all())

    def _has_ended(self) -> Bool[Tensor, "B N"]:
        """Which branches have written an item, by the trie, or by the tokens alone: an item's, or
        that by which all items end."""
        catalog = self.policy.catalog
        if not self.constrained:
            is_item = catalog.items_of(self.tokens, domains=self.prompts.domains) >= 0
            if catalog.end_token is None:
                return is_item
            return is_item | (self.tokens == catalog.end_token).any(-1)
        below = catalog.trie.num_below(self.level, self.nodes.clamp(min=0))
        return (below == 1) & (self.nodes >= 0) & (self.level > 0)

    def take(
        self,
        choices: Choices,
        parents: Int[Tensor, "B M"],
        columns: Int[Tensor, "B M"],
        alive: Bool[Tensor, "B M"],
    ) -> None:
        """M branches from now on: `parents` by their choice `columns`; those not alive end here."""
        catalog, every = self.policy.catalog, choices.tokens.shape[2]
        index = parents * every + columns
        first, nodes, scores = (
            x.flatten(1).gather(1, index) for x in (choices.tokens, choices.nodes, choices.logprobs)
        )
        self.level += 1
        begins = self.lengths.gather(1, parents)
        if self.constrained:
            edges, length = catalog.edges(self.level, nodes, begins)
        else:
            edges, length = first[..., None], torch.ones_like(first)
            if self._has_ends:
                length = length.masked_fill(self._has_ended().gather(1, parents), 0)
        length = length.masked_fill(~alive, 0)
        self._alive = alive
        self.nodes, self.lengths = nodes.masked_fill(~alive, -1), begins + length
        tail = self._send(edges, length, parents)
        values = torch.cat([scores.masked_fill(length == 0, 0.0)[..., None], tail], dim=-1)
        self.tokens = _append(self.tokens, parents, begins, edges, length)
        self.logprobs = _append(self.logprobs, parents, begins, values, length)

    def _send(
        self, edges: Int[Tensor, "B M E"], length: Int[Tensor, "B M"], parents: Int[Tensor, "B M"]
    ) -> Float[Tensor, "B M E_minus_1"]:
        """Send the tokens that something is read behind; log-probabilities of the forced ones."""
        catalog, width = self.policy.catalog, edges.shape[2]
        place = torch.arange(width, device=edges.device)
        inside = place < length[..., None]
        is_trie = self.space == "trie"
        goes_on = torch.full_like(inside[..., 0], self.level < self.num_levels)
        if self.constrained and (is_trie or self._has_ends):
            # Behind a node with one leaf nothing is decided any more.
            goes_on = catalog.trie.num_below(self.level, self.nodes.clamp(min=0)) > 1
        sent = goes_on[..., None] & inside
        if not is_trie:
            sent |= place < length[..., None] - 1
        forced = self.logprobs.new_zeros(*edges.shape[:2], width - 1)
        kept = self._hidden.gather(1, parents[..., None].expand(-1, -1, self._hidden.shape[2]))
        self._queries = self._queries.gather(1, parents)
        if not bool(sent.any()):
            self._hidden = kept
            return forced
        growth = grow_branches(self._layout, self._queries, edges, sent)
        hidden = hidden_states(
            self.policy.model,
            growth.layout.query_positions,
            tokens=growth.tokens,
            layout=growth.layout,
            past_key_values=self._cache,
        )
        if width > 1 and not is_trie:
            row, branch, at = inside[..., 1:].nonzero(as_tuple=True)
            nodes, index = (row * hidden.shape[1] + growth.places[row, branch, at]).unique(
                return_inverse=True
            )
            tokens = edges[row, branch, at + 1]
            scores = node_scores(self.policy.model, hidden.flatten(0, 1)[nodes], index, tokens)
            forced = forced.index_put((row, branch, at), scores)
        count = sent.sum(-1)
        newest = growth.places.gather(2, (count - 1).clamp(min=0)[..., None])[..., 0]
        moved = hidden.gather(1, newest[..., None].expand(-1, -1, hidden.shape[2]))
        self._hidden = torch.where((count > 0)[..., None], moved, kept)
        self._queries, self._layout = newest, growth.layout
        return forced

    def finish(
        self, group_size: int, draw: Draw, order: Int[Tensor, "B M"], alive: Bool[Tensor, "B M"]
    ) -> RolloutGroups:
        """M <= `group_size` branches in this order as a group; what does not exist is padded and
        masked out."""
        index = order[..., None].expand(-1, -1, self.tokens.shape[2])
        return as_groups(
            self.policy,
            self.prompts,
            tokens=self.tokens.gather(1, index),
            logprobs=self.logprobs.gather(1, index),
            lengths=self.lengths.gather(1, order),
            alive=alive,
            target_logprobs=self.target_logprobs,
            group_size=group_size,
            draw=draw,
        )


def as_groups(
    policy: Policy,
    prompts: Prompts,
    *,
    tokens: Int[Tensor, "B M L"],
    logprobs: Float[Tensor, "B M L"],
    lengths: Int[Tensor, "B M"],
    alive: Bool[Tensor, "B M"],
    target_logprobs: Float[Tensor, "B T L"],
    group_size: int,
    draw: Draw,
) -> RolloutGroups:
    """M <= `group_size` paths of these prompts as groups; the others do not exist."""
    catalog, missing = policy.catalog, group_size - tokens.shape[1]
    alive = F.pad(alive, (0, missing))
    dead = ~alive[..., None]
    tokens = F.pad(tokens, (0, 0, 0, missing)).masked_fill(dead, catalog.pad_token)
    place = torch.arange(tokens.shape[2], device=tokens.device)
    items = catalog.items_of(tokens, prompts.seen, prompts.domains)
    return RolloutGroups(
        prompts=prompts,
        tokens=tokens,
        items=items.masked_fill(~alive, -1),
        predictions=catalog.sids_of(tokens).masked_fill(dead, -1)[:, :, None],
        rollout_logprobs=F.pad(logprobs, (0, 0, 0, missing)).masked_fill(dead, 0.0),
        target_logprobs=target_logprobs,
        loss_mask=(place < F.pad(lengths, (0, missing))[..., None]) & ~dead,
        seed=draw.seed,
        step=draw.step,
    )


def _append(
    paths: Float[Tensor, "B N L"] | Int[Tensor, "B N L"],
    parents: Int[Tensor, "B M"],
    begins: Int[Tensor, "B M"],
    new: Float[Tensor, "B M E"] | Int[Tensor, "B M E"],
    length: Int[Tensor, "B M"],
) -> Tensor:
    """The paths of these parents, each with the first `length` of the new entries from `begins`."""
    width = paths.shape[2]
    index = parents[..., None].expand(-1, -1, width)
    place = torch.arange(width, device=paths.device) - begins[..., None]
    inside = (place >= 0) & (place < length[..., None])
    values = new.gather(2, place.clamp(0, new.shape[2] - 1))
    return torch.where(inside, values, paths.gather(1, index))
