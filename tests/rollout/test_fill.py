"""DAPO's filter: what is drawn, what is kept, in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from recast.groups import is_mixed
from recast.rollout.fill import Drawn, Rewarded, fill_batch
from recast.testing import make_groups
from recast.types import Prompts, RolloutGroups

SIZE = 3


def _groups(rows: Tensor, weights: bool = False) -> RolloutGroups:
    """Two rollouts per prompt whose tokens spell the row id."""
    tokens = [[[int(row), 1], [int(row), 2]] for row in rows]
    groups = tiny.make_groups(tokens, [[[9, 9]]] * len(rows))
    prompts = replace(groups.prompts, row_ids=rows)
    values = rows[:, None].double().expand(-1, 2) if weights else None
    return replace(groups, prompts=prompts, weights=values)


def _build(rows: Tensor) -> Prompts:
    return _groups(rows).prompts


def _run(
    batches: list[list[int]], mixed: set[int], max_batches: int, weights: bool = False
) -> tuple[Drawn, list[Drawn]]:
    def draw(rows: Tensor) -> Drawn:
        hit = torch.tensor([[float(int(row) in mixed), 0.0] for row in rows])
        both = Rewarded(_groups(rows, weights), hit)
        return Drawn(both, both)

    return fill_batch(draw, iter([torch.tensor(b) for b in batches]), _build, max_batches)


def test_a_group_is_mixed_when_its_existing_rewards_differ() -> None:
    groups = tiny.make_groups(
        [[[1, 1]] * 3] * 5,
        [[[9, 9]]] * 5,
        exists=[[True] * 3, [True] * 3, [True] * 3, [True, True, False], [False] * 3],
    )
    rewards = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1]])
    assert is_mixed(groups, rewards).tolist() == [False, False, True, False, False]


def test_one_batch_is_enough_when_all_its_groups_are_mixed() -> None:
    ((groups, rewards), _), drawn = _run([[4, 5, 6], [7, 8, 9]], {4, 5, 6, 7}, 10)
    assert len(drawn) == 1
    assert groups.prompts.row_ids.tolist() == [4, 5, 6]
    assert rewards.tolist() == [[1, 0]] * 3


def test_it_draws_until_the_batch_is_full_and_keeps_the_order() -> None:
    batches = [[4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]]
    ((groups, rewards), _), drawn = _run(batches, {5, 9, 11, 12, 13}, 10, weights=True)
    assert len(drawn) == 3
    rows = groups.prompts.row_ids
    assert rows.tolist() == [5, 9, 11]  # 12 is one too many
    assert groups.tokens[:, :, 0].tolist() == [[5, 5], [9, 9], [11, 11]]
    assert groups.weights is not None
    assert groups.weights.tolist() == [[5, 5], [9, 9], [11, 11]]
    assert rewards.tolist() == [[1, 0]] * 3


@pytest.mark.parametrize(("max_batches", "wanted"), [(2, [5, 9]), (1, [5])])
def test_it_stops_at_the_limit_with_a_short_batch(max_batches: int, wanted: list[int]) -> None:
    ((groups, _), _), drawn = _run([[4, 5, 6], [7, 8, 9], [10, 11, 12]], {5, 9, 11}, max_batches)
    assert len(drawn) == max_batches
    assert groups.prompts.row_ids.tolist() == wanted


def test_without_any_mixed_group_the_first_batch_stays() -> None:
    ((groups, rewards), _), drawn = _run([[4, 5, 6], [7, 8, 9]], set(), 10)
    assert len(drawn) == 2
    assert groups.prompts.row_ids.tolist() == [4, 5, 6]
    assert not rewards.any()


def test_with_a_target_put_in_the_signals_groups_decide_and_the_drawn_ones_go_along() -> None:
    """As drawn only row 5 is mixed; as given rows 5 and 6 are."""

    def draw(rows: Tensor) -> Drawn:
        groups = _groups(rows)
        drawn = torch.tensor([[float(int(row) == 5), 0.0] for row in rows])
        given = torch.tensor([[float(int(row) == 5), float(int(row) == 6)] for row in rows])
        last = torch.tensor([[False, True]]).expand(len(rows), 2)
        return Drawn(Rewarded(groups, drawn), Rewarded(replace(groups, injected=last), given))

    batches = iter([torch.tensor([4, 5, 6]), torch.tensor([7, 8, 9])])
    batch, every = fill_batch(draw, batches, _build, 2)
    assert len(every) == 2
    assert batch.given.rewards.tolist() == [[1, 0], [0, 1]]
    assert batch.drawn.rewards.tolist() == [[1, 0], [0, 0]]
    assert batch.given.groups.injected is not None
    assert batch.drawn.groups.injected is None
    assert batch.given.groups.prompts is batch.drawn.groups.prompts
    assert batch.given.groups.prompts.row_ids.tolist() == [5, 6]


def test_batches_whose_rows_have_other_numbers_of_targets_go_together() -> None:
    """Row r has r targets, log-probability -1 a token each; row 3 leaves, its third target too."""

    def groups_of(rows: Tensor) -> RolloutGroups:
        targets = [[[7, place] for place in range(int(row))] for row in rows]
        groups = make_groups([[[9, 1], [9, 2]]] * len(rows), targets)
        return replace(groups, prompts=replace(groups.prompts, row_ids=rows))

    def draw(rows: Tensor) -> Drawn:
        both = Rewarded(groups_of(rows), (rows[:, None] < 3) * torch.tensor([[1.0, 0.0]]))
        return Drawn(both, both)

    batches = iter([torch.tensor([1, 3]), torch.tensor([2, 2])])
    batch, _ = fill_batch(draw, batches, lambda rows: groups_of(rows).prompts, 2)
    groups = batch.given.groups
    assert groups.prompts.row_ids.tolist() == [1, 2]
    assert groups.target_logprobs.tolist() == [[[-1, -1], [0, 0]], [[-1, -1], [-1, -1]]]
    assert torch.equal(groups.prompts.target_mask, groups.target_logprobs < 0)
