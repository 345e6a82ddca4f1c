"""Baselines that every policy has to beat: past events in, a scorer of the whole catalogue out.

Both are fitted on the `train` and `rl` slices alone; a scored row contributes only its own history.
The form of the item-kNN is ours, found on the validation rows of MovieLens-100K: it holds what
sequential neighbourhood models share (co-occurrence within a window, less for distant pairs, less
for old history, popularity damped on both sides).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.data.history import history
from recast.types import SPLITS, Interactions

Scorer = Callable[[Interactions, Int[Tensor, " N"]], Float[Tensor, "N I"]]
"""A way to rank: row ids in, one score per item out, the higher the earlier."""

FIT_SPLITS = ("train", "rl")

_DENSE = 4096  # items; the dense table then takes 64 MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class KNNSettings:
    """What `tune_item_knn` chooses; `item_knn` has the formula."""

    window: int = 5
    """Events at most this far apart in one user's sequence count as a pair."""
    distance_decay: float = 0.9
    """A pair d events apart weighs `distance_decay ** (d - 1)`."""
    backward: float = 1.0
    """Weight of a pair seen in the opposite order."""
    recent: int = 5
    """Latest items of the history that vote."""
    history_decay: float = 0.95
    """The n-th latest item votes with `history_decay ** (n - 1)`."""
    history_damping: float = 0.5
    """Power of the voting item's popularity that its votes are divided by."""
    item_damping: float = 0.25
    """The same for the item voted for."""


KNN_GRID: dict[str, tuple[float, ...]] = {
    "recent": (1, 3, 5, 10, 20, 50),
    "history_decay": (1.0, 0.95, 0.9, 0.8),
    "history_damping": (0.0, 0.25, 0.5, 0.75, 1.0),
    "item_damping": (0.0, 0.25, 0.5),
    "window": (2, 5, 10, 20),
    "distance_decay": (1.0, 0.9, 0.8),
    "backward": (1.0, 0.5, 0.0),
}
"""Values tried, one setting after the other in this order."""


def popularity(interactions: Interactions, splits: Sequence[str] = FIT_SPLITS) -> Scorer:
    """Every item scores its number of events in `splits`, whatever the history."""
    counts = _counts(interactions.items[_fitted(interactions, splits)], interactions.num_items)

    def score(data: Interactions, rows: Int[Tensor, " N"]) -> Float[Tensor, "N I"]:
        return counts.expand(len(rows), -1)

    return score


def item_knn(
    interactions: Interactions,
    settings: KNNSettings | None = None,
    splits: Sequence[str] = FIT_SPLITS,
) -> Scorer:
    """Items that followed, or preceded, the latest items of the history in other sequences.

    With C[i, j] = sum over pairs (i, then j) of `distance_decay ** (d - 1)` plus `backward` times
    the same for (j, then i), p = events of an item, and the history h_1 (latest), h_2, ...:

        score[j] = sum_n history_decay ** (n - 1) * C[h_n, j]
                   / ((p[h_n] + 1) ** history_damping * (p[j] + 1) ** item_damping)

    C holds at most `2 * window` entries per event.
    """
    chosen = settings or KNNSettings()
    return _knn_scorer(_pairs(interactions, chosen, splits), interactions, chosen, splits)


def tune_item_knn(
    interactions: Interactions, quality: Callable[[Scorer], float]
) -> tuple[Scorer, KNNSettings, float]:
    """The best item-kNN by `quality` (validation NDCG@10, say), its settings and its quality.

    Coordinate search: each setting of `KNN_GRID` in turn takes its best value, until a whole round
    changes nothing. A tie keeps the earlier choice.
    """
    fitted: dict[tuple[float, ...], Tensor] = {}

    def build(settings: KNNSettings) -> Scorer:
        key = (settings.window, settings.distance_decay, settings.backward)
        if key not in fitted:
            fitted.clear()  # only the latest: the others are large and rarely come back
            fitted[key] = _pairs(interactions, settings, FIT_SPLITS)
        return _knn_scorer(fitted[key], interactions, settings, FIT_SPLITS)

    best = KNNSettings()
    value = quality(build(best))
    tried = {best}
    improved = True
    while improved:
        improved = False
        for name, grid in KNN_GRID.items():
            for setting in [replace(best, **{name: choice}) for choice in grid]:  # type: ignore[arg-type]
                if setting in tried:
                    continue
                tried.add(setting)
                found = quality(build(setting))
                if found > value:
                    best, value, improved = setting, found, True
    return build(best), best, value


def _fitted(interactions: Interactions, splits: Sequence[str]) -> Int[Tensor, " F"]:
    wanted = torch.tensor([SPLITS.index(split) for split in splits])
    return torch.isin(interactions.splits, wanted).nonzero()[:, 0]


def _counts(items: Int[Tensor, " F"], num_items: int) -> Float[Tensor, " I"]:
    return torch.bincount(items, minlength=num_items).double()


def _pairs(interactions: Interactions, settings: KNNSettings, splits: Sequence[str]) -> Tensor:
    """C of `item_knn`, sparse `[I, I]`."""
    fitted = _fitted(interactions, splits)
    users, items = interactions.users[fitted], interactions.items[fitted]
    index, values = [], []
    for distance in range(1, settings.window + 1):
        same = users[:-distance] == users[distance:]
        index.append(torch.stack([items[:-distance][same], items[distance:][same]]))
        weight = settings.distance_decay ** (distance - 1)
        values.append(torch.full((index[-1].shape[1],), weight))
    size = interactions.num_items, interactions.num_items
    forward = _sparse(torch.cat(index, 1), torch.cat(values), size)
    return (forward + settings.backward * forward.t()).coalesce()


def _knn_scorer(
    pairs: Tensor, interactions: Interactions, settings: KNNSettings, splits: Sequence[str]
) -> Scorer:
    num_items = interactions.num_items
    damped = _counts(interactions.items[_fitted(interactions, splits)], num_items).float() + 1
    voter, item = pairs.indices()
    weights = pairs.values() / (
        damped[voter] ** settings.history_damping * damped[item] ** settings.item_damping
    )
    table = _sparse(pairs.indices(), weights, tuple(pairs.shape))
    # A small catalogue is so full of pairs that the dense product is several times faster.
    table = table.to_dense() if num_items <= _DENSE else table

    def score(data: Interactions, rows: Int[Tensor, " N"]) -> Float[Tensor, "N I"]:
        past = history(data, rows, settings.recent)
        row, place = (past >= 0).nonzero(as_tuple=True)
        age = (past >= 0).sum(1)[row] - 1 - place
        votes = _sparse(
            torch.stack([row, past[row, place]]),
            settings.history_decay ** age.float(),
            (len(rows), num_items),
        )
        with warnings.catch_warnings():
            # torch calls its sparse layouts beta, once per process; the product is exact.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            scores: Tensor = torch.sparse.mm(votes, table)
        return scores.to_dense() if scores.is_sparse else scores

    return score


def _sparse(
    index: Int[Tensor, "2 n"], values: Float[Tensor, " n"], size: tuple[int, ...]
) -> Tensor:
    return torch.sparse_coo_tensor(index, values, size, check_invariants=True).coalesce()
