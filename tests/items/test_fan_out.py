"""Counts of allowed children along rollouts: by hand, and against a scan of all items."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from recast.items.catalog import Catalog, build_catalog
from recast.items.fan_out import fan_out
from recast.types import RolloutGroups


def _groups(catalog: Catalog, items: list[list[int]], seen: list[list[int]]) -> RolloutGroups:
    """Rollouts by item; -1 does not exist."""
    index = torch.tensor(items)
    made = tiny.make_groups(
        catalog.tokens_of(index).tolist(),
        catalog.tokens_of(index[:, :1].clamp(min=0)).tolist(),
        items=items,
        exists=(index >= 0).tolist(),
    )
    width = max(len(row) for row in seen)
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in seen], dtype=torch.long)
    return replace(made, prompts=replace(made.prompts, seen=padded.view(len(seen), width)))


def _slow(catalog: Catalog, item: int, seen: list[int]) -> list[int]:
    """Distinct next codes of the unseen items that share the prefix, level by level."""
    codes = catalog.codes.tolist()
    if item < 0:
        return [0] * catalog.num_levels
    return [
        len(
            {
                row[level]
                for other, row in enumerate(codes)
                if other not in seen and row[:level] == codes[item][:level]
            }
        )
        for level in range(catalog.num_levels)
    ]


def test_the_tiny_catalogue_by_hand() -> None:
    """Codes 001 002 010 122 120 201 211 213; item 7 is 213, item 2 is 010, the third is missing."""
    catalog = tiny.tiny_catalog()
    found = fan_out(catalog, _groups(catalog, [[7, 2, -1]], [[]]))
    assert found.tolist() == [[[3, 2, 2], [3, 2, 1], [0, 0, 0]]]


def test_seen_items_are_no_children() -> None:
    """Without items 3 and 4 code 1 is gone from the root, without item 6 the code 213 is forced."""
    catalog = tiny.tiny_catalog()
    groups = _groups(catalog, [[7, 0], [7, 0]], [[3, 4, 6], [3]])
    assert fan_out(catalog, groups).tolist() == [
        [[2, 2, 1], [2, 2, 2]],
        [[3, 2, 2], [3, 2, 2]],
    ]


def test_tokens_that_spell_no_prefix_have_no_fan_out_below() -> None:
    """The root's choice is counted wherever the token led; a seen item's own path ends too."""
    catalog = tiny.tiny_catalog()
    groups = _groups(catalog, [[7, 2]], [[2]])
    strange = groups.tokens.clone()
    strange[0, 0, 1] = 4  # a token of the first level in the second place
    found = fan_out(catalog, replace(groups, tokens=strange))
    assert found.tolist() == [[[3, 2, 0], [3, 1, 0]]]


def test_items_that_share_a_sid_are_one_child_until_all_are_seen() -> None:
    catalog = build_catalog(torch.tensor([[0, 1], [0, 1], [0, 2]]), (1, 3))
    for seen, wanted in (([], [1, 2]), ([0], [1, 2]), ([0, 1], [1, 1])):
        groups = _groups(catalog, [[2]], [seen])
        assert fan_out(catalog, groups).tolist() == [[wanted]]


@pytest.mark.parametrize("seed", range(8))
def test_any_rollout_equals_a_scan_of_all_items(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    catalog = tiny.random_catalog(24, (3, 4, 4), seed)
    items = torch.randint(-1, catalog.num_items, (5, 6), generator=draw)
    seen = torch.randint(0, catalog.num_items, (5, seed), generator=draw)
    unseen = (items[:, :, None] != seen[:, None]).all(-1)
    rows = items.masked_fill(~unseen, -1).tolist()
    groups = _groups(catalog, rows, seen.tolist())
    before = groups.tokens.clone()
    found = fan_out(catalog, groups)
    assert found.tolist() == [
        [_slow(catalog, item, taken) for item in row]
        for row, taken in zip(rows, seen.tolist(), strict=True)
    ]
    assert torch.equal(before, groups.tokens)
