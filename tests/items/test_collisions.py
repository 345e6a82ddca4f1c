from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recast.items.collisions import resolve_extra_level, resolve_nearest_free
from recast.types import RecastError

TENS = torch.tensor([[0.0], [10.0], [20.0]])
ONES = torch.tensor([[0.0], [1.0], [2.0]])


def resolve(
    codes: list[list[int]], points: list[float], books: list[torch.Tensor]
) -> list[list[int]]:
    embeddings = torch.tensor(points)[:, None]
    return resolve_nearest_free(torch.tensor(codes), embeddings, books).tolist()


def test_the_nearest_item_keeps_the_sid_and_the_other_takes_the_nearest_free_code() -> None:
    # Both at (1, 1) = 11. Item 1 (10.9) is nearer and keeps it; item 0 (11.6) is 0.4 from 12 and
    # 1.6 from 10, so it takes (1, 2).
    assert resolve([[1, 1], [1, 1]], [11.6, 10.9], [TENS, ONES]) == [[1, 2], [1, 1]]
    # With (1, 2) taken it takes (1, 0).
    taken = resolve([[1, 1], [1, 1], [1, 2]], [11.6, 10.9, 12.0], [TENS, ONES])
    assert taken == [[1, 0], [1, 1], [1, 2]]


def test_equal_distances_the_lower_item_stays_and_the_lower_code_wins() -> None:
    assert resolve([[1, 1], [1, 1]], [11.0, 11.0], [TENS, ONES]) == [[1, 1], [1, 0]]


def test_of_three_the_nearer_ones_choose_first() -> None:
    # Distances to 11: 0.1, 0.3, 0.2: item 0 stays, item 2 (11.2) takes 12, item 1 (11.3) what is
    # left, 10, though it is nearer to 12 than item 2 is.
    assert resolve([[1, 1]] * 3, [11.1, 11.3, 11.2], [TENS, ONES]) == [[1, 1], [1, 0], [1, 2]]


def test_a_full_prefix_sends_its_last_item_to_the_nearest_prefix_with_room() -> None:
    # Four items at 10 + 0: prefix 1 holds three, the farthest (14.6) leaves for the prefix at 20
    # (5.4 away; 0 is 14.6 away) and there takes 0 (-5.4 is nearest to 0).
    points = [10.0, 10.1, 10.2, 14.6]
    assert resolve([[1, 0]] * 4, points, [TENS, ONES]) == [[1, 0], [1, 1], [1, 2], [2, 0]]
    # With prefix 2 full as well it is prefix 0, where 14.6 is nearest to 2.
    full = resolve([[1, 0]] * 4 + [[2, 0], [2, 1], [2, 2]], [*points, 20, 21, 22], [TENS, ONES])
    assert full[3] == [0, 2]


def test_items_with_room_under_their_own_prefix_come_before_those_that_leave_theirs() -> None:
    # Item 6 at (2, 0) collides with item 5 and has (2, 1) and (2, 2); the item that leaves prefix 1
    # takes what is left there.
    codes = [[1, 0]] * 4 + [[2, 2], [2, 0], [2, 0]]
    found = resolve(codes, [10, 10.1, 10.2, 14.6, 22, 20, 20.1], [TENS, ONES])
    assert found[3:] == [[0, 2], [2, 2], [2, 0], [2, 1]]


def test_a_full_branch_sends_an_item_two_levels_up() -> None:
    books = [torch.tensor([[0.0], [100.0]]), torch.tensor([[0.0], [10.0]]), ONES[:2]]
    found = resolve([[0, 0, 0]] * 5, [0.0, 0.1, 0.2, 0.3, 0.4], books)
    assert found == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0 + 1], [1, 0, 0]]


def test_as_many_items_as_sids_fill_every_sid_and_one_more_is_refused() -> None:
    found = resolve([[0, 0]] * 9, [0.0] * 9, [TENS, ONES])
    assert sorted(found) == [[a, b] for a in range(3) for b in range(3)]
    with pytest.raises(RecastError, match=r"10 items do not fit into 9 semantic IDs \(2 levels"):
        resolve([[0, 0]] * 10, [0.0] * 10, [TENS, ONES])


@st.composite
def coded(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    total = int(torch.tensor(sizes).prod())
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    table = draw(st.lists(row, min_size=1, max_size=total))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    books = [torch.randn(size, 2, generator=generator) for size in sizes]
    return torch.tensor(table), torch.randn(len(table), 2, generator=generator), books


@given(coded())
def test_any_codes_become_unique(
    case: tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]],
) -> None:
    codes, points, books = case
    before = codes.clone()
    found = resolve_nearest_free(codes, points, books)
    assert torch.equal(codes, before)
    assert len({tuple(row) for row in found.tolist()}) == len(codes)
    assert (found >= 0).all()
    assert (found < torch.tensor([len(book) for book in books])).all()
    assert torch.equal(found, resolve_nearest_free(codes, points, books))
    # Every SID that was used still is, and a prefix with room for its items loses none.
    assert {tuple(row) for row in codes.tolist()} <= {tuple(row) for row in found.tolist()}
    wanted = Counter(tuple(row[:-1]) for row in codes.tolist())
    for old, new in zip(codes.tolist(), found.tolist(), strict=True):
        assert old[:-1] == new[:-1] or wanted[tuple(old[:-1])] > len(books[-1])


@given(coded())
def test_an_extra_level_makes_any_codes_unique(
    case: tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]],
) -> None:
    codes = case[0]
    found = resolve_extra_level(codes)
    assert torch.equal(found[:, :-1], codes)
    seen: Counter[tuple[int, ...]] = Counter()
    for row in found.tolist():
        assert row[-1] == seen[tuple(row[:-1])]
        seen[tuple(row[:-1])] += 1


def test_extra_level_by_hand() -> None:
    codes = torch.tensor([[5, 1], [2, 0], [5, 1], [5, 1]])
    assert resolve_extra_level(codes).tolist() == [[5, 1, 0], [2, 0, 0], [5, 1, 1], [5, 1, 2]]
    assert resolve_extra_level(torch.tensor([[1], [0]])).tolist() == [[1, 0], [0, 0]]
