"""The nodes of all levels of a trie in one row: for a search in which branches of equal length
stand on different levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from recast.items.trie import Trie


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatTrie:
    """Nodes level by level, the roots first. The example of `Trie`, as texts: root, the edges 0 2
    and 1, then 9 (an empty edge), 0 and 5: `codes=[-1, 0, 1, 9, 0, 5]  ends=[0, 2, 1, 2, 2, 2]`
    `first=[1, 3, 4, 3, 4, 5]  count=[2, 1, 2, 0, 0, 0]  leaf=[0, 0, 1, 0, 1, 2]`
    `below=[3, 1, 2, 1, 1, 1]`.
    """

    codes: Int[Tensor, " N"]
    """The token that decided; -1 of a root."""
    ends: Int[Tensor, " N"]
    """Tokens up to and with the node's edge."""
    first: Int[Tensor, " N"]
    """Its first child."""
    count: Int[Tensor, " N"]
    """Its children."""
    leaf: Int[Tensor, " N"]
    """First leaf below it."""
    below: Int[Tensor, " N"]
    """Leaves below it; where it is one nothing is decided any more."""

    def is_open(
        self, nodes: Int[Tensor, "B N C"], excluded: Int[Tensor, "B S"]
    ) -> Bool[Tensor, "B N C"]:
        """Whether a leaf below each node is none of the row's excluded ones, which ascend."""
        low = self.leaf[nodes].flatten(1)
        high = low + self.below[nodes].flatten(1)
        taken = torch.searchsorted(excluded, high) - torch.searchsorted(excluded, low)
        return (high - low > taken).view_as(nodes)


def flatten(trie: Trie) -> FlatTrie:
    """A trie's nodes in a row."""
    device = trie.items.device
    sizes = [len(offsets) - 1 for offsets in trie.children]
    starts = torch.tensor(sizes).cumsum(0).tolist()
    nodes = [torch.arange(size, device=device) for size in sizes]
    leaf = [trie.first_leaf(level, x) for level, x in enumerate(nodes)]
    below = [trie.num_below(level, x) for level, x in enumerate(nodes)]
    counts = [offsets.diff().long() for offsets in trie.children[:-1]]
    first = [
        offsets[:-1].long() + start for offsets, start in zip(trie.children, starts, strict=True)
    ]
    nothing = torch.zeros_like(nodes[-1])
    own = nodes[-1] + starts[-1] - sizes[-1]
    return FlatTrie(
        codes=F.pad(torch.cat(trie.codes).long(), (sizes[0], 0), value=-1),
        ends=torch.cat([trie.end(level, x) for level, x in enumerate(nodes)]),
        first=torch.cat([*first[:-1], own]),
        count=torch.cat([*counts, nothing]),
        leaf=torch.cat(leaf),
        below=torch.cat(below),
    )
