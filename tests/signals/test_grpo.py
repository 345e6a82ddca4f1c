"""GRPO's advantages, the likelihood control and the rewards behind them."""

from __future__ import annotations

import statistics

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.methods.table import METHODS, find_method
from recast.rewards.hit import first_hit, set_ratio
from recast.signals.grpo import centre, grpo, standardise
from recast.signals.likelihood import likelihood
from recast.types import RecastError


def _all(rewards: list[float]) -> list[float]:
    row = torch.tensor([rewards])
    return standardise(row, torch.ones_like(row, dtype=torch.bool), 1e-6)[0].tolist()


def test_worked_values() -> None:
    one = _all([1.0] + [0.0] * 31)
    assert one[0] == pytest.approx(5.48005, abs=1e-5)
    assert one[1:] == pytest.approx([-0.17678] * 31, abs=1e-5)
    two = _all([1.0, 1.0] + [0.0] * 30)
    assert two[1:3] == pytest.approx([3.81197, -0.25413], abs=1e-5)
    assert _all([1.0, 0, 0, 0]) == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_a_group_of_equal_rewards_gives_exactly_zero(value: float) -> None:
    for size in (1, 2, 3, 7, 31):
        assert _all([value] * size) == [0.0] * size


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rewards=st.lists(st.floats(-5, 5, width=16), min_size=2, max_size=8),
    missing=st.integers(0, 3),
)
def test_only_existing_rollouts_count(rewards: list[float], missing: int) -> None:
    row = torch.tensor([rewards + [99.0] * missing], dtype=torch.float64)
    exists = torch.arange(row.shape[1])[None] < len(rewards)
    found = standardise(row, exists, 1e-6)[0].tolist()
    if len(set(rewards)) == 1:
        wanted = [0.0] * len(rewards)
    else:
        mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
        wanted = [(r - mean) / (std + 1e-6) for r in rewards]
    assert found == pytest.approx(wanted + [0.0] * missing, abs=1e-9)


def test_grpo_keeps_every_existing_rollout_also_of_an_all_zero_group() -> None:
    groups = tiny.make_groups(
        [[[1, 2], [3, 4], [0, 0]], [[5, 6], [7, 8], [9, 9]]],
        [[[1, 2]], [[1, 1]]],
        exists=[[True, True, False], [True, True, True]],
    )
    rewards = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    before = rewards.clone()
    signal = grpo(groups, rewards)
    assert signal.keep.tolist() == [[True, True, False], [True, True, True]]
    wanted = [[0.70711, -0.70711, 0], [0, 0, 0]]
    torch.testing.assert_close(signal.advantages[..., 0], torch.tensor(wanted), rtol=0, atol=1e-5)
    assert signal.advantages[1].tolist() == [[0], [0], [0]]
    assert signal.nll_weight.tolist() == [0, 0]
    assert signal.groups is groups
    assert torch.equal(rewards, before)


def test_grpo_follows_a_permutation_of_the_group() -> None:
    groups = tiny.make_groups([[[1, 2], [3, 4], [5, 6]]], [[[1, 2]]])
    rewards = torch.tensor([[1.0, 0.25, 0]])
    order = torch.tensor([2, 0, 1])
    found = grpo(groups, rewards[:, order]).advantages
    torch.testing.assert_close(found, grpo(groups, rewards).advantages[:, order])


def test_likelihood_weighs_every_prompt_and_keeps_no_rollout() -> None:
    groups = tiny.make_groups([[[1, 2], [3, 4]]] * 3, [[[1, 2]]] * 3)
    signal = likelihood(groups, torch.zeros(3, 2))
    assert signal.nll_weight.tolist() == [1, 1, 1]
    assert not signal.keep.any()
    assert not signal.advantages.any()


def test_hit_is_one_for_any_of_the_targets_and_never_for_a_missing_item() -> None:
    groups = tiny.make_groups(
        [[[1, 2], [3, 4], [5, 6], [0, 0]]],
        [[[3, 4], [5, 6], [0, 0]]],
        target_items=[[8, 9, -1]],
        items=[[7, 8, 9, -1]],
        exists=[[True, True, True, False]],
    )
    assert first_hit(groups).tolist() == [[0, 1, 1, 0]]
    assert set_ratio(groups).tolist() == [[0, 1, 1, 0]]


def test_rollouts_outside_the_catalogue_never_hit() -> None:
    groups = tiny.make_groups([[[1, 2], [9, 9]]], [[[1, 2]]], target_items=[[-1]], items=[[-1, -1]])
    assert first_hit(groups).tolist() == [[0, 0]]


def test_methods_are_found_by_name_and_a_misspelt_one_is_corrected() -> None:
    assert find_method("recast") is METHODS["recast"]
    with pytest.raises(RecastError, match="method is 'recats': did you mean 'recast'\\? choose"):
        find_method("recats")
    with pytest.raises(RecastError, match="method is 'zzzz': choose one of openonerec_rl, recast"):
        find_method("zzzz")


@pytest.mark.parametrize("name", ["openonerec_rl", "recast"])
def test_papers_defaults(name: str) -> None:
    assert METHODS[name].kl_coef == 0.001
    assert METHODS[name].sampler == "sample"


@pytest.mark.parametrize("eps", [-1e-6, float("nan"), float("inf")])
def test_an_eps_out_of_range_is_refused(eps: float) -> None:
    groups = tiny.make_groups([[[1, 2], [3, 4]]], [[[1, 2]]])
    with pytest.raises(RecastError, match=f"eps is {eps}: give a number from 0 to 1"):
        grpo(groups, torch.zeros(1, 2), eps=eps)


def test_eps_zero_leaves_a_constant_group_at_exactly_zero() -> None:
    groups = tiny.make_groups([[[1, 2], [3, 4]], [[1, 2], [3, 4]]], [[[1, 2]]] * 2)
    found = grpo(groups, torch.tensor([[1.0, 1], [1, 0]]), eps=0.0).advantages.flatten(1)
    half = 0.5**0.5
    assert found[0].tolist() == [0, 0]
    assert found[1].tolist() == pytest.approx([half, -half])


def test_large_and_tiny_rewards_are_standardised_as_any_others() -> None:
    """Squares of 1e38 overflow float32, those of 1e-30 vanish in it."""
    exists = torch.ones(1, 4, dtype=torch.bool)
    for size in (1e38, -1e38, 1e-30):
        rewards = torch.tensor([[size, 0.0, 0.0, 0.0]])
        found = standardise(rewards, exists, 0.0)
        sign = 1 if size > 0 else -1
        assert found[0].tolist() == pytest.approx([1.5 * sign, *[-0.5 * sign] * 3])
        assert found.dtype == torch.float32
        assert centre(rewards, exists)[0].tolist() == pytest.approx([0.75 * size, *[-size / 4] * 3])
    assert centre(torch.full((1, 4), 3e38), exists).tolist() == [[0] * 4]


def test_what_does_not_exist_and_groups_of_none_change_nothing() -> None:
    rewards = torch.tensor([[1.0, 0.0, float("nan")]])
    exists = torch.tensor([[True, True, False]])
    assert centre(rewards, exists).tolist() == [[0.5, -0.5, 0]]
    assert standardise(torch.zeros(2, 0), torch.zeros(2, 0) > 0, 1e-6).shape == (2, 0)
