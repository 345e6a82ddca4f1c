"""The search for an item-kNN: a measure of quality in, the best settings found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from torch import Tensor

from recast.policy.baselines import (
    FIT_SPLITS,
    Baseline,
    KNNSettings,
    count_pairs,
    fit_item_knn,
)
from recast.types import Interactions

KNN_GRID: dict[str, tuple[float, ...]] = {
    "recent": (1, 3, 5, 10, 20, 50),
    "history_decay": (1.0, 0.95, 0.9, 0.8, 0.65, 0.5),
    "history_damping": (0.0, 0.25, 0.5, 0.75, 1.0),
    "item_damping": (0.0, 0.25, 0.5),
    "window": (2, 5, 10, 20),
    "distance_decay": (1.0, 0.9, 0.8),
    "backward": (1.0, 0.5, 0.0),
}
"""Values tried, one setting after the other in this order."""

KNN_STARTS = (
    KNNSettings(),
    KNNSettings(
        window=10,
        distance_decay=0.8,
        backward=0.5,
        recent=3,
        history_decay=0.65,
        history_damping=0.25,
        item_damping=0.25,
    ),
    KNNSettings(window=2, backward=0.0, recent=1, history_damping=0.25),
)
"""Where the search sets out from: what suits MovieLens-100K, what suits Amazon Beauty, and close to
a Markov chain of first order, where the latest item alone votes for what follows it."""

_KEPT = 4  # tables of pairs; of Beauty one takes 20 MB and a quarter of a second


def tune_item_knn(
    interactions: Interactions,
    quality: Callable[[Baseline], float],
    splits: Sequence[str] = FIT_SPLITS,
    starts: Sequence[KNNSettings] = KNN_STARTS,
) -> tuple[Baseline, float]:
    """The best item-kNN by `quality` (such as `recast.evaluation.knn_quality`), and its quality.

    Coordinate search from each start: each setting of `KNN_GRID` in turn takes its best value,
    until a whole round changes nothing. A tie keeps the earlier choice, and the earlier start.
    """

    @lru_cache(maxsize=_KEPT)
    def pairs(*counted: float) -> Tensor:
        names = ("window", "distance_decay", "backward")
        settings = replace(KNNSettings(), **dict(zip(names, counted, strict=True)))  # type: ignore[arg-type]
        return count_pairs(interactions, settings, splits)

    def fit(settings: KNNSettings) -> Baseline:
        counted = pairs(settings.window, settings.distance_decay, settings.backward)
        return fit_item_knn(interactions, settings, splits, counted)

    known: dict[KNNSettings, float] = {}

    def value_of(settings: KNNSettings) -> float:
        if settings not in known:
            known[settings] = quality(fit(settings))
        return known[settings]

    found = [_climb(start, value_of) for start in starts]
    best = max(found, key=value_of)  # the first of equals
    return fit(best), value_of(best)


def _climb(settings: KNNSettings, value_of: Callable[[KNNSettings], float]) -> KNNSettings:
    improved = True
    while improved:
        improved = False
        for name, grid in KNN_GRID.items():
            for one in [replace(settings, **{name: choice}) for choice in grid]:  # type: ignore[arg-type]
                if value_of(one) > value_of(settings):
                    settings, improved = one, True
    return settings
