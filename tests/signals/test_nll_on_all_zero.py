"""The control without a negative: GRPO where there is a hit, likelihood where there is none."""

from __future__ import annotations

import pytest
import tiny
import torch

from recast.rewards.hit import first_hit
from recast.signals.grpo import grpo
from recast.signals.nll_on_all_zero import nll_on_all_zero
from recast.types import RecastError

TARGET = [[[1, 2]]]


def test_worked_groups() -> None:
    """One hit, no hit, no rollout, hits only, and one rollout that does not exist."""
    rollouts = [
        [[1, 2], [3, 4], [5, 6], [7, 8]],
        [[3, 4], [5, 6], [7, 8], [3, 4]],
        [[0, 0]] * 4,
        [[1, 2]] * 4,
        [[1, 2], [3, 4], [0, 0], [0, 0]],
    ]
    every, none = [True] * 4, [False] * 4
    exists = [every, every, none, every, [True, True, False, False]]
    groups = tiny.make_groups(rollouts, TARGET * 5, exists=exists)
    rewards = first_hit(groups)
    signal = nll_on_all_zero(groups, rewards)
    assert signal.groups is groups
    assert signal.keep.tolist() == [every, none, none, every, exists[4]]
    assert signal.nll_weight.tolist() == [0, 1, 1, 0, 0]
    root = 0.70711
    wanted = [[1.5, -0.5, -0.5, -0.5], [0] * 4, [0] * 4, [0] * 4, [root, -root, 0, 0]]
    torch.testing.assert_close(signal.advantages[..., 0], torch.tensor(wanted), rtol=0, atol=1e-5)
    assert torch.equal(signal.advantages, grpo(groups, rewards).advantages)
    assert signal.metrics == {"signal/nll_frac": pytest.approx(2 / 5)}
    assert not signal.nll_weight.requires_grad


def test_one_rollout() -> None:
    groups = tiny.make_groups([[[1, 2]], [[3, 4]]], TARGET * 2)
    signal = nll_on_all_zero(groups, first_hit(groups))
    assert signal.keep.tolist() == [[True], [False]]
    assert not signal.advantages.any()
    assert signal.nll_weight.tolist() == [0, 1]


def test_penalised_misses_and_rewards_of_nothing_are_no_hits() -> None:
    groups = tiny.make_groups([[[3, 4], [5, 6], [0, 0]]], TARGET, exists=[[True, True, False]])
    signal = nll_on_all_zero(groups, torch.tensor([[-0.5, -0.25, 1.0]]))
    assert not signal.keep.any()
    assert not signal.advantages.any()
    assert signal.nll_weight.tolist() == [1]


def test_any_of_several_targets_is_a_hit_and_a_prompt_without_one_weighs_nothing() -> None:
    groups = tiny.make_groups(
        [[[3, 4], [5, 6]]] * 2,
        [[[1, 2], [5, 6]], [[0, 0], [0, 0]]],
        target_items=[[8, 9], [-1, -1]],
    )
    signal = nll_on_all_zero(groups, first_hit(groups))
    assert signal.keep.tolist() == [[True, True], [False, False]]
    assert signal.nll_weight.tolist() == [0, 0]


def test_an_eps_below_zero_is_refused() -> None:
    groups = tiny.make_groups([[[1, 2]]], TARGET)
    with pytest.raises(RecastError, match="eps is -1: give a number from 0 to 1"):
        nll_on_all_zero(groups, first_hit(groups), eps=-1)
