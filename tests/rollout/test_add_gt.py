"""The target that overwrites the last rollout of every group."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import naive
import tiny
import torch

from recast.groups import append_target, reorder
from recast.rollout.add_gt import add_gt
from recast.rollout.sample import sample

ROLLOUTS = [[[1, 1], [2, 2], [3, 3]], [[4, 4], [7, 7], [0, 0]]]
TARGETS = [[[9, 9]], [[4, 4]]]


def test_the_last_row_becomes_the_target_even_where_it_was_hit() -> None:
    exists = [[True, True, True], [True, True, False]]
    groups = tiny.make_groups(ROLLOUTS, TARGETS, target_items=[[8], [3]], exists=exists)
    groups = replace(groups, weights=torch.ones(2, 3))
    before = [x.clone() for x in (groups.tokens, groups.items, groups.loss_mask)]
    found = add_gt(groups)
    assert found.tokens.tolist() == [[[1, 1], [2, 2], [9, 9]], [[4, 4], [7, 7], [4, 4]]]
    assert found.items.tolist() == [[0, 1, 8], [3, 4, 3]]
    assert found.exists.all()
    assert torch.equal(found.rollout_logprobs[:, 2], groups.target_logprobs[:, 0])
    assert torch.equal(found.rollout_logprobs[:, :2], groups.rollout_logprobs[:, :2])
    assert found.weights is None
    after = [groups.tokens, groups.items, groups.loss_mask]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_several_targets_take_turns_and_padding_never_does() -> None:
    targets = [[[1, 2], [4, 5], [6, 6], [0, 0]]] * 3000
    groups = tiny.make_groups(
        [ROLLOUTS[0]] * 3000, targets, target_items=[[10, 11, 12, -1]] * 3000, seed=4
    )
    found = add_gt(groups)
    counts = Counter(found.items[:, 2].tolist())
    assert set(counts) == {10, 11, 12}
    assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < naive.chi_square_limit(2)
    rows, chosen = torch.arange(3000), found.items[:, 2] - 10
    assert torch.equal(found.tokens[:, 2], groups.prompts.targets[rows, chosen])
    assert torch.equal(found.rollout_logprobs[:, 2], groups.target_logprobs[rows, chosen])
    assert torch.equal(add_gt(groups).items, found.items)
    assert not torch.equal(add_gt(replace(groups, seed=5)).items, found.items)
    assert not torch.equal(add_gt(replace(groups, step=1)).items, found.items)


def test_a_prompt_without_a_target_and_a_group_without_rollouts_stay_as_they_are() -> None:
    groups = tiny.make_groups(
        ROLLOUTS, [[[9, 9], [8, 8]], [[0, 0], [0, 0]]], target_items=[[5, -1], [-1, -1]]
    )
    found = add_gt(groups)
    assert found.items.tolist() == [[0, 1, 5], [3, 4, 5]]  # item 5 of row 1 is its own
    assert torch.equal(found.tokens[1], groups.tokens[1])
    assert torch.equal(found.rollout_logprobs[1], groups.rollout_logprobs[1])
    empty = reorder(groups, torch.empty(2, 0, dtype=torch.long))
    assert add_gt(empty).items.shape == (2, 0)


def test_one_rollout_is_all_target_and_the_log_probabilities_are_those_of_the_policy() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0, 1], [2]], [[7], [5]])
    for group_size in (1, 3):
        found = add_gt(sample(policy, prompts, group_size))
        assert found.items[:, -1].tolist() == [7, 5]
        plain = tiny.twin(policy.model)
        for row, item in enumerate((7, 5)):
            wanted = naive.item_logprobs(plain, catalog, prompts, row, "full")[item]
            wanted_row = torch.tensor(wanted)
            torch.testing.assert_close(
                found.rollout_logprobs[row, -1], wanted_row, atol=1e-5, rtol=0
            )


def test_the_row_that_was_put_in_is_marked_and_stays_so() -> None:
    groups = tiny.make_groups(ROLLOUTS, [[[9, 9]], [[0, 0]]], target_items=[[8], [-1]])
    assert groups.injected is None
    found = add_gt(groups)
    assert found.injected is not None
    assert found.injected.tolist() == [[False, False, True], [False] * 3]
    turned = reorder(found, torch.tensor([[2, 0], [1, 2]]))
    assert turned.injected is not None
    assert turned.injected.tolist() == [[True, False], [False, False]]
    wide, _, _ = append_target(found, torch.zeros(2, 3))
    assert wide.injected is not None
    assert wide.injected.tolist() == [[False, False, True, False], [False] * 4]
