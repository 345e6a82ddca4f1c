"""The search for an item-kNN: what it tries, where it stops and what it must not read."""

from __future__ import annotations

from dataclasses import replace

import torch
from small_events import random_events

from recast.policy.baselines import Baseline, KNNSettings, item_knn
from recast.policy.knn_search import KNN_GRID, KNN_STARTS, tune_item_knn


def test_tuning_teaches_nothing_either() -> None:
    data = random_events()
    shuffled = data.items.clone()
    shuffled[data.splits == 3] = 0
    probe = data.rows("valid")

    def quality(knn: Baseline) -> float:
        return float(knn.scorer(data, probe).gather(1, data.items[probe][:, None]).mean())

    first, value = tune_item_knn(data, quality)
    second, same = tune_item_knn(replace(data, items=shuffled), quality)
    assert (first.settings, value) == (second.settings, same)
    assert torch.equal(first.scorer(data, probe), second.scorer(data, probe))


def test_tuning_returns_the_best_it_tried() -> None:
    data = random_events(num_items=10)
    rows = data.rows("valid")
    seen: list[float] = []

    def quality(knn: Baseline) -> float:
        scores = knn.scorer(data, rows)
        own = scores.gather(1, data.items[rows][:, None])
        seen.append(-float((scores > own).sum(1).float().mean()))
        return seen[-1]

    knn, value = tune_item_knn(data, quality, ["train"])
    assert knn.splits == ("train",)
    assert knn.settings is not None
    assert value == max(seen)
    assert quality(knn) == value
    expected = item_knn(data, knn.settings, ["train"])
    torch.testing.assert_close(knn.scorer(data, rows), expected(data, rows))
    for start in KNN_STARTS:
        assert tune_item_knn(data, quality, ["train"], [start])[1] <= value
    climbs = [tune_item_knn(data, quality, ["train"], [start])[1] for start in KNN_STARTS]
    assert max(climbs) == value


def test_no_single_step_improves_what_a_climb_found() -> None:
    data = random_events()
    wanted = KNNSettings(window=20, recent=1, backward=0.5, history_decay=0.5)

    def quality(knn: Baseline) -> float:
        assert knn.settings is not None
        return -float(
            sum(
                abs(grid.index(getattr(knn.settings, name)) - grid.index(getattr(wanted, name)))
                for name, grid in KNN_GRID.items()
            )
        )

    assert [tune_item_knn(data, quality, starts=[start])[0].settings for start in KNN_STARTS] == [
        wanted
    ] * len(KNN_STARTS)


def test_a_constant_quality_keeps_the_first_start_and_tries_nothing_twice() -> None:
    calls: list[KNNSettings | None] = []

    def quality(knn: Baseline) -> float:
        calls.append(knn.settings)
        return 0.0

    knn, value = tune_item_knn(random_events(), quality)
    assert (knn.settings, value) == (KNN_STARTS[0], 0.0)
    assert len(calls) == len(set(calls))
    neighbours = {
        replace(start, **{name: choice})  # type: ignore[arg-type]
        for start in KNN_STARTS
        for name, grid in KNN_GRID.items()
        for choice in grid
    }
    assert set(calls) == neighbours
