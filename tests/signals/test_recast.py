"""ReCast and its two halves: worked numbers, ties, duplicates, degenerate groups."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import naive
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.groups import is_first
from recast.rewards.hit import set_ratio
from recast.rewards.scores import sid_set_ratio, structural_score
from recast.signals.recast import boundary_only, boundary_pair, recast, repair_only, worst_row
from recast.testing import make_groups
from recast.types import RecastError, RolloutGroups, Signal

TARGET = [[[1, 2, 3]]]
NONE = [-1, -1, -1]


def _recast(groups: RolloutGroups) -> Signal:
    return recast(groups, set_ratio(groups))


def _kept(signal: Signal, row: int = 0) -> dict[int, float]:
    weights = signal.advantages[row, :, 0].tolist()
    return {i: weights[i] for i in signal.keep[row].nonzero()[:, 0].tolist()}


def test_worked_example_in_full() -> None:
    """Five responses, one with two SIDs and one with none: scores, repair, pair."""
    predictions = torch.tensor(
        [
            [
                [[1, 2, 9], NONE],
                [[1, 9, 9], NONE],
                [[7, 7, 7], NONE],
                [[1, 2, 9], [7, 7, 7]],
                [NONE, NONE],
            ]
        ]
    )
    targets, exists = torch.tensor(TARGET), torch.ones(1, 5, dtype=torch.bool)
    scores = structural_score(predictions, targets)
    torch.testing.assert_close(scores, torch.tensor([[0.1, 0.01, 0, 0.05, 0]]))
    assert sid_set_ratio(predictions, targets).tolist() == [[0] * 5]
    assert worst_row(scores, exists).tolist() == [4]
    predictions[0, 4, 0] = targets[0, 0]
    rewards, scores = sid_set_ratio(predictions, targets), structural_score(predictions, targets)
    assert rewards.tolist() == [[0, 0, 0, 0, 1]]
    torch.testing.assert_close(scores, torch.tensor([[0.1, 0.01, 0, 0.05, 1]]))
    pair = boundary_pair(rewards, scores, exists & is_first(predictions.flatten(2)))
    assert [x.tolist() for x in pair] == [[4], [0], [True]]


def test_worked_example_of_single_sids_gives_the_kept_rows_and_their_weights() -> None:
    """The same group with one SID each: u = [.1, .01, 0, 0, 0], so row 4 gives way."""
    rollouts = [[[1, 2, 9], [1, 9, 9], [7, 7, 7], [2, 2, 9], [9, 9, 9]]]
    signal = _recast(tiny.make_groups(rollouts, TARGET))
    assert signal.advantages[..., 0].tolist() == [[-1, 0, 0, 0, 1]]
    assert signal.keep.tolist() == [[True, False, False, False, True]]


def test_worked_example_two_targets() -> None:
    predictions = torch.tensor([[[[1, 2, 3], [4, 5, 8], [9, 9, 9]]]])
    targets = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    assert float(structural_score(predictions, targets)) == pytest.approx(1.1 / 3)
    assert float(sid_set_ratio(predictions, targets)) == pytest.approx(1 / 3)


def test_repeated_and_missing_sids_count_as_a_set() -> None:
    predictions = torch.tensor([[[[1, 2, 3], [1, 2, 3], NONE], [NONE, NONE, [1, 2, 9]]]])
    targets = torch.tensor([[[1, 2, 3], NONE]])
    assert sid_set_ratio(predictions, targets).tolist() == [[1, 0]]
    torch.testing.assert_close(structural_score(predictions, targets), torch.tensor([[1, 0.1]]))


def test_only_the_common_prefix_counts() -> None:
    predictions = torch.tensor([[[[9, 2, 3]], [[1, 9, 3]], [[1, 2, 3]]]])
    scores = structural_score(predictions, torch.tensor(TARGET))
    torch.testing.assert_close(scores, torch.tensor([[0, 0.01, 1]]))
    four = torch.tensor([[[[1, 2, 3, 9]], [[1, 2, 9, 9]], [[1, 9, 9, 9]]]])
    scores = structural_score(four, torch.tensor([[[1, 2, 3, 4]]]))
    torch.testing.assert_close(scores, torch.tensor([[0.1, 0.01, 0.001]]))


def test_an_all_zero_group_is_repaired_in_its_worst_row() -> None:
    """u = [.1, .01, 0, .1, 0]: the last of the two zeros gives way, the first .1 is contrasted."""
    rollouts = [[[1, 2, 9], [1, 9, 9], [7, 7, 7], [1, 2, 8], [8, 8, 8]]]
    groups = tiny.make_groups(rollouts, TARGET)
    signal = _recast(groups)
    assert _kept(signal) == {0: -1.0, 4: 1.0}
    assert signal.groups.tokens[0].tolist() == [*rollouts[0][:4], [1, 2, 3]]
    assert signal.groups.items.tolist() == [[0, 1, 2, 3, 100]]
    assert torch.equal(signal.groups.rollout_logprobs[0, 4], groups.target_logprobs[0, 0])
    assert torch.equal(signal.groups.rollout_logprobs[0, :4], groups.rollout_logprobs[0, :4])
    assert signal.metrics["group/repaired_frac"] == 1
    assert signal.metrics["signal/masked_scale"] == pytest.approx(2 / 5)
    assert signal.nll_weight.tolist() == [0]


def test_a_single_hit_is_contrasted_with_the_closest_miss_and_nothing_is_repaired() -> None:
    rollouts = [[[7, 7, 7], [1, 2, 3], [1, 9, 9], [1, 2, 9]]]
    signal = _recast(tiny.make_groups(rollouts, TARGET))
    assert _kept(signal) == {1: 1.0, 3: -1.0}
    assert signal.groups.tokens.tolist() == rollouts
    assert signal.metrics["group/repaired_frac"] == 0


def test_ties_take_the_first_row() -> None:
    """Two distinct hits (two targets) and three distinct misses of equal score."""
    rollouts = [[[7, 7, 7], [4, 5, 6], [8, 8, 8], [1, 2, 3], [9, 9, 9]]]
    signal = _recast(tiny.make_groups(rollouts, [[[1, 2, 3], [4, 5, 6]]]))
    assert _kept(signal) == {0: -1.0, 1: 1.0}


def test_the_anchor_is_any_of_the_targets_alike_and_never_padding() -> None:
    targets = [[[1, 2, 3], [4, 5, 6]], [[4, 5, 6]]] * 1000
    groups = make_groups([[[7, 7, 7], [8, 8, 8]]] * 2000, targets)
    anchors = recast(groups, set_ratio(groups)).groups.tokens[:, 1]
    first = (anchors == torch.tensor([1, 2, 3])).all(1)
    assert bool((first | (anchors == torch.tensor([4, 5, 6])).all(1)).all())
    assert not first[1::2].any()
    deviation = (1000 * 0.5 * 0.5) ** 0.5
    assert abs(int(first[::2].sum()) - 500) < 4 * deviation


def test_duplicates_are_passed_over() -> None:
    """Rows 1 and 3 repeat earlier rows; a copy of the hit is never a negative."""
    rollouts = [[[1, 2, 3], [1, 2, 3], [1, 9, 9], [1, 9, 9], [7, 7, 7]]]
    assert _kept(_recast(tiny.make_groups(rollouts, TARGET))) == {0: 1.0, 2: -1.0}
    only_copies = [[[1, 2, 3], [1, 2, 3]]]
    assert _kept(_recast(tiny.make_groups(only_copies, TARGET))) == {}


def test_a_group_of_one_repeated_miss_is_repaired_and_contrasted() -> None:
    rollouts = [[[7, 7, 7], [7, 7, 7], [7, 7, 7]]]
    assert _kept(_recast(tiny.make_groups(rollouts, TARGET))) == {0: -1.0, 2: 1.0}


def test_a_group_of_hits_only_is_skipped_and_counted() -> None:
    rollouts = [[[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [7, 7, 7]]]
    signal = _recast(tiny.make_groups(rollouts, TARGET * 2))
    assert signal.keep.tolist() == [[False, False], [True, True]]
    assert signal.advantages[0].tolist() == [[0], [0]]
    assert signal.metrics["group/no_negative_frac"] == 0.5


def test_rollouts_that_do_not_exist_give_way_first_and_are_never_negatives() -> None:
    rollouts = [[[1, 2, 9], [0, 0, 0], [0, 0, 0]]]
    exists = [[True, False, False]]
    signal = _recast(tiny.make_groups(rollouts, TARGET, exists=exists))
    assert _kept(signal) == {0: -1.0, 2: 1.0}
    assert signal.groups.exists.tolist() == [[True, False, True]]
    assert signal.metrics["signal/masked_scale"] == 1
    hit_alone = tiny.make_groups([[[1, 2, 3], [0, 0, 0]]], TARGET, exists=[[True, False]])
    assert _kept(_recast(hit_alone)) == {}
    nothing = tiny.make_groups([[[0, 0, 0], [0, 0, 0]]], TARGET, exists=[[False, False]])
    signal = _recast(nothing)
    assert _kept(signal) == {}
    assert signal.advantages.isfinite().all()
    assert signal.metrics["group/no_negative_frac"] == 1
    assert signal.metrics["signal/masked_scale"] == 0
    signal = boundary_only(nothing, set_ratio(nothing))
    assert _kept(signal) == {}
    assert signal.metrics["group/no_negative_frac"] == 0


def test_an_empty_place_is_filled_before_a_real_rollout_is_lost() -> None:
    """Row 1 does not exist; row 2, a real miss of score 0 that comes later, stays."""
    rollouts = [[[1, 9, 9], [0, 0, 0], [7, 7, 7]]]
    groups = tiny.make_groups(rollouts, TARGET, exists=[[True, False, True]])
    signal = repair_only(groups, set_ratio(groups))
    assert signal.groups.tokens[0].tolist() == [[1, 9, 9], [1, 2, 3], [7, 7, 7]]
    assert signal.keep.tolist() == [[True, True, True]]
    assert _kept(_recast(groups)) == {0: -1.0, 1: 1.0}


def test_rewards_of_rollouts_that_do_not_exist_say_nothing() -> None:
    groups = tiny.make_groups([[[1, 2, 9], [0, 0, 0]]], TARGET, exists=[[True, False]])
    for rewards in ([[0.0, 1.0]], [[0.0, -1.0]]):
        assert _kept(recast(groups, torch.tensor(rewards))) == {0: -1.0, 1: 1.0}


def test_a_negative_reward_is_a_miss() -> None:
    groups = tiny.make_groups([[[1, 2, 9], [7, 7, 7], [8, 8, 8]]], TARGET)
    signal = recast(groups, torch.tensor([[-0.5, -0.25, -0.25]]))
    assert _kept(signal) == {0: -1.0, 2: 1.0}


def test_a_partial_hit_is_a_hit_and_the_best_one_is_the_positive() -> None:
    groups = tiny.make_groups([[[1, 2, 9], [1, 2, 3], [7, 7, 7]]], TARGET)
    signal = recast(groups, torch.tensor([[0.25, 0.5, 0]]))
    assert _kept(signal) == {1: 1.0, 2: -1.0}
    assert signal.metrics["group/repaired_frac"] == 0


def test_a_prompt_without_a_target_is_not_repaired() -> None:
    rollouts = [[[7, 7, 7], [8, 8, 8]]]
    groups = tiny.make_groups(rollouts, [[[0, 0, 0]]], target_items=[[-1]])
    signal = _recast(groups)
    assert signal.groups.tokens.tolist() == rollouts
    assert _kept(signal) == {}
    assert signal.metrics["group/repaired_frac"] == 0


def test_repaired_groups_have_no_importance_weights() -> None:
    groups = tiny.make_groups([[[7, 7, 7], [8, 8, 8]]], TARGET)
    groups = replace(groups, weights=torch.ones(1, 2))
    assert _recast(groups).groups.weights is None
    assert boundary_only(groups, set_ratio(groups)).groups is groups


def test_a_reward_that_overlooks_the_target_gives_no_pair_instead_of_half_of_one() -> None:
    """The anchor repeats row 0, so it is passed over and no positive is left."""
    groups = tiny.make_groups([[[1, 2, 3], [7, 7, 7]]], TARGET)
    signal = recast(groups, torch.zeros(1, 2))
    assert _kept(signal) == {}


def test_the_anchor_is_a_seeded_uniform_choice_among_the_real_targets() -> None:
    rollouts = [[[7, 7, 7], [8, 8, 8]]] * 3000
    targets = [[[1, 2, 3], [4, 5, 6], [2, 2, 2], [0, 0, 0]]] * 3000
    ids = [[10, 11, 12, -1]] * 3000
    groups = tiny.make_groups(rollouts, targets, target_items=ids, seed=4)
    signal = _recast(groups)
    counts = Counter(signal.groups.items[:, 1].tolist())
    assert set(counts) == {10, 11, 12}
    statistic = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert statistic < naive.chi_square_limit(2)
    assert torch.equal(_recast(groups).groups.items, signal.groups.items)
    assert not torch.equal(_recast(replace(groups, seed=5)).groups.items, signal.groups.items)
    assert not torch.equal(_recast(replace(groups, step=1)).groups.items, signal.groups.items)
    chosen = signal.groups.items[:, 1] - 10
    rows = torch.arange(3000)
    assert torch.equal(signal.groups.tokens[:, 1], groups.prompts.targets[rows, chosen])
    assert torch.equal(signal.groups.rollout_logprobs[:, 1], groups.target_logprobs[rows, chosen])


def test_one_rollout_has_nothing_to_be_contrasted_with() -> None:
    for rollout in ([1, 2, 3], [7, 7, 7]):
        groups = tiny.make_groups([[rollout]], TARGET)
        signal = _recast(groups)
        assert _kept(signal) == {}
        assert signal.metrics["group/no_negative_frac"] == 1
        signal = repair_only(groups, set_ratio(groups))
        assert signal.groups.tokens.tolist() == [[[1, 2, 3]]]
        assert _kept(signal) == {0: 0.0}


def test_w_scales_the_pair() -> None:
    groups = tiny.make_groups([[[1, 2, 3], [7, 7, 7], [8, 8, 8]]], TARGET)
    for signal in (recast, boundary_only):
        assert _kept(signal(groups, set_ratio(groups), w=2.5)) == {0: 2.5, 1: -2.5}


@pytest.mark.parametrize("w", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_is_none_is_refused(w: float) -> None:
    groups = tiny.make_groups([[[1, 2, 3], [7, 7, 7]]], TARGET)
    for signal in (recast, boundary_only):
        with pytest.raises(RecastError, match=f"w is {w}: give a number above 0"):
            signal(groups, set_ratio(groups), w=w)


def test_boundary_only_leaves_an_all_zero_group_alone() -> None:
    rollouts = [[[1, 2, 9], [7, 7, 7]], [[1, 2, 3], [7, 7, 7]], [[1, 2, 3], [1, 2, 3]]]
    groups = tiny.make_groups(rollouts, TARGET * 3)
    signal = boundary_only(groups, set_ratio(groups))
    assert signal.groups is groups
    assert [_kept(signal, row) for row in range(3)] == [{}, {0: 1.0, 1: -1.0}, {}]
    assert signal.metrics == {
        "group/repaired_frac": 0,
        "group/no_negative_frac": pytest.approx(1 / 3),
        "signal/masked_scale": pytest.approx(2 / 6),
    }


@pytest.mark.parametrize("hits", [0, 1, 2])
def test_repair_only_gives_grpos_worked_values(hits: int) -> None:
    """32 rollouts: an anchor weighs what a single hit weighs; the other 31 stay in the update."""
    rollouts = [[1, 2, 3]] * hits + [[7, 7, i] for i in range(32 - hits)]
    groups = tiny.make_groups([rollouts], TARGET)
    signal = repair_only(groups, set_ratio(groups))
    high, low = (3.81197, -0.25413) if hits == 2 else (5.48005, -0.17678)
    wanted = torch.full((1, 32), low)
    wanted[0, :hits] = high
    if hits == 0:
        wanted[0, 31] = high
        assert signal.groups.items[0, 31] == 100
    torch.testing.assert_close(signal.advantages[..., 0], wanted, rtol=0, atol=1e-5)
    assert signal.keep.all()
    assert signal.metrics == {"group/repaired_frac": float(hits == 0)}


def test_repair_only_gives_a_group_of_hits_exactly_zero_and_keeps_it() -> None:
    groups = tiny.make_groups([[[1, 2, 3], [1, 2, 3]]], TARGET)
    signal = repair_only(groups, set_ratio(groups))
    assert _kept(signal) == {0: 0.0, 1: 0.0}
    with pytest.raises(RecastError, match="eps is -1: give a number from 0 to 1"):
        repair_only(groups, set_ratio(groups), eps=-1)


Sid = tuple[int, ...]


def _oracle(rows: list[Sid | None], targets: list[Sid], anchor: Sid) -> dict[int, float]:
    """The definition, step by step, on one group of single SIDs; None = no rollout."""

    def phi(sid: Sid, target: Sid) -> float:
        if sid == target:
            return 1.0
        if sid[:2] == target[:2]:
            return 0.1
        return 0.01 if sid[0] == target[0] else 0.0

    def score(sid: Sid | None) -> float:
        return -1.0 if sid is None else max(phi(sid, target) for target in targets)

    rows = list(rows)
    if not any(sid in targets for sid in rows):
        rows[max(range(len(rows)), key=lambda i: (-score(rows[i]), i))] = anchor
    first = [i for i, sid in enumerate(rows) if sid is not None and sid not in rows[:i]]
    misses = [i for i in first if rows[i] not in targets]
    if not misses:
        return {}
    positive = next(i for i in first if rows[i] in targets)
    return {positive: 1.0, max(misses, key=lambda i: (score(rows[i]), -i)): -1.0}


_SID = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3))
_ROW = st.one_of(_SID, _SID, _SID, st.none())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    groups=st.lists(st.lists(_ROW, min_size=4, max_size=4), min_size=1, max_size=4),
    targets=st.lists(_SID, min_size=1, max_size=2, unique=True),
)
def test_any_batch_equals_the_definition_and_no_input_is_touched(
    groups: list[list[Sid | None]], targets: list[Sid]
) -> None:
    padded = [list(t) for t in targets] + [[0, 0, 0]]
    made = tiny.make_groups(
        [[list(s or (0, 0, 0)) for s in g] for g in groups],
        [padded] * len(groups),
        target_items=[[*range(100, 100 + len(targets)), -1]] * len(groups),
        exists=[[s is not None for s in g] for g in groups],
    )
    rewards = set_ratio(made)
    before = [made.tokens.clone(), made.items.clone(), made.rollout_logprobs.clone()]
    before += [made.loss_mask.clone(), rewards.clone()]
    signal, without = recast(made, rewards), boundary_only(made, rewards)
    for row, group in enumerate(groups):
        new = [i for i in signal.groups.items[row].tolist() if i >= 100] or [100]
        assert _kept(signal, row) == _oracle(group, targets, targets[new[0] - 100])
        natural = any(s in targets for s in group)
        assert _kept(without, row) == (_oracle(group, targets, targets[0]) if natural else {})
    after = [made.tokens, made.items, made.rollout_logprobs, made.loss_mask, rewards]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert not signal.advantages.requires_grad


@settings(max_examples=40, deadline=None, derandomize=True)
@given(order=st.permutations(range(4)))
def test_a_group_without_ties_may_be_permuted(order: list[int]) -> None:
    rollouts = [[1, 2, 3], [1, 2, 9], [1, 9, 9], [7, 7, 7]]
    for group, negative in ((rollouts, [1, 2, 9]), ([*rollouts[1:], [1, 2, 8]], None)):
        signal = _recast(tiny.make_groups([[group[i] for i in order]], TARGET))
        kept = {tuple(signal.groups.tokens[0, i].tolist()): w for i, w in _kept(signal).items()}
        assert kept[1, 2, 3] == 1.0
        if negative is not None:
            assert kept == {(1, 2, 3): 1.0, tuple(negative): -1.0}
        else:  # two near misses tie: the earlier one is taken, whichever it is
            first = min((order.index(0), [1, 2, 9]), (order.index(3), [1, 2, 8]))[1]
            assert kept == {(1, 2, 3): 1.0, tuple(first): -1.0}
