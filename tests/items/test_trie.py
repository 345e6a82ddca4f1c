from __future__ import annotations

from bisect import bisect_left
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recast.items.trie import Trie, build_trie
from recast.types import RecastError


@st.composite
def tables(draw: st.DrawFn) -> list[list[int]]:
    levels = draw(st.integers(1, 4))
    top = draw(st.sampled_from([1, 3, 2**15 - 1, 2**20]))
    row = st.lists(st.integers(0, top), min_size=levels, max_size=levels)
    return draw(st.lists(row, min_size=1, max_size=12))


def prefixes(table: list[list[int]], level: int) -> list[tuple[int, ...]]:
    """Slow reference: the nodes of a level, in order."""
    return sorted({tuple(row[:level]) for row in table})


def slow_allowed(table: list[list[int]], prefix: tuple[int, ...], seen: list[int]) -> set[int]:
    """Slow reference: next codes below which some item is unseen."""
    level = len(prefix)
    return {
        row[level]
        for item, row in enumerate(table)
        if tuple(row[:level]) == prefix and item not in seen
    }


def fast_allowed(trie: Trie, level: int, nodes: list[int], seen: list[list[int]]) -> list[set[int]]:
    width = max(len(row) for row in seen)
    padded = [row + [-1] * (width - len(row)) for row in seen]
    items = torch.tensor(padded, dtype=torch.long).view(len(seen), width)
    before = items.clone()
    excluded = trie.excluded(items)
    assert torch.equal(items, before)
    child, allowed = trie.allowed(level, torch.tensor(nodes).expand(len(seen), -1), excluded)
    return [
        {int(trie.codes[level][c]) for c, ok in zip(*pair, strict=True) if ok}
        for row in zip(child, allowed, strict=True)
        for pair in zip(*row, strict=True)
    ]


@given(table=tables(), data=st.data())
def test_allowed_equals_a_dictionary_trie_on_every_node(
    table: list[list[int]], data: st.DataObject
) -> None:
    trie = build_trie(torch.tensor(table))
    item = st.integers(0, len(table) - 1)
    seen = data.draw(st.lists(st.lists(item, max_size=2 * len(table)), min_size=1, max_size=3))
    for level in range(len(table[0])):
        nodes = prefixes(table, level)
        found = fast_allowed(trie, level, [*range(len(nodes)), -1], seen)
        wanted = [
            slow_allowed(table, node, row) if node is not None else set()
            for row in seen
            for node in [*nodes, None]
        ]
        assert found == wanted


def check_layout(table: list[list[int]], trie: Trie) -> None:
    """Every array against sorted sets of prefixes."""
    levels = len(table[0])
    leaves = prefixes(table, levels)
    assert trie.num_levels == levels
    assert trie.num_leaves == len(leaves)
    assert [leaves[leaf] for leaf in trie.leaves.tolist()] == [tuple(row) for row in table]
    by_leaf = sorted(range(len(table)), key=lambda item: (table[item], item))
    assert trie.items.tolist() == by_leaf
    counts = Counter(tuple(row) for row in table)
    beyond = torch.tensor([[len(leaves), len(leaves) + 1]])
    assert trie.sharing(torch.arange(len(leaves))).tolist() == [counts[leaf] for leaf in leaves]
    assert trie.sharing(beyond).tolist() == [[0, 0]]
    for level in range(levels + 1):
        nodes = prefixes(table, level)
        below = leaves if level == levels else prefixes(table, level + 1)
        if level:
            assert trie.codes[level - 1].tolist() == [node[-1] for node in nodes]
        if level < levels:
            parents = [child[:level] for child in below]
            firsts = [bisect_left(parents, node) for node in nodes]
            assert trie.children[level].tolist() == [*firsts, len(below)]
        firsts = [bisect_left([leaf[:level] for leaf in leaves], node) for node in nodes]
        found = trie.first_leaf(level, torch.arange(len(nodes) + 1))
        assert found.tolist() == [*firsts, len(leaves)]


@given(table=tables())
def test_layout_equals_sorted_prefixes(table: list[list[int]]) -> None:
    check_layout(table, build_trie(torch.tensor(table)))


@pytest.mark.parametrize(("levels", "size"), [(1, 900), (3, 12), (3, 8192), (4, 5)])
def test_layout_of_a_thousand_items(levels: int, size: int) -> None:
    """One level, dense with shared SIDs, sparse, four levels; codes of either width."""
    codes = torch.randint(
        size, (1000, levels), dtype=torch.int32, generator=torch.Generator().manual_seed(levels)
    )
    before = codes.clone()
    check_layout(codes.tolist(), build_trie(codes))
    assert torch.equal(codes, before)


def test_layout_of_the_docstring() -> None:
    trie = build_trie(torch.tensor([[1, 0], [0, 2], [1, 5]]))
    assert [c.tolist() for c in trie.codes] == [[0, 1], [2, 0, 5]]
    assert [c.tolist() for c in trie.children] == [[0, 2], [0, 1, 3], [0, 1, 2, 3]]
    assert trie.items.tolist() == [1, 0, 2]
    assert trie.leaves.tolist() == [1, 0, 2]


def test_a_shared_leaf_is_excluded_only_when_all_its_items_are_seen() -> None:
    trie = build_trie(torch.tensor([[0, 0], [0, 0], [0, 1]]))
    seen = torch.tensor([[0, -1, -1], [0, 0, -1], [0, 1, -1], [1, 0, 2]])
    excluded = trie.excluded(seen)
    assert excluded.tolist() == [[2, 2, 2], [2, 2, 2], [0, 2, 2], [0, 1, 2]]
    _, allowed = trie.allowed(0, torch.zeros(4, 1, dtype=torch.long), excluded)
    assert allowed.flatten().tolist() == [True, True, True, False]


def test_an_item_seen_twice_hides_one_leaf_only() -> None:
    trie = build_trie(torch.tensor([[0, 0], [0, 1]]))
    excluded = trie.excluded(torch.tensor([[1, 1]]))
    assert excluded.tolist() == [[1, 2]]
    assert trie.allowed(0, torch.zeros(1, 1, dtype=torch.long), excluded)[1].tolist() == [[[True]]]


def test_children_are_padded_to_the_widest_node_and_dead_nodes_have_none() -> None:
    trie = build_trie(torch.tensor([[0, 3], [1, 1], [1, 2]]))
    child, allowed = trie.allowed(1, torch.tensor([[0, 1, -1]]), torch.zeros(1, 0).long())
    assert allowed.tolist() == [[[True, False], [True, True], [False, False]]]
    assert child[allowed].tolist() == [0, 1, 2]
    assert child[0, :2].tolist() == [[0, 0], [1, 2]]


def test_codes_beyond_16_bits() -> None:
    trie = build_trie(torch.tensor([[70_000], [5]]))
    assert trie.codes[0].tolist() == [5, 70_000]


def test_bad_codes_are_refused() -> None:
    with pytest.raises(RecastError, match="holds 0 items: give at least one"):
        build_trie(torch.zeros(0, 2, dtype=torch.long))
    with pytest.raises(RecastError, match=r"item 1 has the code \[0, -2\]: codes start at 0"):
        build_trie(torch.tensor([[0, 0], [0, -2]]))
