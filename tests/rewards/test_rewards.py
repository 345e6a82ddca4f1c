"""Rewards on groups: worked numbers, a slow reference, invalid items, padded rows, several targets.

The structure that scores share is tested in test_scores.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recast.groups import reorder
from recast.rewards.collaborative import collaborative
from recast.rewards.format import think_format
from recast.rewards.gflow import gflow
from recast.rewards.hit import any_hit, first_hit, set_ratio
from recast.rewards.partial import partial_hit
from recast.rewards.ranking import rank_reward, ranking
from recast.rewards.semantic import semantic
from recast.signals.grpo import standardise
from recast.types import Prompts, RecastError, RolloutGroups, Thoughts

OF_TOKENS = (first_hit, any_hit, set_ratio, partial_hit, gflow, ranking)


def _groups(**changes: object) -> RolloutGroups:
    """A hit, a near miss, a far miss that is no item, and a row that does not exist."""
    made = tiny.make_groups(
        [[[1, 2, 3], [1, 2, 9], [7, 7, 7], [0, 0, 0]]],
        [[[1, 2, 3], [0, 0, 0]]],
        target_items=[[2, -1]],
        items=[[2, 0, -1, -1]],
        exists=[[True, True, True, False]],
    )
    return replace(made, **changes)


EMBEDDINGS = torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])


def _ranker(prompts: Prompts, items: Tensor) -> Tensor:
    assert items.min() >= 0
    return torch.tensor([5.0, 4.0, -3.0, 2.0])[items] + prompts.row_ids[:, None]


def test_hits_and_partial_hits() -> None:
    groups = _groups()
    for reward in (first_hit, any_hit, set_ratio):
        assert reward(groups).tolist() == [[1, 0, 0, 0]]
    torch.testing.assert_close(partial_hit(groups), torch.tensor([[1, 0.1, 0, 0]]))
    torch.testing.assert_close(gflow(groups), torch.tensor([[2, 2 / 3, 0, 0]]))


def test_the_form_of_a_thought_is_that_of_all_below_it() -> None:
    assert think_format(_groups()).tolist() == [[0, 0, 0, 0]]
    long = torch.tensor([[True, False]])
    thoughts = Thoughts(
        tokens=torch.ones(1, 2, 1, dtype=torch.long),
        lengths=torch.ones(1, 2, dtype=torch.long),
        num_written=torch.ones(1, 2, dtype=torch.long),
        loss_mask=torch.ones(1, 2, 1, dtype=torch.bool),
        logprobs=torch.zeros(1, 2, 1),
        is_closed=torch.ones_like(long),
        has_format=long,
        weights_step=torch.zeros(1, 2, dtype=torch.long),
        begins=torch.tensor([3]),
        of=torch.tensor([[0, 1, 0, 0]]),
    )
    assert think_format(_groups(thoughts=thoughts)).tolist() == [[1, 0, 1, 0]]


def test_the_pad_token_of_a_missing_target_is_no_target() -> None:
    """Row 3 exists here and spells what pads the targets."""
    groups = _groups(loss_mask=torch.ones(1, 4, 3) > 0)
    for reward in OF_TOKENS:
        assert reward(groups)[0, 3] <= 0
    assert gflow(groups)[0, 3] == 0


def test_the_sid_that_another_item_shares_with_the_target_is_a_hit() -> None:
    groups = tiny.make_groups([[[1, 2, 3]]], [[[1, 2, 3]]], target_items=[[8]], items=[[5]])
    for reward in (first_hit, any_hit, set_ratio):
        assert reward(groups).tolist() == [[1]]


def test_any_of_several_targets_counts() -> None:
    groups = tiny.make_groups([[[1, 2], [3, 4], [3, 9]]], [[[1, 2], [3, 4]]])
    assert first_hit(groups).tolist() == [[1, 1, 0]]
    torch.testing.assert_close(partial_hit(groups), torch.tensor([[1, 1, 0.1]]))
    assert gflow(groups).tolist() == [[2, 2, 0.5]]


def test_a_method_without_rollouts_gets_empty_rewards() -> None:
    groups = reorder(_groups(), torch.empty(1, 0, dtype=torch.long))
    for reward in OF_TOKENS:
        assert reward(groups).shape == (1, 0)


@pytest.mark.parametrize("reward", OF_TOKENS)
def test_rewards_change_no_input(reward: Callable[..., Tensor]) -> None:
    groups = _groups()
    before = [x.clone() for x in (groups.tokens, groups.rollout_logprobs, groups.prompts.targets)]
    reward(groups)
    after = [groups.tokens, groups.rollout_logprobs, groups.prompts.targets]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _rank(hits: list[int], logprobs: list[float], gated: bool = True) -> Tensor:
    exists = torch.ones(1, len(hits)) > 0
    scores = torch.tensor([logprobs], dtype=torch.float32)
    return rank_reward(torch.tensor([hits]) > 0, scores, exists, gated=gated)[0]


def _advantages(rewards: Tensor) -> list[float]:
    return standardise(rewards[None], torch.ones(1, len(rewards)) > 0, 1e-4)[0].tolist()


def test_ranking_worked_example_in_the_codes_form() -> None:
    found = _rank([0, 1, 0, 0], [-1, -2, -3, -4])
    assert found.tolist() == pytest.approx([-0.39038, 1, -0.19519, -0.16813], abs=1e-5)
    assert float(found.mean()) == pytest.approx(0.061576, abs=1e-6)
    assert float(found.std()) == pytest.approx(0.633403, abs=1e-6)
    wanted = [-0.71342, 1.48133, -0.40531, -0.36259]
    assert _advantages(found) == pytest.approx(wanted, abs=1e-5)
    rule_only = [-0.4999, 1.4997, -0.4999, -0.4999]
    assert _advantages(torch.tensor([0.0, 1, 0, 0])) == pytest.approx(rule_only, abs=2e-5)


def test_ranking_worked_example_in_the_papers_form() -> None:
    found = _rank([0, 1, 0, 0], [-1, -2, -3, -4], gated=False)
    assert found.tolist() == pytest.approx([-0.51795, 1, -0.25898, -0.22307], abs=1e-5)
    wanted = [-0.76216, 1.47148, -0.38108, -0.32824]
    assert _advantages(found) == pytest.approx(wanted, abs=1e-5)


def test_ranking_worked_example_of_sixteen_and_the_last_of_four() -> None:
    found = _rank([0] * 15 + [1], [-float(i) for i in range(16)])
    assert float(found[0]) == pytest.approx(-0.163773, abs=1e-6)
    found = _rank([1] + [0] * 15, [-float(i) for i in range(16)])
    assert float(found[-1]) == pytest.approx(-0.040067, abs=1e-6)
    found = _rank([0, 0, 0, 1], [-1, -2, -3, -4])
    assert found.tolist() == pytest.approx([-0.39038, -0.24630, -0.19519, 1], abs=1e-5)


def test_only_the_papers_form_punishes_a_group_without_a_hit() -> None:
    assert _rank([0, 0, 0], [-1, -2, -3]).tolist() == [0, 0, 0]
    found = _rank([0, 0, 0], [-1, -2, -3], gated=False)
    assert float(found.sum()) == pytest.approx(-1, abs=1e-6)
    assert found[0] < found[1] < found[2] < 0


def test_a_group_of_hits_gets_one_in_both_forms() -> None:
    for gated in (True, False):
        assert _rank([1, 1, 1], [-1, -2, -3], gated).tolist() == [1, 1, 1]
        assert _rank([1], [-1], gated).tolist() == [1]
    assert _rank([0], [-1], gated=True).tolist() == [0]
    assert _rank([0], [-1], gated=False).tolist() == [-1]


def test_of_equals_the_earlier_row_ranks_first() -> None:
    found = _rank([0, 0, 1], [-2, -2, -1])
    assert found[0] < found[1] < 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=st.lists(
        st.tuples(st.booleans(), st.integers(-60, -1), st.booleans()), min_size=1, max_size=6
    ),
    gated=st.booleans(),
)
def test_rank_rewards_equal_the_definition(rows: list[tuple[bool, int, bool]], gated: bool) -> None:
    """Rows in any order, some of which do not exist."""
    hits = [hit and there for hit, _, there in rows]
    order = sorted((i for i, row in enumerate(rows) if row[2]), key=lambda i: (-rows[i][1], i))
    weight = {i: 1 / math.log2(place + 2) for place, i in enumerate(order)}
    total = sum(w for i, w in weight.items() if gated or not hits[i])
    wanted = []
    for i in range(len(rows)):
        miss = i in weight and not hits[i] and (not gated or any(hits))
        wanted.append(1.0 if hits[i] else -weight[i] / total if miss else 0.0)
    found = rank_reward(
        torch.tensor([hits]),
        torch.tensor([[float(row[1]) for row in rows]]),
        torch.tensor([[row[2] for row in rows]]),
        gated=gated,
    )
    assert found[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_ranking_follows_the_log_probabilities_whatever_the_order_of_the_rows() -> None:
    """Row 0 is the most probable of `_groups`; what does not exist has no rank and gets 0."""
    groups = _groups()
    total = 1 + 1 / math.log2(3) + 0.5
    wanted = [1, -1 / math.log2(3) / total, -0.5 / total, 0]
    assert ranking(groups)[0].tolist() == pytest.approx(wanted, abs=1e-6)
    order = torch.tensor([3, 2, 0, 1])
    turned = reorder(groups, order[None])
    assert ranking(turned)[0].tolist() == pytest.approx([wanted[i] for i in order], abs=1e-6)
    with_nan = replace(groups, rollout_logprobs=groups.rollout_logprobs.clone())
    with_nan.rollout_logprobs[0, 3] = torch.nan
    assert torch.equal(ranking(with_nan), ranking(groups))


def test_an_unknown_form_of_the_ranking_is_refused() -> None:
    assert ranking(_groups(), form="paper")[0, 1] < ranking(_groups())[0, 1]
    with pytest.raises(RecastError, match="form is 'papers': choose one of code, paper"):
        ranking(_groups(), form="papers")


def test_semantic_is_the_cosine_with_the_nearest_target() -> None:
    """Item 2 against itself, item 0 at cosine .6, no item, no rollout."""
    found = semantic(_groups(), embeddings=EMBEDDINGS)
    torch.testing.assert_close(found, torch.tensor([[1, 0.6, -1, 0]]))
    two = tiny.make_groups(
        [[[1, 2], [3, 4], [5, 6]]], [[[1, 2], [3, 4]]], target_items=[[3, 0]], items=[[2, 1, 0]]
    )
    torch.testing.assert_close(semantic(two, embeddings=EMBEDDINGS), torch.tensor([[0.6, 0, 1]]))
    lost = tiny.make_groups([[[1, 2]]], [[[0, 0]]], target_items=[[-1]], items=[[2]])
    assert semantic(lost, embeddings=EMBEDDINGS).tolist() == [[-1]]


def test_collaborative_is_the_rankers_score() -> None:
    """Item 2 scores -3, item 0 scores 5; what is no item gets the lowest of these."""
    assert collaborative(_groups(), ranker=_ranker).tolist() == [[-3, 5, -3, 0]]
    nothing = tiny.make_groups([[[1, 2], [3, 4]]], [[[1, 2]]], items=[[-1, -1]])
    assert collaborative(nothing, ranker=_ranker).tolist() == [[0, 0]]


def test_collaborative_asks_about_every_prompt_and_passes_no_gradient_on() -> None:
    groups = tiny.make_groups(
        [[[1, 2], [3, 4]], [[1, 2], [3, 4]]], [[[1, 2]]] * 2, items=[[1, 3], [-1, 0]]
    )
    assert collaborative(groups, ranker=_ranker).tolist() == [[4, 2], [6, 6]]
    scale = torch.ones((), requires_grad=True)
    found = collaborative(groups, ranker=lambda prompts, items: items.float() * scale)
    assert not found.requires_grad


def test_a_target_that_was_put_in_ranks_last_however_probable() -> None:
    """The release ranks by place: two rows, the target the more probable one; then three, where
    the last rollout that exists is the target. S = 1 + 1 / log2(3) = 1.63, then 2.13."""
    groups = tiny.make_groups([[[1, 1], [9, 9]]], [[[9, 9]]])
    groups = replace(groups, rollout_logprobs=torch.tensor([[[-2.0, -2.0], [-1.0, -1.0]]]))
    plain = ranking(groups)[0].tolist()
    assert plain == pytest.approx([-0.38685, 1], abs=1e-5)
    injected = replace(groups, injected=torch.tensor([[False, True]]))
    assert ranking(injected)[0].tolist() == pytest.approx([-0.61315, 1], abs=1e-5)
    three = tiny.make_groups([[[1, 1], [0, 0], [9, 9]]], [[[9, 9]]], exists=[[True, False, True]])
    three = replace(three, injected=torch.tensor([[False, False, True]]))
    assert ranking(three)[0].tolist() == pytest.approx([-0.61315, 0, 1], abs=1e-5)
    assert ranking(three, form="paper")[0].tolist() == pytest.approx([-1, 0, 1], abs=1e-5)
