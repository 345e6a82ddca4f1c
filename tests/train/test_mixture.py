"""How many rows of each task are read, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import small_chat
import torch
from small_rows import small_rows

from recast.policy.tasks import Task, make_task
from recast.train.mixture import check_weights, mixed_batches, mixed_epoch, shares
from recast.types import RecastError

TASKS = [0] * 12 + [1] * 4 + [2] * 2


@pytest.fixture(scope="module")
def task() -> Task:
    rows = small_rows(
        [[1]] * 18,
        history=[[0]] * 18,
        splits=["train"] * 18,
        tasks=TASKS,
        task_names=("a", "b", "c"),
        task_domains=(0, 0, 0),
        num_items=8,
    )
    return make_task(rows, small_chat.chat_policy())


def counts(rows: torch.Tensor) -> list[int]:
    return torch.tensor(TASKS)[rows].bincount(minlength=3).tolist()


def test_shares_are_the_weights_and_lose_no_row(task: Task) -> None:
    assert shares(task, {"a": 1, "b": 1, "c": 0}, 7) == [4, 3, 0]
    # 1.6, 3.2 and 3.2 of 8: what is left goes to the one that lost most.
    assert shares(task, {"a": 1, "b": 2, "c": 2}, 8) == [2, 3, 3]


def test_every_batch_has_each_tasks_share(task: Task) -> None:
    def draw(**settings: Any) -> torch.Tensor:
        weights = {"a": 1, "b": 1, "c": 0.5}
        given = {"weights": weights, "size": 5, "count": 9, "seed": 1} | settings
        return mixed_batches(task, task.rows("train"), **given)

    batches = draw()
    assert batches.shape == (9, 5)
    assert [counts(batch) for batch in batches] == [[2, 2, 1]] * 9
    assert all(len(batch.unique()) == 5 for batch in batches)
    assert len(batches[:6, :2].unique()) == 12  # of one task a row comes again in the next pass
    assert torch.equal(batches, draw())
    assert not torch.equal(batches, draw(seed=2))
    assert counts(draw(weights={}, size=18, count=1)[0]) == [12, 4, 2]
    with pytest.raises(RecastError, match=r"^task_weights.c is 0.1: that is less than one of 5"):
        draw(weights={"a": 1, "b": 1, "c": 0.1})
    with pytest.raises(
        RecastError, match=r"^task_weights.c is 4, 4 of 5 prompts_per_step, and the"
    ):
        draw(weights={"a": 1, "b": 0, "c": 4})


def test_an_epoch_goes_through_each_task_in_passes(task: Task) -> None:
    rows, weights = task.rows("train"), {"a": 1, "b": 1, "c": 1}
    epochs = [mixed_epoch(task, rows, weights, seed=3, epoch=epoch) for epoch in range(2)]
    assert [counts(epoch) for epoch in epochs] == [[6, 6, 6]] * 2
    of_a = torch.cat([epoch[torch.tensor(TASKS)[epoch] == 0] for epoch in epochs])
    assert sorted(of_a.tolist()) == list(range(12))  # two halves of one pass
    of_c = epochs[1][torch.tensor(TASKS)[epochs[1]] == 2]
    assert of_c.bincount()[16:].tolist() == [3, 3]
    assert torch.equal(mixed_epoch(task, rows, {}, seed=3, epoch=1), rows)


def test_weights_that_name_no_task_or_too_few(task: Task) -> None:
    rows = task.rows("train")
    for weights, said in (
        ({"d": 1}, r"^task_weights is 'd': the data has no such task, only a, b, c"),
        ({"a": 1}, r"give b, c one too, 0 to leave it out"),
    ):
        with pytest.raises(RecastError, match=said):
            check_weights(task, rows, weights)
    with pytest.raises(RecastError, match=r"^task_weights.c is 1: the task has no row to train on"):
        check_weights(task, rows[:16], {"a": 1, "b": 1, "c": 1})
    with pytest.raises(RecastError, match=r"^task_weights.c is 0.01: that is less than one of the"):
        mixed_epoch(task, rows, {"a": 1, "b": 1, "c": 0.01}, seed=3, epoch=0)
