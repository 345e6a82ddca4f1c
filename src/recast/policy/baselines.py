"""Baselines that every policy has to beat: past events in, scores of the whole catalogue out.

All are fitted on the slices that they are told, `train` and `rl` unless said otherwise; a scored
row contributes only its own history.
The form of the item-kNN is ours, found on the validation rows of MovieLens-100K: it holds what
sequential neighbourhood models share (co-occurrence within a window, less for distant pairs, less
for old history, popularity damped on both sides).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.data.history import history
from recast.types import Interactions, Prompts

Scorer = Callable[[Interactions, Int[Tensor, " N"]], Float[Tensor, "N I"]]
"""A way to rank: row ids in, one score per item out, the higher the earlier."""

FIT_SPLITS = ("train", "rl")

POPULAR = 0.01
"""Share of popularity in the item-kNN's distribution: an item without a vote needs some
probability. On validation rows of Amazon Beauty the ranking is the same from .001 to .3 (NDCG@10
.0695), the likelihood of the target rises with it (-10.7 nats at .01, -9.4 at .1, -8.6 at .5)."""

_DENSE = 4096  # items; the dense table then takes 64 MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class KNNSettings:
    """What `tune_item_knn` chooses; `fit_item_knn` has the formula."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What was counted: popularity alone, or an item-kNN where there are `settings`.

    Example, two items of which the first had 3 events and the second 1, no kNN:
    `counts=[3., 1.]  splits=("train",)  settings=None  table=None`.
    """

    counts: Float[Tensor, " I"]
    """Events of every item in `splits`."""
    splits: tuple[str, ...]
    settings: KNNSettings | None = None
    table: Tensor | None = None
    """Votes `[I, I]` of an item (row) for another, in CSR; of a small catalogue dense."""

    @property
    def kind(self) -> str:
        return "popularity" if self.settings is None else "item_knn"

    def scorer(self, data: Interactions, rows: Int[Tensor, " N"]) -> Float[Tensor, "N I"]:
        """A `Scorer`: events of every item, or votes."""
        if self.settings is None:
            return self.counts.expand(len(rows), -1)
        return _dense(self.votes(history(data, rows, self.settings.recent)))

    def ranker(self, prompts: Prompts, items: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """A `Ranker`: log-probabilities of the items, with v the votes of a row and c the counts

            share[j] = (c[j] + 1) / sum_k (c[k] + 1)
            p[j] = (1 - POPULAR) * v[j] / sum_k v[k] + POPULAR * share[j]

        and share alone for popularity and where nobody votes: they sum to 1 over the catalogue.
        """
        share = (self.counts + 1).float() / (self.counts + 1).sum()
        if self.settings is None:
            logprobs = share.log().expand(len(items), -1)
        else:
            votes = _dense(self.votes(prompts.history.cpu()))
            total = votes.sum(1, keepdim=True)
            mixed = (1 - POPULAR) * votes / total + POPULAR * share
            logprobs = torch.where(total > 0, mixed, share).log()
        return logprobs.to(items.device).gather(1, items)

    def votes(self, past: Int[Tensor, "N H"]) -> Tensor:
        """Of an item-kNN for every item, from histories, oldest first, right-padded with -1:
        `[N, I]`, dense or in CSR as the table is."""
        assert self.settings is not None
        assert self.table is not None
        row, place = (past >= 0).nonzero(as_tuple=True)
        age = (past >= 0).sum(1)[row] - 1 - place
        row, place, age = (x[age < self.settings.recent] for x in (row, place, age))
        index = torch.stack([row, past[row, place]])
        weights = self.settings.history_decay ** age.float()
        with _sparse_is_known():
            ballots = _sparse(index, weights, (len(past), len(self.counts)))
            votes: Tensor = torch.sparse.mm(ballots.to_sparse_csr(), self.table)
        return votes


def fit_popularity(interactions: Interactions, splits: Sequence[str] = FIT_SPLITS) -> Baseline:
    """Every item scores its number of events in `splits`, whatever the history."""
    items = interactions.items[interactions.within(splits)]
    return Baseline(counts=_counts(items, interactions.num_items), splits=tuple(splits))


def fit_item_knn(
    interactions: Interactions,
    settings: KNNSettings | None = None,
    splits: Sequence[str] = FIT_SPLITS,
    pairs: Tensor | None = None,
) -> Baseline:
    """Items that followed, or preceded, the latest items of the history in other sequences.

    With C[i, j] = sum over pairs (i, then j) of `distance_decay ** (d - 1)` plus `backward` times
    the same for (j, then i), p = events of an item, and the history h_1 (latest), h_2, ...:

        score[j] = sum_n history_decay ** (n - 1) * C[h_n, j]
                   / ((p[h_n] + 1) ** history_damping * (p[j] + 1) ** item_damping)

    C (`pairs`, as `count_pairs` counts them) holds at most `2 * window` entries per event.
    """
    settings = settings or KNNSettings()
    pairs = count_pairs(interactions, settings, splits) if pairs is None else pairs
    counts = fit_popularity(interactions, splits).counts
    damped = counts.float() + 1
    voter, item = pairs.indices()
    voters, items = damped**settings.history_damping, damped**settings.item_damping
    weights = pairs.values() / (voters[voter] * items[item])
    starts = torch.bincount(voter, minlength=len(counts)).cumsum(0)
    table = as_table(torch.nn.functional.pad(starts, (1, 0)), item, weights)
    return Baseline(counts=counts, splits=tuple(splits), settings=settings, table=table)


def popularity(interactions: Interactions, splits: Sequence[str] = FIT_SPLITS) -> Scorer:
    """The scorer of `fit_popularity`."""
    return fit_popularity(interactions, splits).scorer


def item_knn(
    interactions: Interactions,
    settings: KNNSettings | None = None,
    splits: Sequence[str] = FIT_SPLITS,
) -> Scorer:
    """The scorer of `fit_item_knn`."""
    return fit_item_knn(interactions, settings, splits).scorer


def count_pairs(interactions: Interactions, settings: KNNSettings, splits: Sequence[str]) -> Tensor:
    """C of `fit_item_knn`, sparse `[I, I]`; of the settings window, distance_decay and backward."""
    fitted = interactions.within(splits)
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


def as_table(
    starts: Int[Tensor, " J"], items: Int[Tensor, " n"], values: Float[Tensor, " n"]
) -> Tensor:
    """Votes `[I, I]` as `Baseline.table` holds them: row i is those from `starts[i]` up to
    `starts[i + 1]`, for ascending `items`; J is I + 1. Raises `RuntimeError` for what is no such
    table."""
    num_items = len(starts) - 1
    with _sparse_is_known():
        table = torch.sparse_csr_tensor(
            starts, items, values, (num_items, num_items), check_invariants=True
        )
    # A small catalogue is so full of pairs that the dense product is several times faster.
    return table.to_dense() if num_items <= _DENSE else table


def as_votes(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `as_table` made it of."""
    with _sparse_is_known():
        votes = table.to_sparse_csr()
    return votes.crow_indices(), votes.col_indices(), votes.values()


def _dense(votes: Tensor) -> Float[Tensor, "N I"]:
    return votes if votes.layout == torch.strided else votes.to_dense()


@contextmanager
def _sparse_is_known() -> Iterator[None]:
    """torch calls its sparse layouts beta, once per process; the products are exact."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
        yield


def _counts(items: Int[Tensor, " F"], num_items: int) -> Float[Tensor, " I"]:
    return torch.bincount(items, minlength=num_items).double()


def _sparse(
    index: Int[Tensor, "2 n"], values: Float[Tensor, " n"], size: tuple[int, ...]
) -> Tensor:
    return torch.sparse_coo_tensor(index, values, size, check_invariants=True).coalesce()
