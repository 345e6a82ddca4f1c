"""The shares of groups, by hand."""

from __future__ import annotations

from dataclasses import replace

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
    assert metrics["group/invalid_frac"] == 0
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


def test_rollouts_that_name_no_item_are_counted_if_they_exist() -> None:
    groups = tiny.make_groups([[HIT, A, B]], [[[9, 9, 9]]], exists=[[True, True, False]])
    groups = replace(groups, items=torch.tensor([[3, -1, -1]]))
    metrics = group_metrics([(groups, torch.zeros(1, 3))], grpo(groups, torch.zeros(1, 3)))
    assert metrics["group/invalid_frac"] == 1 / 2


def test_targets_that_pad_a_row_have_no_log_probability() -> None:
    """Three prompts of 2, 1 and 1 targets: 4 real ones, of two tokens each."""
    targets = [[[9, 9], [8, 8]], [[9, 9], [0, 0]], [[9, 9], [0, 0]]]
    groups = tiny.make_groups([[[1, 1]]] * 3, targets, target_items=[[5, 6], [5, -1], [5, -1]])
    scores = torch.tensor([[[-1.0, -2], [-3, -4]], [[-2, -2], [-9, -9]], [[-1, -1], [-9, -9]]])
    groups = replace(groups, target_logprobs=scores)
    metrics = group_metrics([(groups, first_hit(groups))], grpo(groups, first_hit(groups)))
    assert metrics["group/target_logprob"] == pytest.approx((-3 - 7 - 4 - 2) / 4)
    none = replace(groups, prompts=replace(groups.prompts, target_mask=torch.zeros(3, 2, 2) > 0))
    metrics = group_metrics([(none, first_hit(none))], grpo(none, first_hit(none)))
    assert "group/target_logprob" not in metrics


def test_a_rollout_that_does_not_exist_hits_nothing_whatever_it_names() -> None:
    groups = tiny.make_groups([[HIT, A]], [[[9, 9, 9]]], exists=[[False, True]])
    groups = replace(groups, predictions=groups.tokens[:, :, None])
    metrics = group_metrics([(groups, torch.zeros(1, 2))], grpo(groups, torch.zeros(1, 2)))
    assert metrics["group/all_zero_frac"] == 1


def test_rollouts_outside_the_catalogue_are_told_apart_by_what_they_write() -> None:
    """Two that name nothing, one of them twice; an item twice, once behind other tokens."""
    tokens = [[7, 7, 7], [7, 7, 8], [7, 7, 7], [1, 2, 3], [1, 2, 4]]
    groups = tiny.make_groups([tokens], [[[9, 9, 9]]], items=[[-1, -1, -1, 4, 4]])
    names = torch.tensor([[[-1] * 3] * 3 + [[1, 2, 3]] * 2])[:, :, None]
    groups = replace(groups, predictions=names)
    metrics = group_metrics([(groups, torch.zeros(1, 5))], grpo(groups, torch.zeros(1, 5)))
    assert metrics["group/distinct_frac"] == pytest.approx(3 / 5)
