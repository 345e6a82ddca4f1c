"""The checks of rewards and losses can fail: each broken function is caught by its property."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recast.losses import ppo_clip
from recast.rewards.hit import first_hit
from recast.testing import check_loss, check_reward
from recast.types import RecastError, RolloutGroups


def _name(case: Any) -> str:
    return getattr(case, "__name__", "")


def _whole_numbers(groups: RolloutGroups) -> Tensor:
    return first_hit(groups).long()


def _per_token(groups: RolloutGroups) -> Tensor:
    return first_hit(groups)[..., None].expand(groups.tokens.shape)


def _rewards_what_is_not_there(groups: RolloutGroups) -> Tensor:
    return 1 - first_hit(groups)


def _log_of_nothing(groups: RolloutGroups) -> Tensor:
    return first_hit(groups).log()


def _likely(groups: RolloutGroups) -> Tensor:
    return groups.rollout_logprobs.sum(-1) * groups.exists


def _by_place(groups: RolloutGroups) -> Tensor:
    return groups.exists.float().cumsum(1) * groups.exists


def _by_batch(groups: RolloutGroups) -> Tensor:
    return first_hit(groups) * torch.arange(len(groups.items))[:, None]


def _share_of_targets(groups: RolloutGroups) -> Tensor:
    return first_hit(groups) / groups.prompts.targets.shape[1]


def _scores_minus_one(groups: RolloutGroups, *, ranker: Callable[..., Tensor]) -> Tensor:
    return ranker(groups.prompts, groups.items) * groups.exists


def _drawn(groups: RolloutGroups) -> Tensor:
    return first_hit(groups) + torch.randn(groups.items.shape) * groups.exists


def _in_place(groups: RolloutGroups) -> Tensor:
    return groups.weights.mul_(0.5) if groups.weights is not None else first_hit(groups)


BROKEN_REWARDS = {
    _whole_numbers: "gives rewards of torch.int64: return floats",
    _per_token: r"gives rewards of the shape \[9, 1, 3\]: return \[9, 1\]",
    _rewards_what_is_not_there: "gives rewards on rollouts that do not exist .* group 'no rollout'",
    _log_of_nothing: r"gives rewards that are not finite: \[-inf\]",
    _likely: "gives rewards with a gradient",
    _by_place: "permutation of the rollouts .* rewards is",
    _by_batch: "permutation of the prompts .* rewards is",
    _share_of_targets: "one more column of padding: rewards is",
    _drawn: "draws from torch's global generator",
    _in_place: "changes weights of its input",
}


@pytest.mark.parametrize(("reward", "said"), BROKEN_REWARDS.items(), ids=_name)
def test_a_broken_reward_is_caught(reward: Callable[..., Any], said: str) -> None:
    with pytest.raises(AssertionError, match=f"^reward {reward.__name__} .*{said}") as caught:
        check_reward(reward)
    assert "\n" not in str(caught.value)


def test_a_reward_that_asks_for_no_item_is_told_to_mask() -> None:
    with pytest.raises(RecastError, match="asked for item -1: clamp the items and mask"):
        check_reward(_scores_minus_one)


def _mean_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return -(logprobs * advantages).mean()


def _mean_of_all_rows(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return -(logprobs.sum(-1) * advantages[..., 0].softmax(1)).sum(1)


def _infinite(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return logprobs / advantages


def _nan_gradient(logprobs: Tensor, loss_mask: Tensor) -> Tensor:
    """The classic: the square root of 0 is finite, its slope is not."""
    return ((logprobs * loss_mask).sum((1, 2)).abs()).sqrt()


def _frozen(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return -(logprobs.detach() * advantages)


def _scales_in_place(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return -logprobs * advantages.mul_(0.5)


def _normalised_by_padding(logprobs: Tensor, ref_logprobs: Tensor, advantages: Tensor) -> Tensor:
    return -(logprobs.sum(-1) * advantages[..., 0]) - ref_logprobs.sum((1, 2))[:, None]


BROKEN_LOSSES = {
    _mean_loss: r"gives the shape \[\]: return \[5, 3, 3\] \(per token\), \[5, 3\] \(per",
    _mean_of_all_rows: "has a gradient in padding",
    _infinite: "gives values that are not finite",
    _nan_gradient: "has a gradient that is not finite",
    _frozen: "has no gradient",
    _scales_in_place: "changes advantages of its input",
    _normalised_by_padding: "reads padding: its sum moves from",
}


@pytest.mark.parametrize(("loss", "said"), BROKEN_LOSSES.items(), ids=_name)
def test_a_broken_loss_is_caught(loss: Callable[..., Any], said: str) -> None:
    with pytest.raises(AssertionError, match=f"^loss {loss.__name__} {said}"):
        check_loss(loss)


def test_a_loss_takes_parameters() -> None:
    check_loss(ppo_clip, parameters={"clip_low": 0.1})
    with pytest.raises(RecastError, match="did you mean 'clip_low'"):
        check_loss(ppo_clip, parameters={"clip_lo": 0.1})
