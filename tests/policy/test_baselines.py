from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_events import random_events, small_events
from torch import Tensor

from recast.policy import baselines
from recast.policy.baselines import KNNSettings, Scorer, item_knn, popularity
from recast.types import Interactions

PLAIN = KNNSettings(
    window=2,
    distance_decay=0.5,
    backward=0.25,
    recent=2,
    history_decay=0.5,
    history_damping=0.0,
    item_damping=0.0,
)


def four_items() -> Interactions:
    """Two users to learn from, a third one to score: its history is 0, 1."""
    return small_events(
        [[0, 1, 2], [1, 2, 3], [0, 1, 3]],
        [["train"] * 3, ["train", "rl", "rl"], ["valid", "valid", "test"]],
    )


def test_popularity_by_hand() -> None:
    data = four_items()
    rows = torch.tensor([7, 8])
    assert popularity(data)(data, rows).tolist() == [[1, 2, 2, 1]] * 2
    assert popularity(data, ["train"])(data, rows).tolist() == [[1, 2, 1, 0]] * 2


def test_knn_by_hand() -> None:
    # Pairs: (0,1) 1, (1,2) 1, (0,2) .5 and (1,2) 1, (2,3) 1, (1,3) .5, backwards a quarter.
    data = four_items()
    rows = torch.tensor([7, 8])
    scores = item_knn(data, PLAIN)(data, rows)
    of_0, of_1 = torch.tensor([0, 1, 0.5, 0]), torch.tensor([0.25, 0, 2, 0.5])
    torch.testing.assert_close(scores, torch.stack([of_0, 0.5 * of_0 + of_1]))
    # Events per item 1, 2, 2, 1: voters 0 and 1 are divided by 2 and 3, candidates likewise.
    damped = item_knn(data, replace(PLAIN, history_damping=1.0, item_damping=1.0))(data, rows)
    counts = torch.tensor([2.0, 3, 3, 2])
    torch.testing.assert_close(damped[1], (0.5 * of_0 / 2 + of_1 / 3) / counts)
    latest = item_knn(data, replace(PLAIN, recent=1))(data, rows)
    torch.testing.assert_close(latest[1], of_1)


def slow_knn(data: Interactions, settings: KNNSettings, row: int) -> Tensor:
    fitted = [e for e in range(len(data.items)) if int(data.splits[e]) < 2]
    pairs, counts = torch.zeros(data.num_items, data.num_items), torch.ones(data.num_items)
    for i, first in enumerate(fitted):
        counts[data.items[first]] += 1
        for j in range(i + 1, len(fitted)):
            second, distance = fitted[j], j - i
            if distance <= settings.window and data.users[first] == data.users[second]:
                weight = settings.distance_decay ** (distance - 1)
                pairs[data.items[first], data.items[second]] += weight
                pairs[data.items[second], data.items[first]] += settings.backward * weight
    scores = torch.zeros(data.num_items)
    past = data.items[data.starts[row] : row].tolist()[::-1][: settings.recent]
    for age, item in enumerate(past):
        damping = counts[item] ** settings.history_damping * counts**settings.item_damping
        scores += settings.history_decay**age * pairs[item] / damping
    return scores


@pytest.mark.parametrize("most_dense", [0, 4096], ids=["sparse", "dense"])
@pytest.mark.parametrize("settings", [PLAIN, KNNSettings(), KNNSettings(window=20, recent=50)])
def test_knn_equals_the_formula(
    settings: KNNSettings, most_dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_DENSE", most_dense)
    data = random_events()
    rows = data.rows("test")
    scores = item_knn(data, settings)(data, rows)
    expected = torch.stack([slow_knn(data, settings, int(row)) for row in rows])
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("fit", [popularity, item_knn])
def test_validation_and_test_events_teach_nothing(fit: object) -> None:
    data = random_events()
    held_out = data.splits >= 2
    shuffled = data.items.clone()
    shuffled[held_out] = (shuffled[held_out] + 5) % 12
    other = replace(data, items=shuffled)
    first: Scorer = fit(data)  # type: ignore[operator]
    second: Scorer = fit(other)  # type: ignore[operator]
    rows = data.rows("test")
    assert torch.equal(first(data, rows), second(data, rows))
    # The check can fail: one training event changes the scores.
    trained = data.items.clone()
    trained[0] = (trained[0] + 1) % 12
    third: Scorer = fit(replace(data, items=trained))  # type: ignore[operator]
    assert not torch.equal(first(data, rows), third(data, rows))
