"""RISER: the pair's worked value and its gradient by autograd, the forced tokens, the edges."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from recast.items.fan_out import fan_out
from recast.losses import ppo_clip
from recast.rewards.hit import first_hit
from recast.signals.riser import pair_slopes, riser
from recast.types import RecastError, RolloutGroups, Signal


def _open(groups: RolloutGroups) -> Tensor:
    """A trie that always branches."""
    return 2 * groups.loss_mask.long()


def _by_token(groups: RolloutGroups) -> Tensor:
    """A trie that forces the tokens 1 and 4: any function of the rollout's own tokens will do."""
    return torch.where(groups.tokens % 3 == 1, 1, 3) * groups.exists[..., None]


def _groups(
    tokens: list[list[list[int]]], targets: list[list[list[int]]], **given: Any
) -> RolloutGroups:
    """Log-probabilities are random and in float64."""
    made = tiny.make_groups(tokens, targets, **given)
    draw = torch.Generator().manual_seed(5)
    shapes = made.rollout_logprobs.shape, made.target_logprobs.shape
    rollouts, wanted = (-3 * torch.rand(s, generator=draw, dtype=torch.float64) for s in shapes)
    return replace(made, rollout_logprobs=rollouts * made.exists[..., None], target_logprobs=wanted)


def _slow_loss(
    groups: RolloutGroups,
    rewards: Tensor,
    logprobs: Tensor,
    forced: Callable[[list[int]], list[bool]],
    *,
    beta: float,
    gamma: float,
    forced_weight: float,
    pair_weight: float,
) -> tuple[Tensor, int]:
    """n times the loss of every group, added up over the batch, and the tokens that count.

    `logprobs` are [B, G + 1, L], the target last; only groups with one target.
    """
    total, tokens = logprobs.new_zeros(()), 0

    def weights(sid: list[int]) -> list[float]:
        return [forced_weight if f else 1.0 for f in forced(sid)]

    def mean(row: Tensor, sid: list[int]) -> Tensor:
        return sum(w * x for w, x in zip(weights(sid), row, strict=True)) / sum(weights(sid))

    for b, group in enumerate(groups.tokens.tolist()):
        exists = groups.exists[b].tolist()
        distinct = [i for i, sid in enumerate(group) if exists[i] and sid not in group[:i]]
        levels = len(group[0])
        if any(float(rewards[b, i]) > 0 for i in distinct):
            values = [float(rewards[b, i]) for i in distinct]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            for i, value in zip(distinct, values, strict=True):
                advantage = (value - statistics.fmean(values)) / (spread + 1e-6)
                for w, x in zip(weights(group[i]), logprobs[b, i], strict=True):
                    total = total - advantage * w * x
            tokens += levels * len(distinct)
            continue
        target = groups.prompts.targets[b, 0].tolist()
        negatives = [i for i in distinct if group[i] != target]
        if not negatives or int(groups.prompts.target_items[b, 0]) < 0:
            continue
        pairs = [
            -torch.log(
                torch.sigmoid(
                    beta * (mean(logprobs[b, -1], target) - mean(logprobs[b, i], group[i])) - gamma
                )
            )
            for i in negatives
        ]
        counted = levels * (1 + len(negatives))
        total = total + pair_weight * counted * sum(pairs) / len(pairs)
        tokens += counted
    return total, tokens


def _kept(signal: Signal, row: int = 0) -> list[int]:
    return signal.keep[row].nonzero()[:, 0].tolist()


def test_worked_pair() -> None:
    """Mean log-probabilities of -.4 and -1.2, beta 2, gamma .5: loss .287335, slope .499462."""
    groups = tiny.make_groups([[[7, 8]]], [[[1, 2]]])
    groups = replace(
        groups,
        rollout_logprobs=torch.tensor([[[-1.0, -1.4]]]),
        target_logprobs=torch.tensor([[[-0.6, -0.2]]]),
    )
    signal = riser(groups, torch.zeros(1, 1), fan_out=_open)
    assert signal.metrics["signal/pair_loss"] == pytest.approx(0.287335, abs=1e-6)
    assert signal.metrics["group/paired_frac"] == 1
    slope = 2 / (1 + math.exp(1.1))
    wanted = torch.tensor([[[-1.0, -1.0], [1.0, 1.0]]]) * slope * 4 / 2
    torch.testing.assert_close(signal.advantages, wanted)
    assert signal.groups.tokens.tolist() == [[[7, 8], [1, 2]]]
    assert signal.groups.items.tolist() == [[0, 100]]
    assert signal.keep.all()


def test_slopes_sum_to_zero_and_a_group_without_negatives_has_none() -> None:
    mean = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -2.0, -0.5]])
    negatives = torch.tensor([[True, True, False], [False, False, False]])
    slopes = pair_slopes(mean, negatives, beta=2.0, gamma=0.5)
    assert float(slopes[0].sum()) == pytest.approx(0, abs=1e-7)
    assert (slopes[0] < 0).tolist() == [True, True, False]
    assert slopes[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_the_update_at_ratio_one_is_the_gradient_of_the_stated_loss(seed: int) -> None:
    """PPO's token mean against autograd through the explicit loss, on hit and failed groups."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 4, (6, 5, 3), generator=draw)
    exists = [[i < 5 - (b % 3) * (seed % 2) for i in range(5)] for b in range(6)]
    groups = _groups(tokens.tolist(), [[[1, 2, 3]]] * 3 + [[[9, 9, 7]]] * 3, exists=exists)
    rewards = first_hit(groups).double()
    rewards[0, 2] = 0.5 * exists[0][2]
    constants = {
        "beta": 1.0 + seed / 3,
        "gamma": seed / 5,
        "forced_weight": (0.0, 0.5, 1.0)[seed % 3],
        "pair_weight": 0.3 + seed,
    }
    before = [groups.tokens.clone(), groups.rollout_logprobs.clone(), rewards.clone()]
    signal = riser(groups, rewards, fan_out=_by_token, **constants)
    mask = signal.groups.loss_mask & signal.keep[..., None]
    logprobs = signal.groups.rollout_logprobs.clone().requires_grad_()
    loss = ppo_clip(logprobs, logprobs.detach(), signal.advantages)
    (loss * mask).sum().backward()
    leaves = signal.groups.rollout_logprobs.clone().requires_grad_()
    wanted, count = _slow_loss(
        groups, rewards, leaves, lambda sid: [token % 3 == 1 for token in sid], **constants
    )
    wanted.backward()
    assert count == int(mask.sum())
    torch.testing.assert_close(logprobs.grad, leaves.grad)
    torch.testing.assert_close(leaves.grad, -signal.advantages * mask)
    assert 0 < signal.metrics["group/paired_frac"] < 1
    after = [groups.tokens, groups.rollout_logprobs, rewards]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_a_hit_group_is_grpo_on_its_distinct_rollouts_and_gets_no_target() -> None:
    groups = _groups([[[1, 2], [7, 8], [7, 8], [9, 9], [1, 2]]], [[[1, 2]]])
    signal = riser(groups, torch.tensor([[1.0, 0, 0, 0, 1]]), fan_out=_open)
    assert _kept(signal) == [0, 1, 3]
    found = signal.advantages[0, :, 0].tolist()
    assert found == pytest.approx([1.154698, -0.577349, 0, -0.577349, 0, 0], abs=1e-5)
    assert signal.groups.exists.tolist() == [[True] * 5 + [False]]
    assert signal.groups.items[0, -1] == -1
    assert signal.metrics["group/paired_frac"] == 0


def test_forced_tokens_weigh_less_in_both_kinds_of_groups() -> None:
    """The trie forces the second token of item 0 and of the target of the second prompt."""
    catalog = tiny.tiny_catalog()
    sids = catalog.tokens_of(torch.tensor([[2, 0], [0, 3]])).tolist()
    targets = catalog.tokens_of(torch.tensor([[2], [2]])).tolist()
    groups = _groups(sids, targets, target_items=[[2], [2]], items=[[2, 0], [0, 3]])
    rewards = torch.tensor([[1.0, 0], [0, 0]])
    resource = partial(fan_out, catalog)
    assert resource(groups).tolist() == [[[3, 2, 1], [3, 2, 2]], [[3, 2, 2], [3, 1, 2]]]
    signal = riser(groups, rewards, fan_out=resource, forced_weight=0.25)
    advantages = signal.advantages
    assert float(advantages[0, 0, 2] / advantages[0, 0, 0]) == pytest.approx(0.25)
    assert float(advantages[0, 1, 2] / advantages[0, 1, 0]) == pytest.approx(1)
    assert float(advantages[1, 1, 1] / advantages[1, 1, 0]) == pytest.approx(0.25)
    assert float(advantages[1, 2, 2] / advantages[1, 2, 0]) == pytest.approx(0.25)
    assert signal.metrics["signal/forced_frac"] == pytest.approx(3 / 15)


def test_repeated_misses_make_one_pair() -> None:
    once = riser(_groups([[[7, 8], [9, 9]]], [[[1, 2]]]), torch.zeros(1, 2), fan_out=_open)
    groups = _groups([[[7, 8], [9, 9], [7, 8], [9, 9]]], [[[1, 2]]])
    twice = riser(groups, torch.zeros(1, 4), fan_out=_open)
    assert _kept(twice) == [0, 1, 4]
    assert _kept(once) == [0, 1, 2]


def test_of_several_targets_one_is_drawn_and_padding_never_is() -> None:
    targets = [[[1, 2], [3, 4], [0, 0]]] * 400
    groups = _groups([[[7, 8], [9, 9]]] * 400, targets, target_items=[[5, 6, -1]] * 400)
    signal = riser(groups, torch.zeros(400, 2), fan_out=_open)
    first = signal.groups.items[:, -1] == 5
    assert 150 < int(first.sum()) < 250
    assert (first | (signal.groups.items[:, -1] == 6)).all()
    chosen = groups.target_logprobs[:, 0].where(first[:, None], groups.target_logprobs[:, 1])
    assert torch.equal(signal.groups.rollout_logprobs[:, -1], chosen)


def test_a_failed_group_without_a_target_or_without_a_negative_leaves() -> None:
    """No target; no rollout; a reward that overlooks the one and only rollout, the target."""
    groups = _groups(
        [[[7, 8], [9, 9]], [[0, 0], [0, 0]], [[1, 2], [1, 2]], [[1, 2], [7, 8]]],
        [[[1, 2]]] * 4,
        target_items=[[-1], [5], [5], [5]],
        exists=[[True, True], [False, False], [True, True], [True, True]],
    )
    signal = riser(groups, torch.zeros(4, 2), fan_out=_open)
    assert not signal.keep[:3].any()
    assert not signal.advantages[:3].any()
    assert _kept(signal, 3) == [1, 2]
    assert signal.metrics["group/paired_frac"] == 0.25


def test_groups_that_only_hit_and_groups_of_one_hit_stay_with_advantage_zero() -> None:
    groups = _groups([[[1, 2], [3, 4]], [[1, 2], [1, 2]]], [[[1, 2], [3, 4]]] * 2)
    signal = riser(groups, torch.ones(2, 2), fan_out=_open)
    assert not signal.advantages.any()
    assert [_kept(signal, 0), _kept(signal, 1)] == [[0, 1], [0]]
    assert signal.metrics["signal/pair_loss"] == 0


def test_far_apart_log_probabilities_stay_finite() -> None:
    groups = tiny.make_groups([[[7, 8]]] * 2, [[[1, 2]]] * 2)
    far = torch.tensor([-500.0, -0.01])[:, None, None].expand(2, 1, 2)
    groups = replace(groups, rollout_logprobs=far, target_logprobs=far.flip(0))
    signal = riser(groups, torch.zeros(2, 1), fan_out=_open)
    assert signal.advantages.isfinite().all()
    assert signal.advantages[:, 1, 0].tolist() == pytest.approx([0, 4], abs=1e-5)
    assert math.isfinite(signal.metrics["signal/pair_loss"])


def test_no_gradient_leaves_the_signal() -> None:
    groups = _groups([[[7, 8], [9, 9]]], [[[1, 2]]])
    traced = replace(
        groups,
        rollout_logprobs=groups.rollout_logprobs.clone().requires_grad_(),
        target_logprobs=groups.target_logprobs.clone().requires_grad_(),
    )
    assert not riser(traced, torch.zeros(1, 2), fan_out=_open).advantages.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, r"beta is 0\.0: give a number above 0"),
        ({"gamma": -0.1}, r"gamma is -0\.1: give a number from 0"),
        ({"forced_weight": 1.5}, r"forced_weight is 1\.5"),
        ({"forced_weight": float("nan")}, "forced_weight is nan"),
        ({"pair_weight": -1.0}, r"pair_weight is -1\.0: give a number from 0"),
        ({"eps": float("inf")}, "eps is inf"),
    ],
)
def test_what_is_out_of_range_is_refused(settings: dict[str, float], message: str) -> None:
    groups = _groups([[[7, 8]]], [[[1, 2]]])
    with pytest.raises(RecastError, match=message):
        riser(groups, torch.zeros(1, 1), fan_out=_open, **settings)
