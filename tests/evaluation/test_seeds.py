"""Statistics over seeds and users: by hand, against scipy, and by how often intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recast.evaluation.seeds import SeedStatistics, budget_ratio, holm, seed_statistics
from recast.types import RecastError


def one_column(values: list[list[float]], users: list[int]) -> SeedStatistics:
    return seed_statistics(np.array(values, dtype=float)[..., None], np.array(users))


def test_three_errors_by_hand() -> None:
    """Seeds with the rows (1, 3) and (5, 3): means 2 and 4, variance 2, over 2 seeds 1. A user
    moves the seeds' means by half a residual, (-.5, .5) and (.5, -.5), on average by 0, so users do
    not differ; all is e: 4 residuals of .25, twice over 2 users (2 - 1), over 2 (2 - 1) seeds, 1.
    """
    found = one_column([[1, 3], [5, 3]], [0, 1])
    assert (found.mean[0], found.spread[0]) == (3.0, pytest.approx(2**0.5))
    assert found.over_users.errors[0] == 0.0
    assert found.over_seeds.errors[0] == 1.0
    assert found.over_both.errors[0] == pytest.approx(0, abs=1e-7)
    low, high = found.over_seeds.interval()
    assert (low[0], high[0]) == pytest.approx((3 - 12.7062, 3 + 12.7062), abs=1e-4)


def test_rows_of_a_user_count_together() -> None:
    """Residuals of users with rows (1, 1) and (4): mean 2; -2 and 2 over 3 rows; 2 (4 + 4) / 9."""
    found = one_column([[1, 1, 4]], [7, 7, 9])
    assert found.over_users.errors[0] == pytest.approx((16 / 9) ** 0.5)
    assert found.over_users.freedom[0] == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(0, 99))
def test_one_row_a_user_is_the_test_of_student(count: int, seed: int) -> None:
    draws = np.random.default_rng(seed).normal(0.2, 1, count)
    found = one_column([draws.tolist()], list(range(count)))
    error = draws.std(ddof=1) / count**0.5
    expected = 2 * stats.t.sf(abs(draws.mean()) / error, count - 1)
    assert found.over_users.p_values()[0] == pytest.approx(expected, rel=1e-9)
    interval = stats.t.interval(0.95, count - 1, draws.mean(), error)
    assert [end[0] for end in found.over_users.interval()] == pytest.approx([*interval], rel=1e-9)
    means = [[x] for x in draws.tolist()]
    assert one_column(means, [0]).over_seeds.p_values()[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("seeds", "users", "of_seed", "of_both"),
    [
        (1, 60, 0.0, 1.0),
        (3, 100, 0.0, 1.0),
        (3, 100, 0.1, 1.0),
        (2, 100, 0.1, 1.0),
        (5, 60, 0.3, 0.5),
    ],
)
def test_intervals_hold_as_often_as_they_say(
    seeds: int, users: int, of_seed: float, of_both: float
) -> None:
    """1,000 tables of nothing: between 93 and 98 of 100 intervals over both hold 0, and p below .05
    is as rare as it should be. Three rows in four are of users with several."""
    draw, user = np.random.default_rng(3), np.repeat(np.arange(users), np.arange(users) % 3 + 1)
    shape = (1000, seeds, len(user))
    values = draw.normal(0, of_seed, (1000, seeds, 1)) + draw.normal(0, of_both, shape)
    values += draw.normal(0, 1, (1000, 1, users))[..., user]
    held, false = 0, 0
    for table in values:
        found = seed_statistics(table[..., None], user).over_both
        low, high = found.interval()
        held += int(low[0] <= 0 <= high[0])
        false += int(found.p_values()[0] < 0.05)
    assert 930 <= held <= 980
    assert false == 1000 - held


def test_over_users_alone_is_too_sure_where_seeds_differ() -> None:
    """What the third interval is for: seeds that differ as much as the users' mean does."""
    draw = np.random.default_rng(5)
    held = np.zeros(2)
    for _ in range(400):
        values = draw.normal(0, 0.3, (3, 1)) + draw.normal(0, 1, (3, 100))
        found = one_column(values.tolist(), list(range(100)))
        for index, kind in enumerate((found.over_users, found.over_both)):
            low, high = kind.interval()
            held[index] += low[0] <= 0 <= high[0]
    assert held[0] < 250
    assert held[1] > 355


def test_the_smallest_effect_is_found_four_times_in_five() -> None:
    draw, found = np.random.default_rng(11), 0
    error = 1 / 200**0.5  # of 200 users of deviation 1
    exact = one_column([draw.normal(0, 1, 200).tolist()], list(range(200))).over_users
    assert exact.smallest_effect()[0] == pytest.approx(2.82 * exact.errors[0], rel=0.01)
    for _ in range(1000):
        values = draw.normal(2.82 * error, 1, 200)
        p = one_column([values.tolist()], list(range(200))).over_users.p_values()[0]
        found += int(p < 0.05)
    assert 765 <= found <= 835


def test_nothing_is_concluded_from_one_draw() -> None:
    one_user = one_column([[0.3], [0.5]], [4])
    assert one_user.over_users.p_values()[0] == 1.0
    assert np.isnan(one_user.over_users.interval()[0][0])
    one_seed = one_column([[0.0, 0.0]], [0, 1])
    assert one_seed.over_both == one_seed.over_users
    assert np.isnan(one_seed.spread[0])
    assert one_seed.over_users.p_values()[0] == 1.0


def test_the_budget_of_a_curve() -> None:
    assert budget_ratio([0, 50, 100], [0.1, 0.2, 0.3], 0.2, 100) == 0.5
    assert budget_ratio([0, 50, 100], [0.2, 0.1, 0.3], 0.2, 100) == 0.0  # the start was as good
    assert budget_ratio([0, 50], [0.1, 0.1999], 0.2, 50) is None


def test_holm_of_equal_and_of_large_values() -> None:
    assert holm([]) == []
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([0.9, 0.001, 0.5]) == pytest.approx([1.0, 0.003, 1.0])


@pytest.mark.parametrize(
    ("values", "users", "said"),
    [
        (np.zeros((0, 2, 1)), np.zeros(2, dtype=int), "shape of values"),
        (np.full((1, 2, 1), np.nan), np.zeros(2, dtype=int), "values is"),
    ],
)
def test_tables_that_are_none(values: np.ndarray, users: np.ndarray, said: str) -> None:
    with pytest.raises(RecastError, match=said):
        seed_statistics(values, users)
