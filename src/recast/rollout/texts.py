"""Beam search over items of unequal lengths, as texts are: token by token, as transformers has it.

After t tokens there are the `group_size` best beginnings of t tokens; an item that is finished
leaves them for a list of the best items so far, if it is among the best continuations of its step.
A beginning that the worst of a full list beats is dropped: no token makes it more probable. The
search ends where no beginning is left.

Most tokens of a text are forced. They are sent with the choice before them up to the next place at
which a beam of any row decides: no beam is dropped for another before that, so that the model is
asked at few of the steps and reads no token in vain. In the `trie` space they have probability 1
and are sent where something is decided behind them, if at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.items.flat import FlatTrie, flatten
from recast.policy.attention import Layout
from recast.policy.body import hidden_states
from recast.policy.head import node_scores
from recast.policy.load import Policy
from recast.policy.logprobs import token_scores
from recast.policy.packed import grow_branches
from recast.rollout.decoder import Decoder
from recast.rollout.tree import as_groups, prefill
from recast.types import Draw, LogprobSpace, Prompts, RolloutGroups


def beam_texts(
    policy: Policy, prompts: Prompts, group_size: int, draw: Draw, decoder: Decoder
) -> RolloutGroups:
    """What `recast.rollout.beam.beam_search` gives."""
    catalog = policy.catalog
    search = _Search(policy, prompts, draw.logprob_space)
    masses = decoder.masses(prompts, catalog.trie)
    mass = None
    if masses is not None:
        mass = F.pad(torch.cat(masses, dim=1), (len(catalog.domains), 0))
    beams = found = search.begin()
    found = found.gather(torch.zeros_like(beams.node[:, :0]))
    for length in range(catalog.max_length):
        ahead = search.ahead(beams, length)
        if not ahead.any_alive:
            break
        if ahead.any_due:
            search.send(beams, ahead.due)
        grown = search.grown(beams, length, ahead)
        ranked = grown.score
        if mass is not None:
            node = grown.node.flatten(1)
            guided = decoder.mix(ranked, mass.gather(1, node).view_as(ranked))
            ranked = guided.masked_fill(ranked == -torch.inf, -torch.inf)
        count, width = min(group_size, ranked[0].numel()), ranked.shape[2]
        flat, is_done = ranked.flatten(1), search.is_done(grown.node, length + 1).flatten(1)
        top, index = flat.topk(count, dim=1)
        top = top.masked_fill(~is_done.gather(1, index), -torch.inf)
        ended = beams.take(grown, index, width, length, top)
        found = found.joined(ended, group_size)
        kept, index = flat.masked_fill(is_done, -torch.inf).topk(count, dim=1)
        if found.ranked.shape[1] == group_size:
            kept = kept.masked_fill(kept <= found.ranked[:, -1:], -torch.inf)
        beams = beams.take(grown, index, width, length, kept)
    lengths = search.flat.ends[found.node].masked_fill(~found.is_alive, 0)
    return as_groups(
        policy,
        prompts,
        tokens=found.tokens,
        logprobs=found.logprobs,
        lengths=lengths,
        alive=found.is_alive,
        target_logprobs=search.target_logprobs,
        group_size=group_size,
        draw=draw,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grown:
    """C continuations of every beam by one token."""

    token: Int[Tensor, "B N C"]
    node: Int[Tensor, "B N C"]
    score: Float[Tensor, "B N C"]
    """Of the whole beginning; -inf of one that is not allowed."""
    logprob: Float[Tensor, "B N C"]


class _Ahead(NamedTuple):
    """What the next token of every beam takes, and what of it shapes depend on: asked for at once,
    for a device that is asked finishes first."""

    due: Bool[Tensor, "B N"]
    """Beams that need the model. Where forced tokens have probability 1, those that decide."""
    decides: Bool[Tensor, "B N"]
    any_alive: int
    any_due: int
    width: int
    """Continuations of a beam at most."""


@dataclass(kw_only=True, slots=True)
class _Beams:
    """N beginnings of every row."""

    tokens: Int[Tensor, "B N L"]
    logprobs: Float[Tensor, "B N L"]
    """Of its tokens, and of those after them that are forced and known already."""
    node: Int[Tensor, "B N"]
    """Whose edge its last token is on."""
    score: Float[Tensor, "B N"]
    ranked: Float[Tensor, "B N"]
    """What it is ranked by; -inf: there is none."""
    sent: Int[Tensor, "B N"]
    """Tokens that the model has seen."""
    query: Int[Tensor, "B N"]
    """Of the last of them in the search's layout, which has one for each that was sent anew."""
    hidden: Float[Tensor, "B N W"]

    @property
    def is_alive(self) -> Bool[Tensor, "B N"]:
        return self.ranked > -torch.inf

    def gather(self, index: Int[Tensor, "B M"]) -> _Beams:
        """Some of them."""

        def of(x: Tensor) -> Tensor:
            if x.ndim == 2:
                return x.gather(1, index)
            return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))

        return _Beams(**{name: of(getattr(self, name)) for name in self.__slots__})

    def take(
        self,
        grown: _Grown,
        index: Int[Tensor, "B M"],
        width: int,
        length: int,
        ranked: Float[Tensor, "B M"],
    ) -> _Beams:
        """M continuations, by their place among those of all beams, `width` of each."""
        taken = self.gather(index // width)
        taken.node, taken.score = (x.flatten(1).gather(1, index) for x in (grown.node, grown.score))
        alive = ranked > -torch.inf
        for paths, new in ((taken.tokens, grown.token), (taken.logprobs, grown.logprob)):
            values = new.flatten(1).gather(1, index)
            paths[:, :, length] = torch.where(alive, values, paths[:, :, length])
        taken.ranked = ranked
        return taken

    def joined(self, other: _Beams, count: int) -> _Beams:
        """The best of both, at most `count`."""
        both = _Beams(
            **{
                name: torch.cat([getattr(self, name), getattr(other, name)], dim=1)
                for name in self.__slots__
            }
        )
        return both.gather(both.ranked.topk(min(count, both.ranked.shape[1]), dim=1).indices)


class _Search:
    """The model's side: keys and values of the prompts and of what was sent behind them."""

    def __init__(self, policy: Policy, prompts: Prompts, space: LogprobSpace) -> None:
        self.policy, self.prompts, self.space = policy, prompts, space
        trie = policy.catalog.trie
        self.flat: FlatTrie = flatten(trie)
        self.excluded = trie.excluded(prompts.seen)
        # The first item below every leaf writes what they all write.
        self._items = trie.items[trie.children[-1][:-1].long()].long()
        start = prefill(policy, prompts, space)
        self.target_logprobs, self._start = start.target_logprobs, start.hidden
        self._cache, self._layout = start.cache, start.layout

    def begin(self) -> _Beams:
        """One beam of each row, with nothing written."""
        node = self.prompts.domains[:, None]
        shape = (*node.shape, self.policy.catalog.max_length)
        logprobs = self.target_logprobs.new_zeros(shape)
        return _Beams(
            tokens=node.new_full(shape, self.policy.catalog.pad_token),
            logprobs=logprobs,
            node=node,
            score=logprobs[..., 0],
            ranked=logprobs[..., 0],
            sent=torch.zeros_like(node),
            query=torch.zeros_like(node),
            hidden=self._start,
        )

    def is_done(self, nodes: Int[Tensor, "*n"], length: int) -> Bool[Tensor, "*n"]:
        """Which nodes are items that have so many tokens."""
        return (self.flat.below[nodes] == 1) & (self.flat.ends[nodes] == length)

    def ahead(self, beams: _Beams, length: int) -> _Ahead:
        alive = beams.is_alive
        decides = alive & (self.flat.ends[beams.node] == length)
        due = (decides if self.space == "trie" else alive) & (beams.sent < length)
        width = torch.where(decides, self.flat.count[beams.node], 1).amax()
        return _Ahead(due, decides, *torch.stack([alive.any(), due.any(), width]).tolist())

    def send(self, beams: _Beams, due: Bool[Tensor, "B N"]) -> None:
        """What the next token of every beam hangs on, and the forced tokens up to the next decision
        of any. Where forced tokens have probability 1, what a decision hangs on."""
        end, alive = self.flat.ends[beams.node], beams.is_alive
        is_trie, is_item = self.space == "trie", self.flat.below[beams.node] == 1
        last = end - is_item.long()  # nothing is read behind the last token of an item
        if not is_trie:
            later = end.masked_fill(~alive | is_item, self.policy.catalog.max_length)
            last, due = last.minimum(later.amin()), alive
        count = (last - beams.sent).clamp(min=0).masked_fill(~due, 0)
        place = torch.arange(int(count.max()), device=count.device)
        edges = self._written(beams.node, beams.sent[..., None] + place)
        sent = place < count[..., None]
        growth = grow_branches(self._layout, beams.query, edges, sent)
        hidden = hidden_states(
            self.policy.model,
            growth.layout.query_positions,
            tokens=growth.tokens,
            layout=growth.layout,
            past_key_values=self._cache,
        )
        if not is_trie:
            self._score_forced(beams, growth.places, hidden, sent)
        newest = growth.places.gather(2, (count - 1).clamp(min=0)[..., None])[..., 0]
        moved = hidden.gather(1, newest[..., None].expand(-1, -1, hidden.shape[2]))
        is_new = count > 0
        beams.hidden = torch.where(is_new[..., None], moved, beams.hidden)
        self._layout = _heads(self._layout, beams.query, growth.layout, newest, is_new)
        beams.query = torch.arange(count.shape[1], device=count.device).expand_as(count)
        beams.sent = beams.sent + count

    def _score_forced(
        self,
        beams: _Beams,
        places: Int[Tensor, "B N E"],
        hidden: Float[Tensor, "B M W"],
        sent: Bool[Tensor, "B N E"],
    ) -> None:
        """Log-probabilities of the forced tokens behind those that were sent."""
        after = beams.sent[..., None] + torch.arange(sent.shape[2], device=sent.device) + 1
        row, beam, at = (sent & (after < self.flat.ends[beams.node][..., None])).nonzero(
            as_tuple=True
        )
        if not len(row):
            return
        nodes, index = (row * hidden.shape[1] + places[row, beam, at]).unique(return_inverse=True)
        place = after[row, beam, at]
        tokens = self._written(beams.node[row, beam], place[:, None])[:, 0]
        scores = node_scores(self.policy.model, hidden.flatten(0, 1)[nodes], index, tokens)
        beams.logprobs = beams.logprobs.index_put((row, beam, place), scores)

    def grown(self, beams: _Beams, length: int, ahead: _Ahead) -> _Grown:
        """All continuations by one token: the children of a node whose edge is at its end, else the
        forced token."""
        decides = ahead.decides
        count = torch.where(decides, self.flat.count[beams.node], 1)
        column = torch.arange(ahead.width, device=count.device)
        real = column < count[..., None]
        child = self.flat.first[beams.node][..., None] + column * real
        node = torch.where(decides[..., None], child, beams.node[..., None])
        forced = self._written(beams.node, torch.full_like(beams.node, length)[..., None])
        token = torch.where(decides[..., None], self.flat.codes[child], forced)
        allowed = real & beams.is_alive[..., None] & self.flat.is_open(node, self.excluded)
        known = beams.logprobs[..., length : length + 1]
        logprob = known.expand(token.shape).masked_fill(~allowed, -torch.inf)
        chosen = decides.nonzero(as_tuple=True)
        if len(chosen[0]):  # the others need no output layer
            hidden, tokens, may = (x[chosen][None] for x in (beams.hidden, token, allowed))
            scores = token_scores(self.policy, hidden, tokens, may, space=self.space, level=0)
            logprob = logprob.index_put(chosen, scores[0])
        return _Grown(
            token=token, node=node, score=beams.score[..., None] + logprob, logprob=logprob
        )

    def _written(
        self, nodes: Int[Tensor, "*n"], places: Int[Tensor, "*n E"]
    ) -> Int[Tensor, "*n E"]:
        """Tokens at these places of the items below nodes, which all have the same there."""
        items = self._items[self.flat.leaf[nodes]]
        tokens = self.policy.catalog.tokens
        return tokens[items[..., None], places.clamp(max=tokens.shape[1] - 1)].long()


def _heads(
    old: Layout,
    query: Int[Tensor, "B N"],
    new: Layout,
    newest: Int[Tensor, "B N"],
    is_new: Bool[Tensor, "B N"],
) -> Layout:
    """A query for each of N beams, of the old or the new layout, which has more keys."""
    was, comes = old.at(query), new.at(newest)
    mask = F.pad(was.mask, (0, comes.mask.shape[3] - was.mask.shape[3]))
    return Layout(
        prompt_width=0,
        mask=torch.where(is_new[:, None, :, None], comes.mask, mask),
        query_positions=torch.where(is_new, comes.query_positions, was.query_positions),
        key_positions=new.key_positions,
    )
