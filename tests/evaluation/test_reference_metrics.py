"""Metrics of several targets against every order of the items, one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.evaluation.metrics import SEVERAL_TARGETS, Ranks, row_metrics

CUTS = (1, 2, 3, 5, 9)
Item = tuple[int, int]
"""A SID and a number within it."""
Row = tuple[list[int], int, list[Item]]
"""How many items the SIDs have, how many of them are listed (the first), the targets."""


def ranks_of(rows: Sequence[Row]) -> Ranks:
    width = max(len(targets) for _, _, targets in rows)
    shape = (len(rows), max(width, 1))
    sid_rank, items_before, num_sharing, popular_rank = torch.zeros(4, *shape, dtype=torch.long)
    item_mask, sid_mask = torch.zeros(2, *shape, dtype=torch.bool)
    for i, (sizes, num_listed, targets) in enumerate(rows):
        for j, (sid, number) in enumerate(targets):
            is_listed = sid < num_listed
            sid_rank[i, j] = sid + 1 if is_listed else 0
            items_before[i, j] = sum(sizes[: min(sid, num_listed)])
            num_sharing[i, j] = sizes[sid]
            popular_rank[i, j] = sid + 1 if is_listed and number == 0 else 0
            item_mask[i, j] = True
            sid_mask[i, j] = sid not in [other for other, _ in targets[:j]]
    return Ranks(
        row_ids=torch.arange(len(rows)),
        users=torch.arange(len(rows)),
        sid_rank=sid_rank,
        items_before=items_before,
        num_sharing=num_sharing,
        item_mask=item_mask,
        sid_mask=sid_mask,
        popular_rank=popular_rank,
    )


def score(listed: Sequence[object], targets: Sequence[object], name: str, k: int) -> float:
    """The definition, of one list."""
    places = [listed.index(t) + 1 for t in targets if t in listed]
    inside = [place for place in places if place <= k]
    if not targets:
        return 0.0
    if name in ("hr", "pass"):
        return float(bool(inside))
    if name == "first_pass":
        return float(targets[0] in listed[:k])
    if name == "recall":
        return len(inside) / len(targets)
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(targets)) + 1))
    return sum(1 / math.log2(place + 1) for place in inside) / ideal


def slow(row: Row, level: str, name: str, k: int) -> float:
    """The mean over every order of the items of every listed SID."""
    sizes, num_listed, targets = row
    sids = list(range(num_listed))
    if level == "sid":
        return score(sids, list(dict.fromkeys(sid for sid, _ in targets)), name, k)
    if level == "popular_item":
        return score([(sid, 0) for sid in sids], targets, name, k)
    orders = [permutations([(sid, i) for i in range(sizes[sid])]) for sid in sids]
    lists = [[item for part in parts for item in part] for parts in product(*orders)]
    return sum(score(listed, targets, name, k) for listed in lists) / len(lists)


@st.composite
def a_row(draw: st.DrawFn) -> Row:
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    items = [(sid, i) for sid, size in enumerate(sizes) for i in range(size)]
    targets = draw(st.lists(st.sampled_from(items), max_size=5, unique=True))
    return sizes, draw(st.integers(0, min(len(sizes), 4))), targets


@settings(max_examples=60, deadline=None)
@given(st.lists(a_row(), min_size=1, max_size=3))
def test_metrics_are_the_mean_over_every_order(rows: list[Row]) -> None:
    levels = ("item", "sid", "popular_item")
    found = row_metrics(ranks_of(rows), CUTS, levels, SEVERAL_TARGETS)
    for level, name, k in product(levels, SEVERAL_TARGETS, CUTS):
        expected = [slow(row, level, name, k) for row in rows]
        assert found[f"{level}/{name}@{k}"].tolist() == pytest.approx(expected), (level, name, k)


def test_openonerec_s_worked_numbers() -> None:
    """2512.24762: the answer names A, B and A again; the beams are C, A, A, B."""
    a, b = (1, 0), (3, 0)
    found = row_metrics(ranks_of([([1, 1, 1, 1], 4, [a, b])]), (1, 2, 3, 4), ("item", "sid"))
    for level in ("item", "sid"):
        assert [found[f"{level}/pass@{k}"].item() for k in (1, 2, 3, 4)] == [0, 1, 1, 1]
        assert [found[f"{level}/recall@{k}"].item() for k in (1, 2, 3, 4)] == [0, 0.5, 0.5, 1]
        assert [found[f"{level}/first_pass@{k}"].item() for k in (1, 2)] == [0, 1]
    # DCG 1 / log2 3 + 1 / log2 5 of an ideal 1 + 1 / log2 3.
    gains = 1 / math.log2(3), 1 / math.log2(5)
    assert found["item/ndcg@4"].item() == pytest.approx(sum(gains) / (1 + gains[0]))


def test_two_targets_of_one_sid_by_hand() -> None:
    """One SID of three items, two of them targets: the first place is one's with chance 2/3, one
    of the first two with chance 1, and a target is there with chance 1/3 or 2/3."""
    row: Row = ([3], 1, [(0, 0), (0, 2)])
    found = {k: v.item() for k, v in row_metrics(ranks_of([row]), (1, 2, 3)).items()}
    assert found["item/pass@1"] == pytest.approx(2 / 3)
    assert found["item/pass@2"] == pytest.approx(1)
    assert found["item/first_pass@1"] == pytest.approx(1 / 3)
    assert found["item/recall@2"] == pytest.approx(2 / 3)
    assert found["sid/recall@1"] == 1  # one SID
    # Both of the ideal places, each with a target in 2 of 3: 2/3 of the ideal DCG.
    assert found["item/ndcg@2"] == pytest.approx(2 / 3)


def test_invariance_to_the_order_of_targets_and_to_padding() -> None:
    rows: list[Row] = [([2, 1, 3], 2, [(2, 0), (0, 1), (1, 0)]), ([1, 2], 2, [(1, 1)])]
    turned: list[Row] = [([2, 1, 3], 2, [(2, 0), (1, 0), (0, 1)]), rows[1]]
    found, other = (row_metrics(ranks_of(some), CUTS) for some in (rows, turned))
    for key, values in found.items():
        assert torch.allclose(values, other[key], rtol=1e-15), key
    alone = row_metrics(ranks_of(rows[1:]), CUTS, names=SEVERAL_TARGETS)
    assert all(torch.equal(found[key][1:], alone[key]) for key in found)


def old_metrics(ranks: Ranks, k: int) -> dict[str, torch.Tensor]:
    """The formulas of release 0.1.0, for one target."""
    places = torch.arange(1, 11, dtype=torch.float64)
    gain = torch.nn.functional.pad((1 / torch.log2(places + 1)).cumsum(0), (1, 0))
    found = ranks.sid_rank[:, 0] > 0
    before, sharing = ranks.items_before[:, 0], ranks.num_sharing[:, 0]
    inside = gain[(before + sharing).clamp(max=k)] - gain[before.clamp(max=k)]
    return {
        "hr": ((k - before) / sharing.double()).clamp(0, 1) * found,
        "ndcg": inside / sharing * found,
    }


def test_one_target_gives_the_numbers_of_0_1_0_to_the_last_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    place, before = torch.randint(0, 40, (2, 5000, 1), generator=draw)
    one = torch.ones(5000, 1, dtype=torch.bool)
    ranks = Ranks(
        row_ids=torch.arange(5000),
        users=torch.arange(5000),
        sid_rank=place,
        items_before=before,
        num_sharing=torch.randint(1, 30, (5000, 1), generator=draw),
        item_mask=one,
        sid_mask=one,
    )
    wide = row_metrics(ranks, (1, 3, 5, 10, 20, 32, 50), names=SEVERAL_TARGETS)
    for found in (row_metrics(ranks), wide):
        for k in (5, 10):
            for name, values in old_metrics(ranks, k).items():
                assert torch.equal(found[f"item/{name}@{k}"], values)
    # Pass, first-target Pass and Recall are HR.
    for name in ("pass", "first_pass", "recall"):
        assert torch.equal(wide[f"item/{name}@3"], wide["item/hr@3"])
