"""The check of signals can fail: each broken one is caught, with the property it breaks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from recast.groups import select
from recast.signals.grpo import grpo
from recast.testing import check_signal
from recast.types import RecastError, RolloutGroups, Signal


def _with(signal: Signal, **changes: Any) -> Signal:
    """Other fields, past the shape checks that run with these tests and not with a user's code."""
    for name, value in changes.items():
        object.__setattr__(signal, name, value)
    return signal


def _name(case: Any) -> str:
    return getattr(case, "__name__", "")


def _wrong_shape(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return _with(grpo(groups, rewards), advantages=rewards)


def _nan_where_all_miss(groups: RolloutGroups, rewards: Tensor) -> Signal:
    share = rewards / rewards.sum(1, keepdim=True)
    return _with(grpo(groups, rewards), advantages=share[..., None])


def _changes_rewards(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return grpo(groups, rewards.sub_(1))


def _changes_groups(groups: RolloutGroups, rewards: Tensor) -> Signal:
    groups.rollout_logprobs.mul_(2)
    return grpo(groups, rewards)


def _reads_the_place_of_a_row(groups: RolloutGroups, rewards: Tensor) -> Signal:
    place = torch.arange(rewards.shape[1])[:, None]
    signal = grpo(groups, rewards)
    return _with(signal, advantages=signal.advantages * (1 + place))


def _reads_the_place_of_a_prompt(groups: RolloutGroups, rewards: Tensor) -> Signal:
    place = torch.arange(len(rewards))
    return _with(grpo(groups, rewards), nll_weight=place.float())


def _keeps_what_is_not_there(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return _with(grpo(groups, rewards), keep=torch.ones_like(groups.exists))


def _carries_a_gradient(groups: RolloutGroups, rewards: Tensor) -> Signal:
    mean = groups.rollout_logprobs.mean(-1, keepdim=True)
    signal = grpo(groups, rewards)
    return _with(signal, advantages=signal.advantages * mean)


def _draws_without_a_seed(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return _with(grpo(groups, rewards), nll_weight=torch.rand(len(rewards)))


def _draws_elsewhere(groups: RolloutGroups, rewards: Tensor) -> Signal:
    weight = torch.full((len(rewards),), random.random())
    return _with(grpo(groups, rewards), nll_weight=weight)


def _does_not_compare(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return _with(grpo(groups, rewards), advantages=rewards[..., None])


def _divides_by_a_tiny_std(groups: RolloutGroups, rewards: Tensor) -> Signal:
    """The classic: the mean of 7 thirds is not a third."""
    exists, count = groups.exists, groups.exists.sum(1, keepdim=True).clamp(min=1)
    centred = (rewards - rewards.sum(1, keepdim=True) / count) * exists
    std = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return _with(grpo(groups, rewards), advantages=(centred / (std + 1e-6))[..., None])


def _needs_two(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return _with(grpo(groups, rewards), nll_weight=rewards[:, 1].abs())


def _negative_likelihood(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return _with(grpo(groups, rewards), nll_weight=-rewards.amax(1))


def _float_keep(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return _with(grpo(groups, rewards), keep=groups.exists.float())


def _bad_name(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return replace(grpo(groups, rewards), metrics={"my metric": 1.0})


def _tensor_metric(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return _with(grpo(groups, rewards), metrics={"signal/mean": rewards.mean()})


def _nan_metric(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return replace(grpo(groups, rewards), metrics={"signal/std": float("nan")})


def _other_prompts(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return grpo(select(groups, torch.arange(len(rewards)).flip(0)), rewards)


def _switches_tokens_on(groups: RolloutGroups, rewards: Tensor) -> Signal:
    return grpo(replace(groups, loss_mask=torch.ones_like(groups.loss_mask)), rewards)


def _counts_padding(groups: RolloutGroups, rewards: Tensor) -> Signal:
    width = groups.prompts.targets.shape[1]
    return _with(grpo(groups, rewards), nll_weight=torch.full((len(rewards),), 1.0 / width))


def _returns_a_tensor(groups: RolloutGroups, rewards: Tensor) -> Tensor:
    return rewards


def _always_refuses(groups: RolloutGroups, rewards: Tensor) -> Signal:
    raise RecastError("weights are not to my taste: give others")


BROKEN_SIGNALS = {
    _wrong_shape: r"gives advantages of the shape \[9, 1\]: return \[9, 1, 3\] or \[9, 1, 1\]",
    _nan_where_all_miss: r"gives advantages that are not finite: \[nan\] .* group 'all zero'",
    _changes_rewards: "changes rewards of its input",
    _changes_groups: "changes rollout_logprobs of its input",
    _reads_the_place_of_a_row: r"permutation of the rollouts \(see permutable\): advantages is",
    _reads_the_place_of_a_prompt: r"permutation of the prompts \(see per_prompt\): nll_weight is",
    _keeps_what_is_not_there: "gives keep on rollouts that do not exist .* group 'no rollout'",
    _carries_a_gradient: "gives advantages with a gradient",
    _draws_without_a_seed: "draws from torch's global generator",
    _draws_elsewhere: "something else for the same input again: nll_weight is",
    _does_not_compare: r"other than 0 to rewards that are all equal .* rewards \[1.0\]",
    _divides_by_a_tiny_std: r"other than 0 to rewards that are all equal .* rewards of 0.333",
    _needs_two: r"fails with IndexError \(index 1 is out of bounds .* on groups of 1",
    _negative_likelihood: r"gives nll_weight below 0: give 0 or more .* group 'one hit'",
    _float_keep: "gives keep of torch.float32: return torch.bool",
    _bad_name: "gives the metric 'my metric' = 1.0: give it a short slash name",
    _tensor_metric: "gives the metric 'signal/mean' = .*, a Tensor: give a number",
    _nan_metric: "gives the metric 'signal/std' = nan: give a finite number",
    _other_prompts: "gives groups of other prompts: return `groups`",
    _switches_tokens_on: "gives a loss_mask that counts tokens .* group 'no rollout'",
    _counts_padding: "one more column of padding: nll_weight is",
    _returns_a_tensor: "gives a Tensor: return a Signal",
    _always_refuses: "refuses every example: weights are not to my taste",
}


@pytest.mark.parametrize(("signal", "said"), BROKEN_SIGNALS.items(), ids=_name)
def test_a_broken_signal_is_caught(signal: Callable[..., Any], said: str) -> None:
    with pytest.raises(AssertionError, match=f"^signal {signal.__name__} .*{said}") as caught:
        check_signal(signal)
    assert "\n" not in str(caught.value)


def test_what_a_formula_asks_for_can_be_allowed() -> None:
    check_signal(_does_not_compare, zero_at=(0.0,))
    check_signal(_reads_the_place_of_a_row, permutable=False)
    check_signal(_reads_the_place_of_a_prompt, per_prompt=False)


def test_a_constant_of_ones_own_is_tried() -> None:
    def above_half(groups: RolloutGroups, rewards: Tensor) -> Signal:
        return _with(grpo(groups, rewards), advantages=(rewards > 0.5).float()[..., None])

    check_signal(above_half, zero_at=(0.25,))
    with pytest.raises(AssertionError, match=r"on groups of 1, rewards of 0.75, group 'one hit'"):
        check_signal(above_half, zero_at=(0.75,))


def test_small_groups_may_be_refused_by_name_and_large_ones_not() -> None:
    def from_size(least: int) -> Callable[..., Signal]:
        def signal(groups: RolloutGroups, rewards: Tensor) -> Signal:
            if rewards.shape[1] < least:
                raise RecastError(f"group_size is {rewards.shape[1]}: give {least} or more")
            return grpo(groups, rewards)

        return signal

    check_signal(from_size(2))
    with pytest.raises(RecastError, match="group_size is 7: give 9 or more"):
        check_signal(from_size(9))


def test_weights_may_be_required_and_are_then_given() -> None:
    def weighted(groups: RolloutGroups, rewards: Tensor) -> Signal:
        if groups.weights is None:
            raise RecastError("weights is None: use the sampler 'gumbel'")
        signal = grpo(groups, rewards)
        return replace(signal, advantages=signal.advantages * groups.weights[..., None])

    def by_place(groups: RolloutGroups, rewards: Tensor) -> Signal:
        signal = weighted(groups, rewards)
        return replace(signal, advantages=signal.advantages.cumsum(1))

    check_signal(weighted)
    with pytest.raises(AssertionError, match=r"permutation of the rollouts .* importance weights"):
        check_signal(by_place)


def test_lists_are_permuted_whole() -> None:
    def by_rank(groups: RolloutGroups, rewards: Tensor, *, list_length: int) -> Signal:
        rank = torch.arange(rewards.shape[1]) % list_length
        signal = grpo(groups, rewards)
        return replace(signal, advantages=signal.advantages / (1 + rank)[:, None])

    check_signal(by_rank, list_length=3)
    with pytest.raises(AssertionError, match=r"permutation of the rollouts .* on groups of 6 with"):
        check_signal(_reads_the_place_of_a_row, list_length=3)


def test_parameters_are_set_and_misspelt_ones_corrected() -> None:
    def scaled(groups: RolloutGroups, rewards: Tensor, *, scale: float = 1.0) -> Signal:
        signal = grpo(groups, rewards)
        return _with(signal, advantages=signal.advantages / scale)

    check_signal(scaled, parameters={"scale": 2.0})
    with pytest.raises(AssertionError, match=r"^signal scaled\(scale=0.0\) gives advantages"):
        check_signal(scaled, parameters={"scale": 0.0})
    with pytest.raises(RecastError, match=r"'scael', .* of scaled: did you mean 'scale'"):
        check_signal(scaled, parameters={"scael": 2.0})


def test_a_resource_that_nobody_knows_is_named() -> None:
    def with_oracle(groups: RolloutGroups, rewards: Tensor, *, oracle: Tensor) -> Signal:
        return grpo(groups, rewards)

    with pytest.raises(RecastError, match="with_oracle needs oracle"):
        check_signal(with_oracle)
