"""`make_groups`: groups by hand that hold together, or one line that says what does not fit."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from recast.rewards import first_hit
from recast.testing import make_groups
from recast.types import RecastError

TOKENS = [[[3, 8], [2, 8], [3, 8]], [[4, 1], [3, 8], [2, 8]]]
TARGETS = [[[3, 8], [9, 9]], [[4, 1]]]


def test_shapes_and_defaults() -> None:
    groups = make_groups(TOKENS, TARGETS)
    prompts = groups.prompts
    assert groups.tokens.tolist() == TOKENS
    assert groups.items.shape == (2, 3)
    assert groups.rollout_logprobs.eq(-1).all()
    assert groups.rollout_logprobs.shape == groups.loss_mask.shape == (2, 3, 2)
    assert groups.exists.all()
    assert groups.weights is None
    assert (groups.seed, groups.step) == (0, 0)
    assert (len(prompts), prompts.row_ids.tolist()) == (2, [0, 1])
    assert prompts.history.shape == prompts.seen.shape == (2, 0)


def test_equal_sids_are_the_same_item_and_fewer_targets_are_padded() -> None:
    groups = make_groups(TOKENS, TARGETS)  # sorted: 28, 38, 41, 99
    assert groups.items.tolist() == [[1, 0, 1], [2, 1, 0]]
    assert groups.prompts.target_items.tolist() == [[1, 3], [2, -1]]
    assert groups.prompts.targets.tolist() == [[[3, 8], [9, 9]], [[4, 1], [0, 0]]]
    assert groups.target_logprobs.tolist() == [[[-1, -1], [-1, -1]], [[-1, -1], [0, 0]]]
    assert first_hit(groups).tolist() == [[1, 0, 1], [1, 0, 0]]


def test_no_target_at_all() -> None:
    groups = make_groups([[[0, 0]]], [[]])
    assert groups.prompts.target_items.tolist() == [[-1]]
    assert first_hit(groups).tolist() == [[0]]


def test_items_that_are_given_are_kept_and_shared_with_targets() -> None:
    groups = make_groups([[[3, 8], [2, 8], [5, 5]]], [[[3, 8], [1, 1]]], items=[[7, -1, 4]])
    assert groups.items.tolist() == [[7, -1, 4]]
    assert groups.prompts.target_items.tolist() == [[7, 8]]
    groups = make_groups([[[3, 8], [2, 8], [5, 5]]], [[[3, 8]]], target_items=[[6]])
    assert groups.items.tolist() == [[6, 7, 8]]
    groups = make_groups([[[3, 8]]], [[[3, 8]]], items=[[5]], target_items=[[6]])
    assert (groups.items.tolist(), groups.prompts.target_items.tolist()) == ([[5]], [[6]])


def test_logprobs_of_sids_or_of_tokens() -> None:
    groups = make_groups([[[3, 8], [2, 8]]], [[[2, 8], [1, 1]]], logprobs=[[-1, [-0.5, -2.5]]])
    assert groups.rollout_logprobs.tolist() == [[[-0.5, -0.5], [-0.5, -2.5]]]
    assert groups.target_logprobs.tolist() == [[[-0.5, -2.5], [-1, -1]]]
    groups = make_groups(TOKENS, TARGETS, target_logprobs=[[-4, -6], [[-1, -2]]])
    assert groups.target_logprobs.tolist() == [[[-2, -2], [-3, -3]], [[-1, -2], [0, 0]]]
    assert groups.target_logprobs.dtype == groups.rollout_logprobs.dtype == torch.float32


def test_a_missing_rollout_has_no_item_no_logprob_and_lends_a_target_nothing() -> None:
    groups = make_groups(
        [[[2, 8], [3, 8]]], [[[3, 8]]], logprobs=[[-2, -8]], exists=[[True, False]]
    )
    assert groups.exists.tolist() == [[True, False]]
    assert groups.items.tolist() == [[0, -1]]
    assert groups.rollout_logprobs.tolist() == [[[-1, -1], [0, 0]]]
    assert groups.target_logprobs.tolist() == [[[-1, -1]]]
    assert first_hit(groups).tolist() == [[0, 0]]


def test_weights_and_seed() -> None:
    groups = make_groups([[[3], [2]]], [[[3]]], weights=[[1, 0.5]], seed=4)
    assert groups.weights is not None
    assert groups.weights.tolist() == [[1, 0.5]]
    assert groups.seed == 4


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"tokens": [[[3, 8], [2, 8]], [[4, 1]]]}, "tokens is .*equal lengths"),
        ({"tokens": [[3, 8], [2, 8]]}, "tokens is .*B lists of G SIDs"),
        ({"tokens": []}, "tokens is .*B lists of G SIDs"),
        ({"targets": [[[3, 8]]]}, "targets is .*give 2 lists"),
        ({"targets": [[[3, 8]], [[3]]]}, "targets is .*equal lengths"),
        ({"targets": [[[3]], [[3]]]}, r"targets is .*shape \[2, 2\]"),
        ({"targets": [3, 8]}, "targets is .*one list per prompt"),
        ({"items": [[1, 2, 3]]}, r"items is .*shape \[2, 3\].*tokens"),
        ({"target_items": [[1], [2]]}, r"target_items is .*one entry per target, \[2, 1\]"),
        ({"logprobs": [[-1, -1], [-1, -1]]}, r"logprobs is .*shape \[2, 3, 2\]"),
        ({"logprobs": [-1, -2]}, r"logprobs is .*shape \[2, 3, 2\]"),
        ({"target_logprobs": [[-1, -1], [-1, -1]]}, "target_logprobs is .*one entry per target"),
        ({"exists": [True, False, True]}, r"exists is .*shape \[2, 3\]"),
        ({"weights": [[1.0], [1.0]]}, r"weights is .*shape \[2, 3\]"),
    ],
)
def test_lists_that_do_not_fit_are_refused(changed: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"tokens": TOKENS, "targets": TARGETS} | changed
    unchecked = inspect.unwrap(make_groups)  # without the tests' own check of argument types
    with pytest.raises(RecastError, match=named):
        unchecked(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": [[[1.5, 2]]]}, "tokens is .*: give whole numbers alone"),
        ({"tokens": [[[-1, 2]]]}, "tokens is .*: give finite numbers from 0 on"),
        ({"logprobs": [[float("nan")]]}, "logprobs is .*: give finite numbers"),
        ({"exists": [[2]]}, "exists is .*: give finite numbers from 0 on, up to 1"),
        ({"items": [[0.5]]}, "items is .*: give whole numbers alone"),
        ({"weights": [[-1.0]]}, "weights is .*: give finite numbers from 0 on"),
        ({"seed": -1}, "seed is -1: give a whole number"),
    ],
)
def test_numbers_that_no_group_has(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecastError, match=message):
        make_groups(**{"tokens": [[[1, 2]]], "targets": [[[1, 2]]]} | given)
