"""The packed forward: every prompt goes through the model once, however many branches it has.

A *branch* is one rollout or one target of the prompt; branches that begin alike share their
beginning. One row of a call is `[prompt without its last token | root | nodes]`, a node for every
distinct beginning. The prompt is padded on the right, so plain causal attention is exact for its
real tokens; the *root* is the prompt's last token, moved to a fixed column so that the first
token's distribution sits in the same place for every row. A node's query attends to its prompt, to
the root and to its own ancestors; its position continues from the prompt's length. No mask of
prompt x prompt is ever built (`recast.policy.attention`).
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


def root_layout(lengths: Int[Tensor, " B"], width: int) -> Layout:
    """Layout of `[prompt of width | root]`; `lengths` counts the root too."""
    columns = torch.arange(width, device=lengths.device).expand(len(lengths), -1)
    positions = lengths[:, None] - 1
    mask = torch.cat([columns < positions, torch.ones_like(positions, dtype=torch.bool)], dim=1)
    return Layout(
        prompt_width=width,
        mask=mask[:, None, None],
        query_positions=positions,
        key_positions=torch.cat([columns, positions], dim=1),
    )


def split_root(
    tokens: Int[Tensor, "B P"], lengths: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B W"], Int[Tensor, "B 1"]]:
    """A right-padded prompt as (all tokens but the last, the last); W = longest prompt - 1.

    The column that a prompt's last token leaves behind is never attended to.
    """
    return tokens[:, : int(lengths.max()) - 1], tokens.gather(1, (lengths - 1)[:, None])


class Nodes(NamedTuple):
    """Tokens of one depth that branches of a row share, M of them, or fewer and fillers."""

    number: Int[Tensor, "B K"]
    """The node of each branch; means nothing where its token is masked out."""
    parents: Int[Tensor, "B M"]
    tokens: Int[Tensor, "B M"]


def distinct_beginnings(
    starts: Int[Tensor, "B K"], tokens: Int[Tensor, "B K E"], mask: Bool[Tensor, "B K E"]
) -> list[Nodes]:
    """Branches that go on from the same start by the same tokens as one, depth by depth as far as
    `mask` goes: `mask` is True for the first tokens of a branch. Parents are of the depth before,
    the first ones are starts. A row with fewer nodes is filled with token 0 behind parent 0.

    Every depth in one go, for what a device is asked in between it has to finish first.

    >>> starts, tokens = torch.tensor([[0, 1, 0]]), torch.tensor([[[7, 8], [7, 8], [7, 9]]])
    >>> first, second = distinct_beginnings(starts, tokens, tokens > 0)
    >>> first.number.tolist(), first.parents.tolist(), first.tokens.tolist()
    ([[0, 1, 0]], [[0, 1]], [[7, 7]])
    >>> second.number.tolist(), second.parents.tolist(), second.tokens.tolist()
    ([[0, 2, 1]], [[0, 0, 1]], [[8, 9, 8]])
    """
    depths = int(mask.any(dim=0).any(dim=0).sum())
    tokens, mask = tokens[:, :, :depths], mask[:, :, :depths]
    keys = torch.cat([starts[..., None], tokens.masked_fill(~mask, -1)], dim=2)
    order = torch.arange(keys.shape[1], device=keys.device).expand(len(keys), -1)
    for depth in reversed(range(depths + 1)):
        order = order.gather(1, keys[:, :, depth].gather(1, order).argsort(dim=1, stable=True))
    order = order[..., None]
    keys = keys.gather(1, order.expand_as(keys))
    differs = F.pad((keys[:, 1:] != keys[:, :-1]).cumsum(2) > 0, (0, 0, 1, 0), value=True)
    order = order.expand(-1, -1, depths)
    is_new = differs[..., 1:] & mask.gather(1, order)
    rank = is_new.cumsum(1) - 1
    index = torch.empty_like(rank).scatter_(1, order, rank)
    found: list[Nodes] = []
    before = keys[..., 0]
    for depth, count in enumerate(is_new.sum(1).amax(0).tolist()):
        place = rank[..., depth].masked_fill(~is_new[..., depth], count)
        nothing = keys.new_zeros(len(keys), count + 1)
        parents, new = (
            nothing.scatter(1, place, x)[:, :count] for x in (before, keys[..., depth + 1])
        )
        found.append(Nodes(index[..., depth], parents, new))
        before = rank[..., depth]
    return found


def grow(layout: Layout, parents: Int[Tensor, "B M"]) -> Layout:
    """Layout of M nodes one token deeper; `parents` index the queries of `layout`."""
    ancestors = layout.mask.gather(
        2, parents[:, None, :, None].expand(-1, -1, -1, layout.mask.shape[3])
    )
    itself = torch.eye(parents.shape[1], dtype=torch.bool, device=parents.device)
    positions = layout.query_positions.gather(1, parents) + 1
    return Layout(
        prompt_width=0,
        mask=torch.cat([ancestors, itself.expand(len(parents), 1, -1, -1)], dim=-1),
        query_positions=positions,
        key_positions=torch.cat([layout.key_positions, positions], dim=1),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """The nodes that branches grow by, over one or several tokens, as queries of one call."""

    tokens: Int[Tensor, "B M"]
    layout: Layout
    places: Int[Tensor, "B K E"]
    """Which of the M nodes each token became; 0 for one that is not sent."""


def grow_branches(
    layout: Layout,
    starts: Int[Tensor, "B K"],
    tokens: Int[Tensor, "B K E"],
    mask: Bool[Tensor, "B K E"],
) -> Growth:
    """Nodes for the first tokens of every branch, as many as `mask` has True ones.

    `starts` are the queries of `layout` that the branches go on from. Branches that begin alike
    share their beginning.
    """
    layers, places, found, count = [layout], [], [starts[:, :0]], 0
    num_tokens = starts.new_zeros(())
    for depth, nodes in enumerate(distinct_beginnings(starts, tokens, mask)):
        layers.append(grow(layers[-1], nodes.parents))
        found.append(nodes.tokens)
        places.append(nodes.number + count)
        reached = (nodes.number + 1).masked_fill(~mask[:, :, depth], 0)
        num_tokens = num_tokens + reached.amax(1).sum()
        count += nodes.tokens.shape[1]
    width = layers[-1].mask.shape[3]
    masks = [layout.mask[:, :, :0], *(x.mask for x in layers[1:])]
    masks = [F.pad(mask, (0, width - mask.shape[3])) for mask in masks]
    positions = [layout.query_positions[:, :0], *(x.query_positions for x in layers[1:])]
    place = torch.stack(places, dim=2) if places else starts[..., None][..., :0]
    place = F.pad(place, (0, tokens.shape[2] - place.shape[2]))
    return Growth(
        tokens=torch.cat(found, dim=1),
        layout=Layout(
            prompt_width=0,
            mask=torch.cat(masks, dim=2),
            query_positions=torch.cat(positions, dim=1),
            key_positions=layers[-1].key_positions,
            num_tokens=num_tokens,
        ),
        places=place.masked_fill(~mask, 0),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """One call of the model for prompts and all their branches.

    A branch's last token is not sent, nothing is read behind it. Example, the prompts 1 5 9 and 1 7
    with two branches each; those of the first begin alike and share a node, the fifth column of its
    row is filling, so that of 10 columns 8 are tokens:

    >>> prompts, lengths = torch.tensor([[1, 5, 9], [1, 7, 0]]), torch.tensor([3, 2])
    >>> branches = torch.tensor([[[2, 8], [2, 9]], [[3, 8], [4, 8]]])
    >>> packed = pack(prompts, lengths, branches)
    >>> packed.tokens.tolist(), packed.positions.tolist()
    ([[1, 5, 9, 2, 0], [1, 7, 7, 3, 4]], [[0, 1, 2, 3, 3], [0, 1, 1, 2, 2]])
    >>> int(packed.layout.num_tokens)
    8
    >>> packed.places.tolist()
    [[[0, 1], [0, 1]], [[0, 1], [0, 2]]]
    """

    tokens: Int[Tensor, "B S"]
    positions: Int[Tensor, "B S"]
    layout: Layout
    places: Int[Tensor, "B K L"]
    """Column, counted from the root (0), that every branch token is read behind; 0 too where that
    was not sent."""


def pack(
    tokens: Int[Tensor, "B P"],
    lengths: Int[Tensor, " B"],
    branches: Int[Tensor, "B K L"],
    read: Bool[Tensor, "B K L"] | None = None,
    *,
    start_token: int | None = None,
) -> Packed:
    """Prompts and branches as one row each. K may be 0 and L may be 1.

    `read` are the tokens whose probability is asked for, by default all; what no such token follows
    is not sent. The `start_token` of an encoder-decoder is the root behind a prompt that stays
    whole.
    """
    if start_token is not None:
        tokens = F.pad(tokens, (0, 1)).scatter(1, lengths[:, None], start_token)
        lengths = lengths + 1
    prompt, root = split_root(tokens, lengths)
    width = prompt.shape[1]
    columns = torch.arange(width, device=tokens.device).expand(len(tokens), -1)
    start = root_layout(lengths, width)
    if read is None:
        read = torch.ones_like(branches, dtype=torch.bool)
    sent = read[:, :, 1:].flip(2).cummax(2).values.flip(2) if read.numel() else read[:, :, 1:]
    first = torch.zeros_like(branches[:, :, 0])
    growth = grow_branches(start, first, branches[:, :, :-1], sent)
    positions = torch.cat([start.query_positions, growth.layout.query_positions], dim=1)
    count = growth.layout.mask.shape[3] - start.mask.shape[3]
    return Packed(
        tokens=torch.cat([prompt, root, growth.tokens], dim=1),
        positions=torch.cat([columns, positions], dim=1),
        layout=Layout(
            prompt_width=width,
            mask=torch.cat([F.pad(start.mask, (0, count)), growth.layout.mask], dim=2),
            query_positions=positions,
            key_positions=growth.layout.key_positions,
            num_tokens=lengths.sum() + growth.layout.num_tokens,
        ),
        places=F.pad((growth.places + 1).masked_fill(~sent, 0), (1, 0)),
    )


def packed_forward(model: torch.nn.Module, packed: Packed, **others: Any) -> Float[Tensor, "B N W"]:
    """Last hidden states of the roots and the nodes."""
    hidden = hidden_states(
        model, packed.positions, tokens=packed.tokens, layout=packed.layout, **others
    )
    return hidden[:, packed.layout.prompt_width :]
