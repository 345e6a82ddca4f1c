"""The prefix tree of all items as flat CSR arrays: what they write in, allowed children out.

A level is a decision, an edge is one to n tokens: the one that decides and those that then have to
follow. For semantic IDs every edge is one code and a level a code; for texts paths are compressed,
so that a node has several children or none. Items are sorted by what they write, so that every
node owns one contiguous range of *leaves* (distinct sequences) and its children are contiguous too.
Level 0 holds the roots, one per domain: items of several domains may write the same and share no
node. A leaf that is reached before the last level goes on with empty edges, so that all leaves are
nodes of the last level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from recast.types import RecastError, require


@dataclass(frozen=True, kw_only=True, slots=True)
class Trie:
    """CSR prefix tree over what the items of a catalogue write.

    Example, items 0, 1, 2 with codes (1, 0), (0, 2), (1, 5): sorted order is items 1, 0, 2;
    `codes=([0, 1], [2, 0, 5])  children=([0, 2], [0, 1, 3], [0, 1, 2, 3])  items=[1, 0, 2]`.
    As texts, the tokens (1, 0), (0, 2) and (1, 5) with 9 as pad: item 1 ends at its first edge, so
    `codes=([0, 1], [9, 0, 5])  ends=([2, 1], [2, 2, 2])`, the rest alike.
    """

    codes: tuple[Int[Tensor, " _nodes"], ...]
    """What decided for every node, for levels 1..D: a local code, or the first token of its edge;
    the pad token where the edge is empty."""
    children: tuple[Int[Tensor, " _nodes"], ...]
    """For levels 0..D-1: node n's children are `children[l][n]` up to `children[l][n + 1]` of the
    next level. For level D, the same range within `items`: the items that share the leaf."""
    items: Int[Tensor, " _written"]
    """Item of every position in sorted order; those that write nothing are in none."""
    leaves: Int[Tensor, " I"]
    """Leaf of every item; `num_leaves` for one that writes nothing."""
    domain_widths: tuple[tuple[int, ...], ...]
    """Of every domain in turn, the children that a node of levels 0..D-1 has at most."""
    ends: tuple[Int[Tensor, " _nodes"], ...] | None = None
    """Tokens from the root up to and with every node's edge, for levels 1..D; None: as many as
    levels."""

    def to(self, device: torch.device) -> Trie:
        """The same trie on another device."""
        return Trie(
            codes=tuple(codes.to(device) for codes in self.codes),
            children=tuple(offsets.to(device) for offsets in self.children),
            items=self.items.to(device),
            leaves=self.leaves.to(device),
            domain_widths=self.domain_widths,
            ends=None if self.ends is None else tuple(ends.to(device) for ends in self.ends),
        )

    @property
    def num_levels(self) -> int:
        return len(self.codes)

    @property
    def num_leaves(self) -> int:
        return len(self.codes[-1])

    @property
    def widths(self) -> tuple[int, ...]:
        """Children that a node of levels 0..D-1 has at most."""
        return tuple(max(of_domains) for of_domains in zip(*self.domain_widths, strict=True))

    @property
    def has_collisions(self) -> bool:
        """Whether several items share a leaf."""
        return self.num_leaves < len(self.items)

    def holds(self, domains: Int[Tensor, " B"]) -> Bool[Tensor, "B I"]:
        """Which items are of each domain and write something."""
        first, end = (self.first_leaf(0, domains + i)[:, None] for i in (0, 1))
        return (first <= self.leaves) & (self.leaves < end)

    def end(self, level: int, nodes: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Tokens up to and with the edge of nodes of `level`; 0 at the root."""
        if self.ends is None or level == 0:
            return torch.full_like(nodes, level)
        return self.ends[level - 1][nodes].long()

    def num_below(self, level: int, nodes: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Leaves below each node of `level`."""
        return self.first_leaf(level, nodes + 1) - self.first_leaf(level, nodes)

    def first_leaf(self, level: int, nodes: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """First leaf below each node of `level`; a node past the end gives the number of leaves."""
        for offsets in self.children[level:-1]:
            nodes = offsets[nodes].long()
        return nodes

    def sharing(self, leaves: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """How many items share each leaf; 0 for a number past the last leaf."""
        low, high = (self.children[-1][(leaves + i).clamp(max=self.num_leaves)] for i in (0, 1))
        return (high - low).long()

    def allowed(
        self, level: int, nodes: Int[Tensor, "B N"], seen: Int[Tensor, "B S"]
    ) -> tuple[Int[Tensor, "B N C"], Bool[Tensor, "B N C"]]:
        """Children of nodes at `level`, padded to the widest, and which of them may be taken.

        Column c holds the first child plus c; padding repeats the first.
        `seen` holds, ascending, each row's excluded leaves (`num_leaves` as padding). A child is
        allowed if and only if the leaves below it, less the excluded ones, are more than none.
        A node of -1 (a dead branch) has no allowed child.
        """
        parent = nodes.clamp(min=0)
        low = self.children[level][parent].long()
        fan_out = self.children[level][parent + 1].long() - low
        width = int(fan_out.max())
        column = torch.arange(width + 1, device=nodes.device)
        real = column[:-1] < fan_out[..., None]
        child = low[..., None] + column[:-1] * real
        allowed = real & (nodes >= 0)[..., None]
        if seen.shape[1]:
            # Siblings are neighbours: where one ends, the next begins.
            edges = low[..., None] + column.minimum(fan_out[..., None])
            edges = self.first_leaf(level + 1, edges)
            taken = torch.searchsorted(seen, edges.flatten(1), out_int32=True).view_as(edges)
            allowed &= edges.diff(dim=-1) > taken.diff(dim=-1)
        return child, allowed

    def is_open(
        self, level: int, nodes: Int[Tensor, "B N"], excluded: Int[Tensor, "B S"]
    ) -> Bool[Tensor, "B N"]:
        """Whether a leaf below each node of `level` is not among the row's excluded ones."""
        edges = torch.stack([self.first_leaf(level, nodes + i) for i in (0, 1)], dim=-1)
        taken = torch.searchsorted(excluded, edges.flatten(1)).view_as(edges)
        return (edges.diff(dim=-1) > taken.diff(dim=-1))[..., 0]

    def excluded(self, seen_items: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
        """Each row's excluded leaves, ascending, from its seen items (-1 = none).

        A leaf is excluded when *all* items that share it are seen; an item seen twice counts once.
        """
        seen_items = seen_items.sort(dim=1).values
        repeated = seen_items[:, 1:] == seen_items[:, :-1]
        seen_items[:, 1:].masked_fill_(repeated, -1)
        leaf = torch.where(
            seen_items >= 0, self.leaves[seen_items.clamp(min=0)].long(), self.num_leaves
        )
        leaf = leaf.sort(dim=1).values
        if not (self.has_collisions and leaf.shape[1]):
            return leaf
        begins = torch.searchsorted(leaf, leaf)
        ends = torch.searchsorted(leaf, leaf, right=True)
        position = torch.arange(leaf.shape[1], device=leaf.device)
        full = (ends - begins >= self.sharing(leaf)) & (position == begins)
        return torch.where(full, leaf, self.num_leaves).sort(dim=1).values


def build_trie(codes: Int[Tensor, "I L"], domain_of: Int[Tensor, " I"] | None = None) -> Trie:
    """Sort the items by domain and code and lay the levels out, one a code; codes that repeat
    within a domain share a leaf. By default all are of domain 0. Rows of -1 write nothing.

    Raises `RecastError` when no item writes anything and for a row with another negative code.
    """
    _require_items(len(codes))
    is_written = (codes >= 0).all(1)
    wrong = ~is_written & (codes != -1).any(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise RecastError(f"item {row} has the code {codes[row].tolist()}: codes start at 0")
    written = is_written.nonzero()[:, 0]
    require(len(written) > 0, "items with a semantic ID", 0, f"give one of {len(codes)} its codes")
    domains = torch.zeros(len(codes), dtype=torch.long) if domain_of is None else domain_of.long()
    domains = domains[written]
    (in_domains, *columns), order = _sorted(torch.cat([domains[:, None], codes[written]], dim=1))
    num_domains = int(domains.max()) + 1
    changed = torch.zeros(len(order), dtype=torch.bool)
    above = torch.searchsorted(in_domains[order].contiguous(), torch.arange(num_domains))
    changed[above] = True
    level_codes, children = [], []
    for column in columns:
        ordered = column[order]
        changed[1:] |= ordered[1:] != ordered[:-1]
        node = changed.cumsum(0, dtype=torch.int32) - 1
        children.append(_offsets(node[above], int(node[-1]) + 1))
        above = changed.nonzero()[:, 0]
        level_codes.append(ordered[above])
    children.append(_offsets(above, len(order)))
    leaves = torch.full((len(codes),), int(node[-1]) + 1, dtype=torch.int32)
    leaves[written[order]] = node
    return Trie(
        codes=tuple(level_codes),
        children=tuple(children),
        items=written[order].int(),
        leaves=leaves,
        domain_widths=_widths(children),
    )


def build_compressed_trie(
    tokens: Int[Tensor, "I L"], lengths: Int[Tensor, " I"], pad_token: int
) -> Trie:
    """The same for sequences of unequal lengths: a level is a place where items differ.

    What follows an item's last token is ignored. Raises `RecastError` when there is no item and
    when an item is the beginning of another one: no decision would ever end it.
    """
    _require_items(len(tokens))
    if not bool((lengths > 0).all()):
        raise RecastError(f"item {int(lengths.argmin())} writes nothing: give it a token")
    place = torch.arange(tokens.shape[1])
    # Behind the last token, below every token: what ends is sorted before what goes on.
    written = tokens.masked_fill(place >= lengths[:, None], -1)
    _, order = _sorted(written)
    written, length = written[order], lengths[order].long()
    # Tokens that an item shares with the one before it; all of its own where they are equal.
    same = (written[1:] == written[:-1]).cumprod(1).sum(1)
    shared = F.pad(same.minimum(length[:-1]), (1, 0), value=-1)
    repeats = F.pad(same == written.shape[1], (1, 0))
    first = torch.zeros(len(order), dtype=torch.bool)
    first[0] = True
    end, begins = torch.zeros_like(length), first.nonzero()[:, 0]
    codes, children, ends = [], [], []
    while True:
        ended = end >= length
        decided = written.gather(1, end.clamp(max=tokens.shape[1] - 1)[:, None])[:, 0]
        decided = torch.where(ended, pad_token, decided)
        first[1:] |= decided[1:] != decided[:-1]
        node = first.long().cumsum(0) - 1
        # The edge goes on as far as all that is below it agrees, at most to the end of an item.
        agreed = torch.where(first, length, shared.minimum(length))
        agreed = length[first].scatter_reduce(0, node, agreed, "amin")
        branching = torch.zeros(len(agreed), dtype=torch.bool)
        branching[node[~(first | repeats)]] = True
        stuck = branching & (agreed >= length[first])
        if bool(stuck.any()):
            row = int(order[first.nonzero()[:, 0][stuck][0]])
            raise RecastError(
                f"item {row} writes {tokens[row, : int(lengths[row])].tolist()}, which another "
                "item begins with: end every item in a token that stands nowhere else"
            )
        children.append(_offsets(node[begins].to(torch.int32), int(node[-1]) + 1))
        begins, end = first.nonzero()[:, 0], agreed[node]
        codes.append(decided[begins].int())
        ends.append(agreed.int())
        if not bool(branching.any()):
            break
    children.append(_offsets(begins.to(torch.int32), len(order)))
    leaves = torch.empty(len(order), dtype=torch.int32)
    leaves[order] = node.int()
    return Trie(
        codes=tuple(codes),
        children=tuple(children),
        items=order.int(),
        leaves=leaves,
        domain_widths=_widths(children),
        ends=tuple(ends),
    )


def _widths(children: list[Int[Tensor, " _nodes"]]) -> tuple[tuple[int, ...], ...]:
    """Of every domain in turn, of every level above the leaves."""
    bounds, of_levels = torch.arange(len(children[0])), []
    for offsets in children[:-1]:
        fan_out = offsets.diff().split(bounds.diff().tolist())
        of_levels.append([int(below.max()) for below in fan_out])
        bounds = offsets[bounds].long()
    return tuple(zip(*of_levels, strict=True))


def _require_items(count: int) -> None:
    if not count:
        raise RecastError("the catalogue holds 0 items: give at least one")


def _sorted(rows: Int[Tensor, "I L"]) -> tuple[list[Int[Tensor, " I"]], Int[Tensor, " I"]]:
    """The columns in as few bytes as they need, and the rows in ascending order."""
    narrow = torch.int16 if int(rows.max()) < 2**15 else torch.int32
    columns = [column.to(narrow).contiguous() for column in rows.T]
    order = torch.arange(len(rows))
    for column in reversed(columns):
        order = order[column[order].sort(stable=True).indices]
    return columns, order


def _offsets(begins: Int[Tensor, " _nodes"], end: int) -> Int[Tensor, " _offsets"]:
    return torch.cat([begins.int(), torch.tensor([end], dtype=torch.int32)])
