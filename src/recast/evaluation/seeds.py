"""What several training seeds say: values per seed, row and metric in, means with three intervals
out, over users, over seeds and over both.

Letters: S seeds | N rows | M metrics. A value is m + a_seed + b_user + e_seed,user: seeds of one
method differ, users do, and a user takes to one seed and not to another. With U users and S seeds
the variance of the mean is that of b over U, of a over S and of e over S U. Rows of one user are
alike, so they count together (a ratio of sums, linearised: Cochran, Sampling Techniques, 6.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtr, stdtrit

from recast.types import require

Values = Float[np.ndarray, "S N M"]
Statistic = Float[np.ndarray, " M"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Uncertain:
    """A mean, and how far it may be off if what was drawn were drawn anew.

    Example, two seeds with the means .10 and .12, whatever the users: `mean=[.11]  spread=[.0141]`
    and, over seeds, `errors=[.01]  freedom=[1]`: the interval is .11 +- 12.7 * .01.
    """

    mean: Statistic
    errors: Statistic
    """Standard errors."""
    freedom: Statistic
    """Degrees of freedom of Student's t; 0 where there was one draw: nothing can be concluded."""

    def interval(self, level: float = 0.95) -> tuple[Statistic, Statistic]:
        """Its ends; NaN with no degree of freedom."""
        half = self.errors * _quantile(self.freedom, 0.5 + level / 2)
        return self.mean - half, self.mean + half

    def p_values(self) -> Statistic:
        """Two-sided, of the mean being 0; 1 where it is 0 or there is no degree of freedom."""
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.abs(self.mean) / self.errors
            p = 2 * stdtr(np.where(self.freedom > 0, self.freedom, np.nan), -distance)
        nothing = (self.mean == 0) | (self.freedom == 0)
        values: Statistic = np.where(nothing, 1.0, p)
        return values

    def smallest_effect(self, level: float = 0.95, power: float = 0.8) -> Statistic:
        """A difference of this size is found (p < 1 - level) with probability `power`: what is
        smaller may be there and this comparison would not know."""
        found = _quantile(self.freedom, 0.5 + level / 2) + _quantile(self.freedom, power)
        effect: Statistic = self.errors * found
        return effect


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedStatistics:
    """The mean over seeds and rows of M metrics."""

    mean: Statistic
    spread: Statistic
    """Standard deviation of the seeds' means; NaN for one seed."""
    over_users: Uncertain
    """For these seeds, other users."""
    over_seeds: Uncertain
    """For these users, other seeds."""
    over_both: Uncertain


def seed_statistics(values: Values, users: Int[np.ndarray, " N"]) -> SeedStatistics:
    """Of one method, or of the differences of two whose seeds and rows are paired.

    Over both, the variances add up less what they both hold, that of e; the degrees of freedom are
    Satterthwaite's. With one seed `over_both` is `over_users`: it says nothing of other seeds.
    Raises `RecastError` without a row, for values that are not finite and shapes that do not fit.

    Example, by hand: seeds 1 and 3 on two users of a row each, equal for both: the means are 1 and
    3, their variance 2, over 2 seeds 1: `over_seeds.errors` is 1, `over_users.errors` 0.

    >>> found = seed_statistics(np.array([[[1.0], [1.0]], [[3.0], [3.0]]]), np.array([0, 1]))
    >>> found.mean.tolist(), found.over_seeds.errors.tolist(), found.over_users.errors.tolist()
    ([2.0], [1.0], [0.0])
    """
    _check(values, users)
    num_seeds, num_rows, _ = values.shape
    _, user = np.unique(users, return_inverse=True)
    num_users = int(user.max()) + 1
    means = values.mean(axis=1)
    # By how much each user moves each seed's mean.
    moved = np.zeros((num_seeds, num_users, values.shape[2]))
    for seed, residual in enumerate(values - means[:, None]):
        np.add.at(moved[seed], user, residual)
    moved /= num_rows
    per_user = moved.mean(axis=0)
    inflate = num_users / max(num_users - 1, 1)
    of_users = inflate * (per_user**2).sum(axis=0)
    mean, freedom = means.mean(axis=0), np.full(values.shape[2], float(num_users - 1))
    over_users = Uncertain(mean=mean, errors=np.sqrt(of_users), freedom=freedom)
    if num_seeds == 1:
        unknown = np.full_like(mean, np.nan)
        over_seeds = Uncertain(mean=mean, errors=unknown, freedom=np.zeros_like(mean))
        return SeedStatistics(
            mean=mean,
            spread=unknown,
            over_users=over_users,
            over_seeds=over_seeds,
            over_both=over_users,
        )
    spread = means.std(axis=0, ddof=1)
    of_seeds = spread**2 / num_seeds
    of_both = ((moved - per_user) ** 2).sum(axis=(0, 1)) * inflate / (num_seeds * (num_seeds - 1))
    seeds_freedom = np.full_like(mean, float(num_seeds - 1))
    total = np.maximum(of_users + np.maximum(of_seeds - of_both, 0.0), 0.0)
    parts = ((of_users, num_users - 1), (of_seeds, num_seeds - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = sum(part**2 / max(free, 1) for part, free in parts if free)
        satterthwaite = np.where(of_seeds > of_both, total**2 / noise, freedom)
    both_freedom = np.where(total > 0, satterthwaite, freedom)
    return SeedStatistics(
        mean=mean,
        spread=spread,
        over_users=over_users,
        over_seeds=Uncertain(mean=mean, errors=np.sqrt(of_seeds), freedom=seeds_freedom),
        over_both=Uncertain(mean=mean, errors=np.sqrt(total), freedom=both_freedom),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for a whole family of comparisons (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    count, most = len(p_values), 0.0
    adjusted = [0.0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        most = max(most, min((count - rank) * float(p_values[index]), 1.0))
        adjusted[index] = most
    return adjusted


def budget_ratio(
    steps: Sequence[float], curve: Sequence[float], reference: float, budget: float
) -> float | None:
    """Share of a reference's budget after which a method is as good as that at its end: the first
    evaluated step that reaches `reference`, over `budget` steps; None where none does.

    Nothing is interpolated: what was not evaluated is not known (arXiv 2604.22169, 5.4.1).

    >>> budget_ratio([0, 50, 100], [0.10, 0.13, 0.12], 0.125, 200)
    0.25
    """
    reached = [step for step, value in zip(steps, curve, strict=True) if value >= reference]
    return min(reached) / budget if reached else None


def _quantile(freedom: Statistic, probability: float) -> Statistic:
    with np.errstate(invalid="ignore"):
        quantiles: Statistic = stdtrit(np.where(freedom > 0, freedom, np.nan), probability)
    return quantiles


def _check(values: Values, users: Int[np.ndarray, " N"]) -> None:
    shapes = [np.shape(array) for array in (values, users)]
    fits = len(shapes[0]) == 3 and shapes[1] == shapes[0][1:2] and 0 not in shapes[0][:2]
    remedy = "give arrays [S, N, M] and [N] of a seed and a row or more"
    require(fits, "shape of values and users", shapes, remedy)
    require(bool(np.isfinite(values).all()), "values", values, "give finite numbers alone")
    require(users.dtype.kind in "iu", "dtype of users", users.dtype, "give whole numbers")
