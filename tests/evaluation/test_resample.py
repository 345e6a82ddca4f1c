from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recast.evaluation import resample
from recast.evaluation.resample import user_intervals, user_p_values
from recast.types import RecastError

RNG = np.random.default_rng


def slow_means(values: np.ndarray, users: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Row means of bootstrapped users: concatenate the rows of every drawn user, average."""
    names = np.unique(users)
    means = []
    for picked in RNG(seed).integers(len(names), size=(draws, len(names))):
        rows = np.concatenate([np.flatnonzero(users == names[u]) for u in picked])
        means.append(values[rows].mean(axis=0))
    return np.array(means)


def some_rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = RNG(seed)
    users = draw.integers(0, 9, size=60) * 7
    return draw.random((60, 3)), draw.random((60, 3)), users


def test_intervals_equal_a_slow_loop() -> None:
    values, _, users = some_rows()
    mean, low, high = user_intervals(values, users, draws=300, seed=5)
    means = slow_means(values, users, 300, 5)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975], axis=0))


def test_p_values_equal_a_slow_loop() -> None:
    a, b, users = some_rows()
    difference = (a - b).mean(axis=0)
    means = slow_means(a - b, users, 300, 5)
    count = (np.abs(means - difference) >= np.abs(difference)).sum(axis=0)
    np.testing.assert_allclose(user_p_values(a, b, users, draws=300, seed=5), (1 + count) / 301)


def test_rows_of_one_user_widen_the_interval() -> None:
    draw = RNG(1)
    users = np.repeat(np.arange(40), 25)
    values = (draw.random(40) < 0.3).astype(float)[users][:, None]  # all rows of a user agree
    _, low, high = user_intervals(values, users)
    _, row_low, row_high = user_intervals(values, np.arange(1000))
    # Design effect of 25 identical rows: sqrt(25) times as wide.
    assert (high - low)[0] / (row_high - row_low)[0] == pytest.approx(5, rel=0.1)


def test_a_user_brings_all_of_its_rows() -> None:
    # User 0: nine rows of 0, user 1: one row of 1. Draws: (0,0) 0, (0,1) .1, (1,1) 1.
    values, users = np.array([[0.0]] * 9 + [[1.0]]), np.array([0] * 9 + [1])
    mean, low, high = user_intervals(values, users)
    assert (mean[0], low[0], high[0]) == (0.1, 0.0, 1.0)


def test_p_values_of_equal_and_of_different_methods() -> None:
    a, _, users = some_rows()
    assert user_p_values(a, a.copy(), users).tolist() == [1.0] * 3
    assert (user_p_values(a + 0.3 + 0.1 * RNG(2).random(a.shape), a, users) < 0.01).all()
    low = user_p_values(a + 1, a, users, draws=99)
    assert low.tolist() == [0.01] * 3  # the smallest there is: 1 / (1 + draws)
    np.testing.assert_array_equal(low, user_p_values(a, a + 1, users, draws=99))


def test_exact_ties_count_as_far_as_the_observation() -> None:
    # Two users, differences .3 and 0: the draws are 0, .15 and .3, all but .15 exactly as far.
    a, b, users = np.array([[0.3], [0.0]]), np.zeros((2, 1)), np.array([0, 1])
    picked = RNG(0).integers(2, size=(1000, 2))
    far = (picked[:, 0] == picked[:, 1]).sum()
    assert user_p_values(a, b, users, draws=1000)[0] == (1 + far) / 1001


def test_p_values_hold_their_level() -> None:
    draw, rejected = RNG(3), 0
    users = np.repeat(np.arange(30), 8)
    for _ in range(300):
        effect = draw.normal(size=30)[users] + draw.normal(size=240)
        rejected += user_p_values(effect[:, None], np.zeros((240, 1)), users, draws=300)[0] <= 0.05
    assert rejected / 300 < 0.1  # nominal .05, a little above it with 30 users


def test_a_single_user_is_degenerate() -> None:
    values, users = np.array([[1.0], [0.0], [0.0], [1.0]]), np.full(4, 3)
    assert [part.tolist() for part in user_intervals(values, users)] == [[0.5], [0.5], [0.5]]
    assert user_p_values(values, np.zeros((4, 1)), users).tolist() == [1.0]


def test_same_seed_same_numbers_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, users = some_rows()
    first = user_intervals(a, users, draws=200, seed=1), user_p_values(a, b, users, 200, 1)
    monkeypatch.setattr(resample, "_CHUNK", 50)
    second = user_intervals(a, users, draws=200, seed=1), user_p_values(a, b, users, 200, 1)
    np.testing.assert_allclose(first[0], second[0], rtol=1e-14)
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], user_intervals(a, users, draws=200, seed=2))


@pytest.mark.parametrize(
    ("values", "more", "message"),
    [
        (np.zeros((0, 1)), {}, "shape of values and users is"),
        (np.full((2, 1), np.nan), {}, "values is array.*: give finite numbers alone"),
        (np.ones((2, 1)), {"draws": 0}, "draws is 0: give a whole number from 1 to 1000000"),
        (np.ones((2, 1)), {"seed": -1}, "seed is -1: give a whole number from 0"),
    ],
)
def test_what_cannot_be_resampled(values: np.ndarray, more: Any, message: str) -> None:
    with pytest.raises(RecastError, match=message):
        user_intervals(values, np.arange(len(values)), **more)
