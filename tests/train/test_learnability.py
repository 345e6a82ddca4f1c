"""The shares of groups, by hand."""

from __future__ import annotations

import pytest
import tiny
import torch

from recast.rewards.hit import first_hit
from recast.signals.grpo import grpo
from recast.train.learnability import group_metrics
from recast.types import Metrics

TARGETS = [[[9, 9, 9]]] * 5
HIT, A, B = [9, 9, 9], [1, 2, 3], [1, 2, 4]
TOKENS = [[A, B, A, HIT], [HIT] * 4, [A, B, A, B], [HIT, A, HIT, A], [A, HIT, A, A]]
EXISTS = [[True] * 4] * 4 + [[True, True, False, False]]


def _metrics(times: int = 1) -> Metrics:
    groups = tiny.make_groups(TOKENS, TARGETS, exists=EXISTS)
    rewards = first_hit(groups)
    return group_metrics([(groups, rewards)] * times, grpo(groups, rewards))


def test_shares_of_five_groups() -> None:
    metrics = _metrics()
    assert metrics["group/all_zero_frac"] == pytest.approx(1 / 5)
    assert metrics["group/single_hit_frac"] == pytest.approx(2 / 5)
    assert metrics["group/natural_frac"] == pytest.approx(3 / 5)
    assert metrics["group/trainable_frac"] == pytest.approx(3 / 5)
    # Distinct rollouts: 3 of 4 (MiniOneRec's worked diversity), 1, 2, 2 and 2 of 2.
    assert metrics["group/distinct_frac"] == pytest.approx((3 + 1 + 2 + 2 + 2) / 18)
    assert metrics["reward/mean"] == pytest.approx((1 + 4 + 0 + 2 + 1) / 18)
    assert metrics["reward/zero_frac"] == pytest.approx(10 / 18)
    assert "group/rollout_batches" not in metrics


def test_what_was_drawn_and_filtered_out_counts_too() -> None:
    metrics = _metrics(times=2)
    assert metrics["group/all_zero_frac"] == pytest.approx(1 / 5)
    assert metrics["group/trainable_frac"] == pytest.approx(3 / 10)
    assert metrics["group/rollout_batches"] == 2


def test_without_rollouts_there_is_nothing_to_say() -> None:
    groups = tiny.make_groups([[[1, 1]]], [[[9, 9]]])
    empty = tiny.make_groups([[[1, 1]]], [[[9, 9]]], exists=[[False]])
    assert torch.isfinite(torch.tensor(_metrics()["group/target_logprob"]))
    assert (
        group_metrics([(groups, first_hit(groups))], grpo(groups, first_hit(groups)))[
            "group/all_zero_frac"
        ]
        == 1
    )
    metrics = group_metrics([(empty, first_hit(empty))], grpo(empty, first_hit(empty)))
    assert metrics["group/all_zero_frac"] == 1
    assert metrics["group/distinct_frac"] == metrics["reward/mean"] == 0
