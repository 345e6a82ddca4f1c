"""The prefix tree of all semantic IDs as flat CSR arrays: codes in, allowed children out.

Items are sorted by their codes, so that every node owns one contiguous range of *leaves*
(distinct semantic IDs) and its children are contiguous too. Level 0 is the root, level l holds
one node per distinct prefix of l codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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

    def nodes_of(self, level: int, leaves: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """The node of `level` above each leaf."""
        if level == 0:
            return torch.zeros_like(leaves)
        starts = torch.arange(len(self.codes[level - 1]), device=leaves.device)
        return torch.searchsorted(self.first_leaf(level, starts), leaves, right=True) - 1

    def allowed(
        self, level: int, nodes: Int[Tensor, "B N"], seen: Int[Tensor, "B S"]
    ) -> tuple[Int[Tensor, "B N C"], Bool[Tensor, "B N C"]]:
        """Children of nodes at `level`, padded to the widest, and which of them may be taken.

        `seen` holds, ascending, each row's excluded leaves (`num_leaves` as padding). A child is
        allowed if and only if the leaves below it, less the excluded ones, are more than none.
        A node of -1 (a dead branch) has no allowed child.
        """
        alive = nodes >= 0
        parent = nodes.clamp(min=0)
        low = self.children[level][parent].long()
        fan_out = self.children[level][parent + 1].long() - low
        width = int(fan_out.max())
        child = low[..., None] + torch.arange(width, device=nodes.device)
        allowed = (child < (low + fan_out)[..., None]) & alive[..., None]
        child = torch.where(allowed, child, low[..., None])
        if seen.shape[1]:
            first, last = (self.first_leaf(level + 1, c).flatten(1) for c in (child, child + 1))
            taken = torch.searchsorted(seen, last) - torch.searchsorted(seen, first)
            allowed &= ((last - first) > taken).view_as(child)
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
        sharing = torch.diff(self.children[-1].long())
        sharing = torch.cat([sharing, sharing.new_ones(1)])[leaf]
        begins = torch.searchsorted(leaf, leaf)
        ends = torch.searchsorted(leaf, leaf, right=True)
        position = torch.arange(leaf.shape[1], device=leaf.device)
        full = (ends - begins >= sharing) & (position == begins)
        return torch.where(full, leaf, self.num_leaves).sort(dim=1).values


def build_trie(codes: Int[Tensor, "I L"]) -> Trie:
    """Sort the items by code and lay the levels out; codes that repeat share a leaf.

    Raises `RecastError` when there is no item or a code is negative.
    """
    table = codes.numpy()
    if not len(table):
        raise RecastError("the catalogue holds 0 items: give at least one")
    if table.min() < 0:
        row = int(np.argmax(table.min(axis=1) < 0))
        raise RecastError(f"item {row} has the code {table[row].tolist()}: codes start at 0")
    order = np.lexsort(table.T[::-1])
    ordered = table[order]
    narrow = np.int16 if table.max() < 2**15 else np.int32
    changed = np.zeros(len(order), dtype=bool)
    changed[0] = True
    above = np.zeros(1, dtype=np.int64)
    level_codes, children = [], []
    for level in range(table.shape[1]):
        changed[1:] |= ordered[1:, level] != ordered[:-1, level]
        begins = np.flatnonzero(changed)
        level_codes.append(torch.from_numpy(ordered[begins, level].astype(narrow)))
        children.append(_offsets(np.searchsorted(begins, above), len(begins)))
        above = begins
    children.append(_offsets(above, len(order)))
    leaves = np.empty(len(order), dtype=np.int32)
    leaves[order] = np.cumsum(changed) - 1
    return Trie(
        codes=tuple(level_codes),
        children=tuple(children),
        items=torch.from_numpy(order.astype(np.int32)),
        leaves=torch.from_numpy(leaves),
    )


def _offsets(begins: np.ndarray, end: int) -> Tensor:
    return torch.from_numpy(np.append(begins, end).astype(np.int32))
