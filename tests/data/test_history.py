from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recast.data.history import history, seen
from recast.types import Interactions


def interactions_of(histories: list[list[int]], *, exclude_seen: bool = True) -> Interactions:
    users = [u for u, items in enumerate(histories) for _ in items]
    ids = torch.tensor(users, dtype=torch.long)
    return Interactions(
        users=ids,
        items=torch.tensor([i for items in histories for i in items], dtype=torch.long),
        times=torch.arange(len(users)),
        starts=torch.searchsorted(ids, ids),
        splits=torch.zeros(len(users), dtype=torch.long),
        num_users=len(histories),
        num_items=100,
        exclude_seen=exclude_seen,
        split_name="none",
    )


def test_by_hand() -> None:
    data = interactions_of([[5, 7, 6], [8], [9, 4]])
    rows = torch.tensor([2, 0, 3, 5])
    assert history(data, rows, 3).tolist() == [[5, 7, -1], [-1] * 3, [-1] * 3, [9, -1, -1]]
    assert history(data, rows, 1).tolist() == [[7], [-1], [-1], [9]]
    assert seen(data, rows).tolist() == [[5, 7], [-1, -1], [-1, -1], [9, -1]]


def test_nothing_is_seen_where_repeats_are_candidates() -> None:
    data = interactions_of([[5, 5, 6]], exclude_seen=False)
    assert seen(data, torch.tensor([2, 1])).shape == (2, 0)
    assert history(data, torch.tensor([2]), 2).tolist() == [[5, 5]]


@pytest.mark.parametrize("width", [0, 3])
def test_no_rows(width: int) -> None:
    data = interactions_of([[5, 7]])
    none = torch.tensor([], dtype=torch.long)
    assert history(data, none, width).shape == (0, width)
    assert seen(data, none).shape == (0, 0)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(0, 9),
    st.data(),
)
def test_equals_a_slow_loop(histories: list[list[int]], width: int, draw: st.DataObject) -> None:
    data = interactions_of(histories)
    places = [(u, k) for u, items in enumerate(histories) for k in range(len(items))]
    rows = draw.draw(st.lists(st.integers(0, len(places) - 1), min_size=1, max_size=8))
    earlier = [histories[places[row][0]][: places[row][1]] for row in rows]

    def padded(lists: list[list[int]], to: int) -> list[list[int]]:
        return [items + [-1] * (to - len(items)) for items in lists]

    latest = [items[-width:] if width else [] for items in earlier]
    assert history(data, torch.tensor(rows), width).tolist() == padded(latest, width)
    assert seen(data, torch.tensor(rows)).tolist() == padded(earlier, max(map(len, earlier)))
