"""Rank-GRPO: returns per rank, worked; N = 1 is GRPO; a slow reference; degenerate lists."""

from __future__ import annotations

import math
import statistics

import pytest
import tiny
import torch

from recast.signals.grpo import grpo
from recast.signals.rank_grpo import rank_grpo, rank_returns
from recast.types import RecastError, RolloutGroups


def _groups(exists: list[list[bool]]) -> RolloutGroups:
    tokens = [[[i + 1, i + 2] for i in range(len(row))] for row in exists]
    return tiny.make_groups(tokens, [[[1, 2]]] * len(exists), exists=exists)


def _slow(
    rewards: list[float], exists: list[bool], length: int, discount: bool, eps: float
) -> list[float]:
    """The definition for one prompt, list by list and rank by rank."""
    count = len(rewards) // length
    returns = [[0.0] * length for _ in range(count)]
    for g in range(count):
        for k in range(length):
            for j in range(k, length):
                if exists[g * length + j] and (discount or j == k):
                    gain = rewards[g * length + j]
                    returns[g][k] += gain / math.log2(j + 2) if discount else gain
    found = [0.0] * len(rewards)
    for k in range(length):
        there = [g for g in range(count) if exists[g * length + k]]
        column = [returns[g][k] for g in there]
        if len(set(column)) > 1:
            mean, spread = statistics.fmean(column), statistics.stdev(column)
            for g in there:
                found[g * length + k] = (returns[g][k] - mean) / (spread + eps)
    return found


def test_worked_returns() -> None:
    assert rank_returns(torch.tensor([1.0, 0, 1, 0])).tolist() == [1.5, 0.5, 0.5, 0]


def test_by_hand_two_lists_of_three() -> None:
    """DCG@k of [1,0,0] is [1,0,0], of [0,0,1] is [.5,.5,.5]: each rank has its own baseline."""
    groups = _groups([[True] * 6])
    rewards = torch.tensor([[1.0, 0, 0, 0, 0, 1]])
    half = 1 / math.sqrt(2)
    found = rank_grpo(groups, rewards, list_length=3, eps=0.0)
    wanted = [half, -half, -half, -half, half, half]
    assert found.advantages.flatten().tolist() == pytest.approx(wanted)
    plain = rank_grpo(groups, rewards, list_length=3, discount=False, eps=0.0)
    wanted = [half, 0, -half, -half, 0, half]
    assert plain.advantages.flatten().tolist() == pytest.approx(wanted)
    assert found.metrics["reward/list_dcg"] == pytest.approx(0.75)


@pytest.mark.parametrize("discount", [True, False])
def test_lists_of_one_item_are_grpo_to_the_last_bit(discount: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    rewards = torch.rand(20, 8, generator=draw).round(decimals=1)
    rewards[0] = 0.1
    exists = torch.rand(20, 8, generator=draw) > 0.2
    groups = _groups(exists.tolist())
    rewards = rewards * exists
    found = rank_grpo(groups, rewards, list_length=1, discount=discount, eps=1e-6)
    plain = grpo(groups, rewards)
    assert torch.equal(found.advantages, plain.advantages)
    assert torch.equal(found.keep, plain.keep)


@pytest.mark.parametrize("seed", range(6))
def test_any_batch_equals_the_definition(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    length, count = [(1, 4), (2, 3), (3, 1), (3, 4), (4, 2), (5, 2)][seed]
    rewards = torch.randint(0, 3, (7, count * length), generator=draw).double() / 2
    lengths = torch.randint(0, length + 1, (7, count, 1), generator=draw)
    exists = (torch.arange(length) < lengths).flatten(1)
    if seed % 2:
        exists[:] = True
    groups = _groups(exists.tolist())
    before = rewards.clone()
    for discount in (True, False):
        signal = rank_grpo(groups, rewards, list_length=length, discount=discount)
        wanted = [
            _slow(row, there, length, discount, 1e-4)
            for row, there in zip(rewards.tolist(), exists.tolist(), strict=True)
        ]
        torch.testing.assert_close(
            signal.advantages[..., 0], torch.tensor(wanted, dtype=torch.float64)
        )
        assert torch.equal(signal.keep, exists)
    assert torch.equal(rewards, before)
    assert signal.groups is groups


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_lists_give_exactly_zero(value: float) -> None:
    for count in (1, 2, 7):
        signal = rank_grpo(
            _groups([[True] * 3 * count]), torch.full((1, 3 * count), value), list_length=3
        )
        assert not signal.advantages.any()
        assert signal.keep.all()


def test_whole_lists_may_change_places() -> None:
    groups = _groups([[True] * 6])
    rewards = torch.tensor([[1.0, 0, 0, 0, 0, 1]])
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    found = rank_grpo(groups, rewards[:, order], list_length=3).advantages
    assert torch.equal(found, rank_grpo(groups, rewards, list_length=3).advantages[:, order])


def test_an_item_is_not_credited_with_what_stood_before_it() -> None:
    """Only the first rank differs between the lists."""
    found = rank_grpo(
        _groups([[True] * 6]), torch.tensor([[1.0, 0, 1, 0, 0, 1]]), list_length=3
    ).advantages
    assert (found.flatten() != 0).tolist() == [True, False, False] * 2


@pytest.mark.parametrize("length", [0, -1, 4, 7])
def test_rows_that_are_no_lists_are_refused(length: int) -> None:
    with pytest.raises(RecastError, match=f"list_length is {length}: the groups hold 6 rollouts"):
        rank_grpo(_groups([[True] * 6]), torch.zeros(1, 6), list_length=length)


def test_eps_below_zero_is_refused() -> None:
    with pytest.raises(RecastError, match=r"eps is -1\.0: give a number from 0 to 1"):
        rank_grpo(_groups([[True] * 2]), torch.zeros(1, 2), list_length=1, eps=-1.0)


def test_a_list_without_an_item_is_none_of_the_mean() -> None:
    """DCG 1 of the first list; of the second no item was left."""
    groups = _groups([[True, True, False, False]])
    found = rank_grpo(groups, torch.tensor([[1.0, 0, 0, 0]]), list_length=2)
    assert found.metrics["reward/list_dcg"] == 1
