"""Intervals and p-values by resampling users: values per row and their users in, statistics out.

Rows of one user are alike, so users, not rows, are the independent draws. What comes out covers
the choice of users; it says nothing about the training seed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

Values = Float[np.ndarray, "N M"]
Statistic = Float[np.ndarray, " M"]

DRAWS = 10_000
_CHUNK = 2**22  # users drawn at a time, 32 MiB of float64


def user_intervals(
    values: Values, users: Int[np.ndarray, " N"], draws: int = DRAWS, seed: int = 0
) -> tuple[Statistic, Statistic, Statistic]:
    """(mean, low, high): row means of M columns and their 95 % percentile bootstrap intervals.

    A drawn user brings all of its rows: a draw's mean is the sum of sums over the sum of counts.
    With a single user there is nothing to resample and the interval is the mean itself.

    >>> [m.tolist() for m in user_intervals(np.array([[1.0], [0.0]]), np.array([7, 7]), draws=9)]
    [[0.5], [0.5], [0.5]]
    """
    mean, drawn, _ = _bootstrap(values, users, draws, seed)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return mean, low, high


def user_p_values(
    a: Values, b: Values, users: Int[np.ndarray, " N"], draws: int = DRAWS, seed: int = 0
) -> Statistic:
    """Paired two-sided p-values of `mean(a) = mean(b)`, column by column.

    With d the observed difference and d*_i the bootstrapped ones,
    p = (1 + #{|d*_i - d| >= |d|}) / (1 + draws). It is 1 for equal inputs, and for a single user,
    from whom nothing can be concluded.

    >>> a = np.array([[1.0], [0.0]])
    >>> user_p_values(a, a, np.array([0, 1]), draws=9).tolist()
    [1.0]
    """
    mean, drawn, num_users = _bootstrap(a - b, users, draws, seed)
    if num_users == 1:
        return np.ones_like(mean)
    # The tolerance keeps exact ties, common with few users, from falling to rounding.
    as_far = np.abs(drawn - mean) >= np.abs(mean) * (1 - 1e-12)
    counts: Statistic = as_far.sum(axis=0)
    return (1 + counts) / (1 + draws)


def _bootstrap(
    values: Values, users: Int[np.ndarray, " N"], draws: int, seed: int
) -> tuple[Statistic, Float[np.ndarray, "D M"], int]:
    """Row mean, its resampled values, number of users."""
    assert len(values) == len(users) > 0
    _, user = np.unique(users, return_inverse=True)
    num_users = int(user.max()) + 1
    counts = np.bincount(user).astype(np.float64)
    sums = np.zeros((num_users, values.shape[1]))
    np.add.at(sums, user, values)
    totals = np.column_stack([sums, counts])
    generator = np.random.default_rng(seed)
    drawn = np.empty((draws, totals.shape[1]))
    size = max(1, _CHUNK // num_users)
    for start in range(0, draws, size):
        number = min(size, draws - start)
        picked = generator.integers(num_users, size=(number, num_users))
        picked += np.arange(number)[:, None] * num_users
        times = np.bincount(picked.ravel(), minlength=number * num_users)
        drawn[start : start + number] = times.reshape(number, num_users) @ totals
    mean = sums.sum(axis=0) / counts.sum()
    return mean, drawn[:, :-1] / drawn[:, -1:], num_users
