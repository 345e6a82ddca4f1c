"""Exponential weights of logged rows: numbers by hand, every edge, and the actor's gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import e, exp, inf, nan

import naive
import pytest
import tiny
import torch
from torch import Tensor

from recast.groups import reorder
from recast.losses import ppo_clip
from recast.policy.load import Policy
from recast.signals.likelihood import likelihood
from recast.signals.reward_weighted import reward_weighted, weight_metrics
from recast.testing import check_signal
from recast.train.actor import Actor, update
from recast.types import Prompts, RecastError, RolloutGroups

TARGET, NONE = [1, 2], [0, 0]


def _rank(table: Tensor, prompts: Prompts, items: Tensor) -> Tensor:
    """Scores by item; like every ranker it knows no item -1."""
    assert items.min() >= 0
    assert len(prompts) == len(items)
    return table[items]


def _groups(target_items: list[list[int]], group_size: int = 2) -> RolloutGroups:
    targets = [[TARGET if item >= 0 else NONE for item in row] for row in target_items]
    groups = tiny.make_groups([[[1, 2], [3, 4]]] * len(targets), targets, target_items)
    return reorder(groups, torch.arange(group_size).expand(len(targets), -1))


@pytest.mark.parametrize("group_size", [0, 1, 2])
def test_worked_numbers_with_and_without_rollouts(group_size: int) -> None:
    """One target, two, three of which one is none, and no target at all.

    r = 2, (1 + 4) / 2, (0 + 1) / 2 with lambda 2: w = e, e^1.25, e^0.25 and 0.
    """
    groups = _groups([[2, -1, -1], [1, 3, -1], [0, -1, 1], [-1, -1, -1]], group_size)
    table = torch.tensor([0.0, 1.0, 2.0, 4.0])
    signal = reward_weighted(
        groups, torch.ones(4, group_size), ranker=partial(_rank, table), lam=2.0
    )
    weights = [e, exp(1.25), exp(0.25), 0.0]
    torch.testing.assert_close(signal.nll_weight, torch.tensor(weights))
    assert signal.groups is groups
    assert signal.advantages.shape == (4, group_size, 1)
    assert not signal.advantages.any()
    assert signal.keep.shape == (4, group_size)
    assert not signal.keep.any()
    squares = sum(w * w for w in weights)
    assert signal.metrics == {
        "signal/weight_mean": pytest.approx(sum(weights) / 4),
        "signal/weight_max": pytest.approx(exp(1.25)),
        "signal/effective_frac": pytest.approx(sum(weights) ** 2 / (4 * squares)),
    }


def test_the_example_of_its_page() -> None:
    groups, ranker = _groups([[0], [1], [2]]), partial(_rank, torch.tensor([0.0, 1, 2]))
    for lam, weights, share in ((1.0, [1, 2.718, 7.389], 0.65), (2.0, [1, 1.649, 2.718], 0.86)):
        signal = reward_weighted(groups, torch.zeros(3, 2), ranker=ranker, lam=lam)
        torch.testing.assert_close(
            signal.nll_weight, torch.tensor(weights).float(), rtol=0, atol=1e-3
        )
        assert signal.metrics["signal/effective_frac"] == pytest.approx(share, abs=0.005)


def test_a_large_lambda_is_the_supervised_control() -> None:
    groups, rewards = _groups([[0], [1]]), torch.zeros(2, 2)
    signal = reward_weighted(
        groups, rewards, ranker=partial(_rank, torch.tensor([-7.0, 3.0])), lam=1e9
    )
    torch.testing.assert_close(signal.nll_weight, likelihood(groups, rewards).nll_weight)
    assert signal.metrics["signal/effective_frac"] == pytest.approx(1)


def test_ratings_looked_up_by_row() -> None:
    """The paper's weights: both rows have the same item, rated 1 and 3."""
    ratings = torch.tensor([1.0, 3.0])

    def logged(prompts: Prompts, items: Tensor) -> Tensor:
        return ratings[prompts.row_ids][:, None].expand(items.shape)

    signal = reward_weighted(_groups([[0], [0]]), torch.zeros(2, 2), ranker=logged)
    torch.testing.assert_close(signal.nll_weight, ratings.exp())


def test_scores_are_detached() -> None:
    table = torch.tensor([0.0, 1.0], requires_grad=True)
    signal = reward_weighted(
        _groups([[0], [1]]), torch.zeros(2, 2), ranker=lambda prompts, items: table[items]
    )
    assert not signal.nll_weight.requires_grad


def test_an_overflow_is_refused_with_the_lambda_that_would_do() -> None:
    """exp(200) is no float32; log of the largest one is 88.72, and 200 / 88.72 = 2.254."""
    groups, rewards = _groups([[0], [1]]), torch.zeros(2, 2)
    signal = partial(
        reward_weighted, groups, rewards, ranker=partial(_rank, torch.tensor([3, 200]))
    )
    line = r"lam is 1\.0: exp\(score / lam\) is not finite .* logged item, 200; give 2\.28 or more"
    with pytest.raises(RecastError, match=line):
        signal()
    with pytest.raises(RecastError, match=r"give 2\.28 or more"):
        signal(lam=2.25)
    found = signal(lam=2.28)
    assert bool(found.nll_weight.isfinite().all())
    assert all(abs(value) < inf for value in found.metrics.values())
    assert found.metrics["signal/effective_frac"] == pytest.approx(0.5)


@pytest.mark.parametrize("score", [inf, nan])
def test_a_score_that_is_no_number_is_the_rankers_fault(score: float) -> None:
    with pytest.raises(RecastError, match=f"logged item, {score}; let the ranker give numbers"):
        reward_weighted(
            _groups([[0], [1]]),
            torch.zeros(2, 2),
            ranker=partial(_rank, torch.tensor([0.0, score])),
        )


def test_the_score_of_no_target_overflows_nothing() -> None:
    """Padding is ranked as item 0, and nobody reads that score."""
    ranker = partial(_rank, torch.tensor([1e30, 0.0]))
    signal = reward_weighted(_groups([[1, -1], [-1, -1]]), torch.zeros(2, 2), ranker=ranker)
    assert signal.nll_weight.tolist() == [1, 0]
    assert signal.metrics["signal/effective_frac"] == 0.5


def test_weights_that_underflow_are_0() -> None:
    ranker = partial(_rank, torch.tensor([-1e4, -inf]))
    signal = reward_weighted(_groups([[0], [1]]), torch.zeros(2, 2), ranker=ranker)
    assert signal.nll_weight.tolist() == [0, 0]
    assert set(signal.metrics.values()) == {0}


def test_the_share_hangs_on_no_scale() -> None:
    weight = torch.tensor([3.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    for scale in (1e-300, 1.0, 1e300):
        share = weight_metrics(scale * weight)["signal/effective_frac"]
        assert share == pytest.approx(0.4)


@pytest.mark.parametrize("lam", [0.0, -1.0, inf, nan])
def test_a_lambda_out_of_range_is_refused(lam: float) -> None:
    with pytest.raises(RecastError, match=f"lam is {lam}: give a number above 0"):
        reward_weighted(
            _groups([[0]]), torch.zeros(1, 2), ranker=partial(_rank, torch.ones(1)), lam=lam
        )


def _gradient(policy: Policy, groups: RolloutGroups, table: Tensor, lam: float) -> Tensor:
    actor = Actor(
        policy=policy,
        reference=None,
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=0.0),
        loss=ppo_clip,
        kl_coef=0.0,
        kl_rollouts="kept",
        max_grad_norm=1e9,
        space="full",
        micro_batch_tokens=10**6,
        updates_per_rollout=1,
    )
    rewards = torch.zeros(groups.items.shape, dtype=torch.float64)
    update(actor, reward_weighted(groups, rewards, ranker=partial(_rank, table), lam=lam))
    return naive.flat_gradients(policy.model)


@pytest.mark.parametrize("group_size", [0, 2])
def test_the_gradient_is_that_of_the_weighted_likelihood(group_size: int) -> None:
    """sum_x w(x) NLL(x) / n one sequence at a time; the last prompt has no target, so n = 3."""
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog(), torch.float64)
    wanted = [[3], [4, 6], [7], []]
    prompts = tiny.make_prompts(policy.catalog, [[1, 2], [5], [0, 3, 6], [2]], wanted)
    made_up = tiny.make_groups(
        [[policy.catalog.tokens_of(torch.tensor(item)).tolist() for item in (0, 1)]] * 4,
        prompts.targets.tolist(),
    )
    cut = reorder(made_up, torch.arange(group_size).expand(4, -1))
    groups = replace(cut, prompts=prompts)
    table = torch.linspace(-2.0, 1.5, policy.catalog.num_items)
    loss = torch.zeros((), dtype=torch.float64)
    own = tiny.twin(policy.model)
    for row, items in enumerate(wanted[:3]):
        weight = exp(sum(float(table[item]) for item in items) / len(items) / 0.7)
        for item in items:
            tokens = policy.catalog.tokens_of(torch.tensor(item)).tolist()
            logprobs = naive.branch_logprobs(own, prompts, row, tokens)
            loss = loss - weight * logprobs.mean() / len(items) / 3
    found = _gradient(policy, groups, table, lam=0.7)
    assert naive.relative_error(found, naive.gradients(own, loss)) < 1e-6


def test_the_contract() -> None:
    check_signal(reward_weighted)
    check_signal(reward_weighted, parameters={"lam": 0.1})
