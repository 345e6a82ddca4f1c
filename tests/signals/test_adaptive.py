"""Adaptive repair: the anchor's weight falls as the policy hits by itself."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from recast.rewards.hit import first_hit
from recast.signals.adaptive import recast_adaptive
from recast.signals.grpo import grpo
from recast.signals.recast import repair_only
from recast.types import RecastError

TARGET = [[[1, 2]]]


@pytest.mark.parametrize("natural_frac", [0.0, 0.25, 1.0])
def test_repaired_groups_are_scaled_and_natural_ones_are_not(natural_frac: float) -> None:
    """An all-zero group of 4, one with a hit, one without rollouts; GRPO's 1.5 and -0.5."""
    rollouts = [
        [[1, 9], [3, 4], [5, 6], [7, 8]],
        [[3, 4], [1, 2], [5, 6], [7, 8]],
        [[0, 0], [0, 0], [0, 0], [0, 0]],
    ]
    exists = [[True] * 4, [True] * 4, [False] * 4]
    groups = tiny.make_groups(rollouts, TARGET * 3, exists=exists)
    signal = recast_adaptive(groups, first_hit(groups), natural_frac=natural_frac)
    weight = 1 - natural_frac
    wanted = torch.tensor([[-0.5, -0.5, -0.5, 1.5], [-0.5, 1.5, -0.5, -0.5], [0.0] * 4])
    wanted[0] *= weight
    torch.testing.assert_close(signal.advantages[..., 0], wanted, rtol=0, atol=1e-5)
    assert signal.groups.tokens[0].tolist() == [[1, 9], [3, 4], [5, 6], [1, 2]]
    assert signal.keep.tolist() == [[True] * 4, [True] * 4, [False] * 3 + [True]]
    assert signal.nll_weight.tolist() == [0, 0, 0]
    assert signal.metrics == {
        "group/repaired_frac": pytest.approx(2 / 3),
        "signal/anchor_weight": weight,
    }


def test_the_two_ends_are_repair_only_and_grpo() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 4, (50, 5, 2), generator=draw).tolist()
    groups = tiny.make_groups(tokens, TARGET * 50)
    rewards = first_hit(groups)
    start = recast_adaptive(groups, rewards, natural_frac=0.0)
    assert torch.equal(start.advantages, repair_only(groups, rewards).advantages)
    end = recast_adaptive(groups, rewards, natural_frac=1.0)
    assert torch.equal(end.advantages, grpo(groups, rewards).advantages)
    assert not torch.equal(start.advantages, end.advantages)


@pytest.mark.parametrize("rollout", [[1, 2], [3, 4]])
def test_one_rollout_carries_nothing_and_stays(rollout: list[int]) -> None:
    groups = tiny.make_groups([[rollout]], TARGET)
    signal = recast_adaptive(groups, first_hit(groups), natural_frac=0.5)
    assert signal.advantages.tolist() == [[[0]]]
    assert signal.keep.tolist() == [[True]]


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(value: float) -> None:
    groups = tiny.make_groups([[[1, 2]]], TARGET)
    with pytest.raises(RecastError, match=f"natural_frac is {value}: give a number from 0 to 1"):
        recast_adaptive(groups, first_hit(groups), natural_frac=value)
    with pytest.raises(RecastError, match="eps is -1: give a number from 0 to 1"):
        recast_adaptive(groups, first_hit(groups), natural_frac=0.5, eps=-1)
