"""The prefix tree of all semantic IDs as flat CSR arrays: codes in, allowed children out.

Items are sorted by their codes, so that every node owns one contiguous range of *leaves*
(distinct semantic IDs) and its children are contiguous too. Level 0 is the root, level l holds
one node per distinct prefix of l codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recast.types import RecastError


@dataclass(frozen=True, kw_only=True, slots=True)
class Trie:
    """CSR prefix tree over the codes of a catalogue.

    Example, items 0, 1, 2 with codes (1, 0), (0, 2), (1, 5): sorted order is items 1, 0, 2;
    `codes=([0, 1], [2, 0, 5])  children=([0, 2], [0, 1, 3], [0, 1, 2, 3])  items=[1, 0, 2]`.
    """

    codes: tuple[Int[Tensor, " _nodes"], ...]
    """Last code of every node, for levels 1..L."""
    children: tuple[Int[Tensor, " _nodes"], ...]
    """For levels 0..L-1: node n's children are `children[l][n]` up to `children[l][n + 1]` of the
    next level. For level L, the same range within `items`: the items that share the SID."""
    items: Int[Tensor, " I"]
    """Item of every position in sorted order."""
    leaves: Int[Tensor, " I"]
    """Leaf of every item."""

    def to(self, device: torch.device) -> Trie:
        """The same trie on another device."""
        return Trie(
            codes=tuple(codes.to(device) for codes in self.codes),
            children=tuple(offsets.to(device) for offsets in self.children),
            items=self.items.to(device),
            leaves=self.leaves.to(device),
        )

    @property
    def num_levels(self) -> int:
        return len(self.codes)

    @property
    def num_leaves(self) -> int:
        return len(self.codes[-1])

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
        if self.num_leaves == len(self.items) or not leaf.shape[1]:
            return leaf
        begins = torch.searchsorted(leaf, leaf)
        ends = torch.searchsorted(leaf, leaf, right=True)
        position = torch.arange(leaf.shape[1], device=leaf.device)
        full = (ends - begins >= self.sharing(leaf)) & (position == begins)
        return torch.where(full, leaf, self.num_leaves).sort(dim=1).values


def build_trie(codes: Int[Tensor, "I L"]) -> Trie:
    """Sort the items by code and lay the levels out; codes that repeat share a leaf.

    Raises `RecastError` when there is no item or a code is negative.
    """
    if not len(codes):
        raise RecastError("the catalogue holds 0 items: give at least one")
    if int(codes.min()) < 0:
        row = int((codes < 0).any(1).nonzero()[0])
        raise RecastError(f"item {row} has the code {codes[row].tolist()}: codes start at 0")
    narrow = torch.int16 if int(codes.max()) < 2**15 else torch.int32
    columns = [column.to(narrow).contiguous() for column in codes.T]
    order = torch.arange(len(codes))
    for column in reversed(columns):
        order = order[column[order].sort(stable=True).indices]
    changed = torch.zeros(len(order), dtype=torch.bool)
    changed[0] = True
    above = torch.zeros(1, dtype=torch.long)
    level_codes, children = [], []
    for column in columns:
        ordered = column[order]
        changed[1:] |= ordered[1:] != ordered[:-1]
        node = changed.cumsum(0, dtype=torch.int32) - 1
        children.append(_offsets(node[above], int(node[-1]) + 1))
        above = changed.nonzero()[:, 0]
        level_codes.append(ordered[above])
    children.append(_offsets(above, len(order)))
    leaves = torch.empty_like(node)
    leaves[order] = node
    return Trie(
        codes=tuple(level_codes), children=tuple(children), items=order.int(), leaves=leaves
    )


def _offsets(begins: Int[Tensor, " _nodes"], end: int) -> Int[Tensor, " _offsets"]:
    return torch.cat([begins.int(), torch.tensor([end], dtype=torch.int32)])
