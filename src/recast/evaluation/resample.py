"""Intervals and p-values by resampling users: values per row and their users in, statistics out.

Rows of one user are alike, so users, not rows, are the independent draws. What comes out covers
the choice of users; it says nothing about the training seed.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from recast.types import require

Values = Float[np.ndarray, "N M"]
Statistic = Float[np.ndarray, " M"]

DRAWS = 10_000
_LARGEST = {"draws": 1_000_000, "seed": 2**31 - 1}
_CHUNK = 2**22  # users drawn at a time, 32 MiB of float64


def user_intervals(
    values: Values, users: Int[np.ndarray, " N"], draws: int = DRAWS, seed: int = 0
) -> tuple[Statistic, Statistic, Statistic]:
    """(mean, low, high): row means of M columns and their 95 % percentile bootstrap intervals.

    A drawn user brings all of its rows: a draw's mean is the sum of sums over the sum of counts.
    With a single user there is nothing to resample and the interval is the mean itself. Raises
    `RecastError` without a row, for a value that is not finite and for shapes that do not fit.

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


def _check(values: Any, users: Any, draws: Any, seed: Any) -> None:
    shapes = [np.shape(array) for array in (values, users)]
    fits = len(shapes[0]) == 2 and shapes[1] == shapes[0][:1] != (0,)
    remedy = "give arrays [N, M] and [N] of one row or more"
    require(fits, "shape of values and users", shapes, remedy)
    require(bool(np.isfinite(values).all()), "values", values, "give finite numbers alone")
    require(users.dtype.kind in "iu", "dtype of users", users.dtype, "give whole numbers")
    for name, number, least in (("draws", draws, 1), ("seed", seed, 0)):
        is_whole = isinstance(number, Integral) and not isinstance(number, bool)
        fits = is_whole and least <= int(number) <= _LARGEST[name]
        require(fits, name, number, f"give a whole number from {least} to {_LARGEST[name]}")


def _bootstrap(
    values: Values, users: Int[np.ndarray, " N"], draws: int, seed: int
) -> tuple[Statistic, Float[np.ndarray, "D M"], int]:
    """Row mean, its resampled values, number of users."""
    _check(values, users, draws, seed)
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
