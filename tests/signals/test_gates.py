"""Gates: what they keep, what they weigh, and that the actor's gradient is that of a mean over all
prompts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import naive
import pytest
import tiny
import torch

from recast.losses import ppo_clip
from recast.rollout.sample import sample
from recast.signals.gates import fixed_mix, gated, random_gate
from recast.signals.grpo import grpo
from recast.testing import check_signal
from recast.train.actor import Actor, update
from recast.types import Draw, RecastError, RolloutGroups, Signal

REWARDS = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [1.0, 1, 1, 1]])


def _groups(exists: list[list[bool]] | None = None, num_prompts: int = 3) -> RolloutGroups:
    rollouts = [[[1, 2, 3], [1, 2, 9], [7, 7, 7], [8, 8, 8]]] * num_prompts
    return tiny.make_groups(rollouts, [[[1, 2, 3]]] * num_prompts, exists=exists)


def test_a_fixed_mix_weighs_grpo_against_the_likelihood() -> None:
    """One hit of four is worth +1.5 and -0.5; constant groups are worth nothing and stay."""
    signal = fixed_mix(_groups(), REWARDS, grpo_weight=0.5, eps=0.0)
    assert signal.advantages[..., 0].tolist() == [[0.75, -0.25, -0.25, -0.25], [0] * 4, [0] * 4]
    assert bool(signal.keep.all())
    assert signal.nll_weight.tolist() == [1, 1, 1]
    assert signal.metrics == {"gate/admitted_frac": 1}
    assert fixed_mix(_groups(), REWARDS).advantages[0, 0, 0] == pytest.approx(0.45, rel=1e-5)


def test_behind_a_shut_gate_nothing_is_kept_and_the_rest_weighs_its_share() -> None:
    gate = torch.tensor([True, False, False])
    signal = gated(_groups(), REWARDS, gate, grpo_weight=3.0, eps=0.0)
    assert signal.advantages[0, :, 0].tolist() == [1.5, -0.5, -0.5, -0.5]  # 3 times a third
    assert signal.keep.tolist() == [[True] * 4, [False] * 4, [False] * 4]
    assert signal.nll_weight.tolist() == [1, 1, 1]
    assert signal.metrics["gate/admitted_frac"] == pytest.approx(1 / 3)


def test_shares_count_tokens_that_exist() -> None:
    """Of 4 + 2 + 1 rollouts the second prompt has 2; one of its 6 tokens does not count."""
    exists = [[True] * 4, [True, True, False, False], [True, False, False, False]]
    groups = _groups(exists)
    mask = groups.loss_mask.clone()
    mask[1, 0, 2] = False
    rewards = torch.tensor([[0.0] * 4, [1.0, 0, 0, 0], [0.0] * 4])
    gate = torch.tensor([False, True, False])
    signal = gated(replace(groups, loss_mask=mask), rewards, gate, grpo_weight=1.0, eps=0.0)
    half = 0.5**0.5  # (1 - 1/2) / std of (1, 0)
    torch.testing.assert_close(
        signal.advantages[1, :, 0], torch.tensor([half, -half, 0, 0]) * 5 / 20
    )
    assert signal.keep.tolist() == [[False] * 4, exists[1], [False] * 4]


def test_nothing_rolled_out_is_likelihood_alone() -> None:
    none = [[False] * 4] * 3
    for signal in (fixed_mix(_groups(none), REWARDS), random_gate(_groups(none), REWARDS, rate=1)):
        assert not signal.keep.any()
        assert signal.advantages.eq(0).all()
        assert signal.nll_weight.tolist() == [1, 1, 1]
    alone = tiny.make_groups([[[1, 2, 3]]], [[[1, 2, 3]]])
    assert fixed_mix(alone, torch.ones(1, 1)).advantages.tolist() == [[[0]]]


def _gradient(signal: Signal) -> torch.Tensor:
    policy = tiny.tiny_policy("qwen3", tiny.random_catalog(60, (4, 4, 5)), torch.float64)
    actor = Actor(
        policy=policy,
        reference=None,
        optimizer=torch.optim.SGD(policy.model.parameters(), lr=0.1),
        loss=ppo_clip,
        kl_coef=0.0,
        kl_rollouts="kept",
        max_grad_norm=1e9,
        space="full",
        micro_batch_tokens=10**6,
        updates_per_rollout=1,
    )
    update(actor, signal)
    return naive.flat_gradients(policy.model)


@pytest.mark.parametrize("open_rows", [[0, 3], [2], []])
def test_the_gradient_is_that_of_the_mean_over_all_prompts(open_rows: list[int]) -> None:
    """L = 1/n sum_x [L_NLL + lambda gate L_GRPO]: as if everything were kept, with advantages of 0
    behind the shut gates; one rollout is missing."""
    policy = tiny.tiny_policy("qwen3", tiny.random_catalog(60, (4, 4, 5)), torch.float64)
    histories = [[1, 2, 3, 4, 5, 6], [7], [], [8, 9, 10]]
    prompts = tiny.make_prompts(policy.catalog, histories, [[20], [21], [22], [23]])
    groups = sample(policy, prompts, 4, Draw(seed=1))
    mask = groups.loss_mask.clone()
    mask[0, 3] = False
    groups = replace(groups, loss_mask=mask)
    rewards = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    gate = torch.isin(torch.arange(4), torch.tensor(open_rows, dtype=torch.long))
    whole = grpo(groups, rewards)
    wanted = replace(
        whole,
        advantages=0.7 * whole.advantages * gate[:, None, None],
        nll_weight=rewards.new_ones(4),
    )
    signal = gated(groups, rewards, gate, grpo_weight=0.7, eps=1e-6)
    assert int(signal.keep.sum()) == 4 * len(open_rows) - (0 in open_rows)
    assert naive.relative_error(_gradient(signal), _gradient(wanted)) < 1e-12


def test_a_random_gate_opens_at_its_rate_and_for_the_same_rows_again() -> None:
    groups = _groups(num_prompts=4000)
    rewards = REWARDS[:1].expand(4000, -1)
    signal = random_gate(groups, rewards)
    admitted = signal.metrics["gate/admitted_frac"]
    assert abs(admitted - 0.12) < 3.3 * (0.12 * 0.88 / 4000) ** 0.5
    assert bool((signal.keep == signal.keep[:, :1]).all())
    assert admitted == pytest.approx(float(signal.keep[:, 0].float().mean()))
    assert torch.equal(random_gate(groups, rewards).keep, signal.keep)
    later = random_gate(replace(groups, step=1), rewards).keep
    assert not torch.equal(later, signal.keep)
    assert not random_gate(groups, rewards, rate=0.0).keep.any()
    always = random_gate(groups, rewards, rate=1.0, grpo_weight=0.3)
    mixed = fixed_mix(groups, rewards)
    assert torch.equal(always.advantages, mixed.advantages)
    assert bool(always.keep.all())


@pytest.mark.parametrize(
    ("signal", "line"),
    [
        (partial(random_gate, rate=1.5), "rate is 1.5: give a number from 0 to 1"),
        (partial(random_gate, rate=-0.1), "rate is -0.1"),
        (partial(random_gate, grpo_weight=-1.0), "grpo_weight is -1.0: give a number from 0"),
        (partial(fixed_mix, grpo_weight=float("nan")), "grpo_weight is nan"),
        (partial(fixed_mix, grpo_weight=float("inf")), "grpo_weight is inf"),
        (partial(fixed_mix, eps=-1.0), "eps is -1.0"),
    ],
)
def test_parameters_out_of_range(signal: partial[Signal], line: str) -> None:
    with pytest.raises(RecastError, match=line):
        signal(_groups(), REWARDS)


def test_the_contract() -> None:
    check_signal(fixed_mix)
    check_signal(random_gate)
    check_signal(random_gate, parameters={"rate": 0.5})
