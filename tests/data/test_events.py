from __future__ import annotations

from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.data.events import first_events, index_events, k_core, order_events, sorted_ids


def frame(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")


def test_k_core_by_hand() -> None:
    # Item 9 has one event; without it user 3 has one; without that item 2 has one. What is left
    # is users 1 and 2 on items 0 and 1.
    rows = [(1, 0, 0), (1, 1, 1), (2, 0, 2), (2, 1, 3), (1, 2, 4), (3, 2, 5), (3, 9, 6)]
    assert sorted(k_core(frame(rows), 2).rows()) == rows[:4]
    assert k_core(frame(rows), 3).is_empty()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.just(0)), min_size=1, max_size=40),
    st.integers(1, 4),
)
def test_k_core_equals_a_slow_loop(rows: list[tuple[int, int, int]], k: int) -> None:
    left = rows
    while True:
        users, items = Counter(r[0] for r in left), Counter(r[1] for r in left)
        kept = [r for r in left if users[r[0]] >= k and items[r[1]] >= k]
        if len(kept) == len(left):
            break
        left = kept
    assert sorted(k_core(frame(rows), k).rows()) == sorted(left)


def test_first_events() -> None:
    rows = [(1, 5, 30), (1, 5, 10), (1, 6, 20), (2, 5, 40), (1, 5, 10)]
    assert sorted(first_events(frame(rows)).rows()) == [(1, 5, 10), (1, 6, 20), (2, 5, 40)]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["10", "9", "9", "100"], ["9", "10", "100"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["1", "01", "-3"], ["-3", "01", "1"]),
        ([], []),
    ],
)
def test_ids_are_sorted_by_number_or_by_text(ids: list[str], expected: list[str]) -> None:
    assert sorted_ids(pl.Series(ids, dtype=pl.String)).to_list() == expected


def test_events_are_indexed() -> None:
    events = pl.DataFrame({"user": ["b", "a"], "item": ["y", "z"], "time": [1, 2]})
    indexed = index_events(events, pl.Series(["a", "b"]), pl.Series(["x", "y", "z"]))
    assert sorted(indexed.rows()) == [(0, 2, 2), (1, 1, 1)]


def test_order_is_seeded_inside_one_time_only_and_free_of_the_file_order() -> None:
    rows = [(u, i, i // 20) for u in range(3) for i in range(60)]
    events = frame(rows)
    ordered = order_events(events, seed=0)
    assert ordered.equals(order_events(events.sample(fraction=1, shuffle=True, seed=1), seed=0))
    assert ordered.select("user", "time").rows() == [(u, t) for u, _, t in rows]
    assert sorted(ordered.rows()) == rows
    assert not ordered.equals(events)
    assert not ordered.equals(order_events(events, seed=1))
    # Fair: where an item of the first second lands has the mean 9.5 of 20 places; over 9 blocks
    # the lower half of the items takes 90 places, whose mean has the standard deviation 0.43.
    place = ordered.with_columns(place=pl.int_range(len(ordered)) % 20)
    assert abs(place.filter(pl.col("item") % 20 < 10)["place"].mean() - 9.5) < 4 * 0.43
