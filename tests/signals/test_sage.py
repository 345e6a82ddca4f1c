"""SAGE: slate rewards and advantages, worked; N = 1; a slow reference; degenerate lists."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import tiny
import torch

from recast.rewards.hit import first_hit
from recast.signals.grpo import grpo, standardise
from recast.signals.sage import sage, slate_advantages, slate_reward
from recast.types import RecastError, RolloutGroups


def _all(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def _random(seed: int, num_prompts: int, size: int) -> RolloutGroups:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 3, (num_prompts, size, 3), generator=draw)
    exists = torch.rand(num_prompts, size, generator=draw) > 0.2 * (seed % 2)
    return tiny.make_groups(tokens.tolist(), [[[1, 1, 1]]] * num_prompts, exists=exists.tolist())


def _phi(sid: list[int]) -> float:
    """The structural score against the target (1, 1, 1)."""
    prefix = next((i for i, code in enumerate(sid) if code != 1), 3)
    return 10.0 ** (prefix - 3) if prefix else 0.0


def _slow(
    objectives: list[list[list[float]]],
    exists: list[list[bool]],
    weights: list[float],
    *,
    length: int,
    floor: float = 1e-3,
    eps: float = 1e-6,
) -> list[list[float]]:
    """The definition, list by list: mixed standard scores, then a batch norm with its mean."""
    mixed: list[list[float | None]] = []
    for b, there in enumerate(exists):
        lists = [range(start, start + length) for start in range(0, len(there), length)]
        real = [g for g, rows in enumerate(lists) if any(there[i] for i in rows)]
        scores = [0.0] * len(lists)
        for rewards, weight in zip(objectives, weights, strict=True):
            slates = {
                g: statistics.geometric_mean(
                    sorted(max(rewards[b][i], floor) for i in lists[g] if there[i])
                )
                for g in real
            }
            if len({round(value, 9) for value in slates.values()}) > 1:
                mean, spread = statistics.fmean(slates.values()), statistics.stdev(slates.values())
                for g in real:
                    scores[g] += weight * (slates[g] - mean) / (spread + eps)
        mixed.append([scores[g] if g in real else None for g in range(len(lists))])
    flat = [x for row in mixed for x in row if x is not None]
    mean, spread = statistics.fmean(flat), statistics.pstdev(flat)
    assert abs(mean) < 1e-9
    return [
        [0.0 if x is None else (x - mean) / (spread + eps) for x in row for _ in range(length)]
        for row in mixed
    ]


def test_worked_slate() -> None:
    rewards = torch.tensor([[[0.5, 0.8, 0.2]]])
    assert float(slate_reward(rewards, _all(1, 1, 3), 1e-3)) == pytest.approx(0.430887, abs=1e-6)


def test_one_miss_does_not_make_a_list_worthless() -> None:
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]])
    exists = torch.tensor([[[True, True], [True, True], [True, False]]])
    found = slate_reward(rewards, exists, 0.01)
    assert found.flatten().tolist() == pytest.approx([0.1, 0.01, 1.0])


def test_the_order_of_a_list_does_not_move_its_last_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    rewards = torch.rand(50, 1, 5, generator=draw)
    order = torch.randperm(5, generator=draw)
    found = slate_reward(rewards, _all(50, 1, 5), 1e-3)
    assert torch.equal(found, slate_reward(rewards[..., order], _all(50, 1, 5), 1e-3))


def test_advantages_by_hand() -> None:
    """Standard scores +-1/sqrt 2 per objective; 2 x and 1 x agree, then disagree; rms sqrt 2.5."""
    lists = torch.tensor([[[1.0, 0.0], [3.0, 1.0]], [[8.0, 2.0], [0.0, 5.0]]])
    found = slate_advantages(lists, _all(2, 2), torch.tensor([2.0, 1.0]), 0.0)
    rms = math.sqrt((9 / 2 + 1 / 2) / 2)
    wanted = torch.tensor([[3.0, -3.0], [1.0, -1.0]]) / math.sqrt(2) / rms
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("seed", range(6))
def test_any_batch_equals_the_definition(seed: int) -> None:
    length = (1, 2, 3)[seed % 3]
    groups = _random(seed, 6, 4 * length)
    draw = torch.Generator().manual_seed(seed)
    rewards = torch.rand(6, 4 * length, generator=draw, dtype=torch.float64) * groups.exists
    before = rewards.clone()
    signal = sage(groups, rewards, list_length=length, reward_weight=0.7, structure_weight=0.4)
    structure = [[_phi(sid) for sid in row] for row in groups.tokens.tolist()]
    wanted = _slow([rewards.tolist(), structure], groups.exists.tolist(), [0.7, 0.4], length=length)
    torch.testing.assert_close(
        signal.advantages[..., 0],
        torch.tensor(wanted, dtype=torch.float64),
        rtol=1e-4,
        atol=1e-5,
    )
    assert torch.equal(signal.keep, groups.exists)
    assert signal.groups is groups
    assert torch.equal(rewards, before)


def test_lists_of_one_item_and_one_objective_are_grpo_over_its_spread_in_the_batch() -> None:
    groups = _random(0, 8, 6)
    rewards = first_hit(groups)
    assert set(rewards.sum(1).tolist()) >= {0.0, 1.0}
    signal = sage(groups, rewards, list_length=1, structure_weight=0.0)
    plain = grpo(groups, rewards).advantages[..., 0]
    wanted = plain / plain.square().mean().sqrt()
    torch.testing.assert_close(signal.advantages[..., 0], wanted, rtol=1e-5, atol=1e-5)
    ratio = (signal.advantages[..., 0] / plain)[plain != 0]
    assert ratio.max() - ratio.min() < 1e-4


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_groups_whose_lists_tie_give_exactly_zero_beside_one_that_learns(value: float) -> None:
    tokens = [[[2, 2, 2]] * 6, [[1, 1, 1]] * 3 + [[2, 2, 2]] * 3]
    groups = tiny.make_groups(tokens, [[[1, 1, 1]]] * 2)
    rewards = torch.stack([torch.full((6,), value), torch.tensor([1.0, 1, 1, 0, 0, 0])])
    signal = sage(groups, rewards, list_length=3)
    assert signal.advantages[0].flatten().tolist() == [0.0] * 6
    assert (signal.advantages[1].flatten() > 0).tolist() == [True] * 3 + [False] * 3
    assert signal.keep.all()


def test_hits_at_different_ranks_tie_exactly() -> None:
    groups = tiny.make_groups([[[2, 2, 2]] * 9], [[[1, 1, 1]]])
    rewards = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 0, 1]])
    assert not sage(groups, rewards, list_length=3).advantages.any()


def test_one_list_and_no_list_at_all_give_zero() -> None:
    one = tiny.make_groups([[[1, 1, 1], [2, 2, 2]]], [[[1, 1, 1]]])
    assert not sage(one, torch.tensor([[1.0, 0]]), list_length=2).advantages.any()
    none = tiny.make_groups([[[0] * 3] * 4], [[[1, 1, 1]]], exists=[[False] * 4])
    signal = sage(none, torch.zeros(1, 4), list_length=2)
    assert not signal.advantages.any()
    assert not signal.keep.any()
    assert all(math.isfinite(value) for value in signal.metrics.values())


def test_the_objectives_are_standardised_before_they_meet() -> None:
    """A thousandfold scale of one objective changes nothing."""
    draw = torch.Generator().manual_seed(2)
    lists = torch.rand(2, 5, 4, generator=draw, dtype=torch.float64)
    scaled = lists * torch.tensor([1.0, 1000.0], dtype=torch.float64)[:, None, None]
    weights = torch.ones(2, dtype=torch.float64)
    found = slate_advantages(lists, _all(5, 4), weights, 0.0)
    torch.testing.assert_close(slate_advantages(scaled, _all(5, 4), weights, 0.0), found)
    alone = standardise(lists[0], _all(5, 4), 0.0)
    assert not torch.allclose(found, alone / alone.square().mean().sqrt())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"floor": 0.0}, r"floor is 0\.0: give a number above 0, up to 0.5"),
        ({"floor": 1.0}, r"floor is 1\.0"),
        ({"reward_weight": -1.0}, r"reward_weight is -1\.0: give a number from 0"),
        ({"structure_weight": float("nan")}, "structure_weight is nan"),
        ({"eps": -1.0}, r"eps is -1\.0"),
        ({"list_length": 4}, "list_length is 4"),
    ],
)
def test_what_is_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    groups = _random(0, 2, 6)
    with pytest.raises(RecastError, match=message):
        sage(groups, torch.zeros(2, 6), **({"list_length": 2} | settings))
