"""ReCast by levels: a sibling per level, its token alone, drawn softly and reproducibly."""

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

from recast.groups import reorder
from recast.rewards.hit import first_hit
from recast.signals.levels import draw_softly, recast_levels
from recast.types import RecastError, Signal

TARGET = [[[1, 2, 3]]]
Sid = tuple[int, ...]


def _weights(signal: Signal, row: int = 0) -> dict[Sid, float]:
    """What the update adds to log p(last token | the tokens before), prefix by prefix."""
    found: dict[Sid, float] = {}
    counted = signal.groups.loss_mask & signal.keep[..., None]
    for place, level in counted[row].nonzero().tolist():
        prefix = tuple(signal.groups.tokens[row, place, : level + 1].tolist())
        found[prefix] = found.get(prefix, 0.0) + float(signal.advantages[row, place, level])
    return found


def test_worked_group_with_one_sibling_per_level() -> None:
    """Hit in row 1; rows 0, 2 and 3 leave it at levels 2, 0 and 1."""
    rollouts = [[[1, 2, 9], [1, 2, 3], [7, 2, 3], [1, 9, 3]]]
    groups = tiny.make_groups(rollouts, TARGET)
    signal = recast_levels(groups, first_hit(groups), anchor_weight=2.0, contrast_weight=0.5)
    assert signal.advantages.tolist() == [
        [[0, 0, -0.5], [2.5, 2.5, 2.5], [-0.5, 0, 0], [0, -0.5, 0]]
    ]
    assert signal.groups.loss_mask.tolist() == [
        [[False, False, True], [True] * 3, [True, False, False], [False, True, False]]
    ]
    assert signal.keep.tolist() == [[True] * 4]
    assert signal.groups.tokens.tolist() == rollouts
    assert signal.nll_weight.tolist() == [0]
    assert signal.metrics == {
        "group/repaired_frac": 0,
        "signal/contrast_frac_l0": 1,
        "signal/contrast_frac_l1": 1,
        "signal/contrast_frac_l2": 1,
    }


def test_nothing_cancels_on_a_shared_prefix() -> None:
    """ReCast's pair against (1, 2, 9) would leave level 2 alone; here each level keeps its own."""
    groups = tiny.make_groups([[[1, 2, 3], [1, 2, 9], [1, 8, 3]]], TARGET)
    assert _weights(recast_levels(groups, first_hit(groups))) == pytest.approx(
        {(1,): 1.0, (1, 2): 1.3, (1, 2, 3): 1.3, (1, 2, 9): -0.3, (1, 8): -0.3}
    )


def test_a_level_without_a_sibling_has_the_anchors_weight_alone() -> None:
    """Two all-zero groups: the worst row becomes the anchor, the near miss or the far one stays."""
    rollouts = [[[1, 2, 9], [7, 7, 7]], [[8, 8, 8], [7, 7, 7]]]
    groups = tiny.make_groups(rollouts, TARGET * 2)
    signal = recast_levels(groups, first_hit(groups))
    assert signal.groups.items[:, 1].tolist() == [100, 100]
    for row, advantages in enumerate([[1, 1, 1.3], [1.3, 1, 1]]):
        assert signal.advantages[row, 1].tolist() == pytest.approx(advantages)
    assert signal.advantages[:, 0].tolist() == [
        pytest.approx([0, 0, -0.3]),
        pytest.approx([-0.3, 0, 0]),
    ]
    assert signal.metrics == {
        "group/repaired_frac": 1,
        "signal/contrast_frac_l0": 0.5,
        "signal/contrast_frac_l1": 0,
        "signal/contrast_frac_l2": 0.5,
    }


def test_the_most_probable_hit_is_the_positive_and_no_target_is_a_negative() -> None:
    rollouts = [[[4, 5, 6], [1, 2, 3], [1, 2, 9]]]
    groups = tiny.make_groups(rollouts, [[[1, 2, 3], [4, 5, 6]]])
    first = recast_levels(groups, first_hit(groups))
    assert first.advantages[0, 0].tolist() == pytest.approx([1.3, 1, 1])
    assert first.keep.tolist() == [[True, False, True]]
    likelier = torch.tensor([[[-3.0] * 3, [-1.0] * 3, [-2.0] * 3]])
    second = recast_levels(replace(groups, rollout_logprobs=likelier), first_hit(groups))
    assert second.advantages[0].tolist() == [
        [0, 0, 0],
        pytest.approx([1, 1, 1.3]),
        pytest.approx([0, 0, -0.3]),
    ]


def test_a_group_of_hits_only_and_a_single_rollout_have_the_anchor_alone() -> None:
    groups = tiny.make_groups([[[1, 2, 3], [1, 2, 3]]], TARGET)
    signal = recast_levels(groups, first_hit(groups))
    assert signal.keep.tolist() == [[True, False]]
    assert signal.advantages.tolist() == [[[1, 1, 1], [0, 0, 0]]]
    for rollout in ([1, 2, 3], [7, 7, 7]):
        groups = tiny.make_groups([[rollout]], TARGET)
        signal = recast_levels(groups, first_hit(groups))
        assert signal.groups.tokens.tolist() == [[[1, 2, 3]]]
        assert signal.advantages.tolist() == [[[1, 1, 1]]]


def test_groups_without_rollouts_or_targets() -> None:
    groups = tiny.make_groups(
        [[[0, 0, 0], [0, 0, 0]], [[7, 7, 7], [8, 8, 8]]],
        [[[1, 2, 3]], [[0, 0, 0]]],
        target_items=[[5], [-1]],
        exists=[[False, False], [True, True]],
    )
    signal = recast_levels(groups, first_hit(groups))
    assert signal.keep.tolist() == [[False, True], [False, False]]
    assert signal.groups.items[0].tolist() == [0, 5]
    assert signal.advantages.isfinite().all()
    assert not signal.advantages[1].any()


def test_siblings_are_drawn_with_the_softmax_of_their_log_probability() -> None:
    """Two siblings at level 0, log-probabilities 0 and -ln 4, temperature 2: 2/3 and 1/3.

    A second copy of the less probable one changes nothing.
    """
    rollouts = [[[1, 2, 3], [7, 7, 7], [8, 8, 8], [8, 8, 8]]] * 6000
    groups = tiny.make_groups(rollouts, TARGET * 6000)
    logprobs = torch.zeros(6000, 4, 3)
    logprobs[:, 2:, 1] = -math.log(4)
    groups = replace(groups, rollout_logprobs=logprobs)
    signal = recast_levels(groups, first_hit(groups), temperature=2.0)
    drawn = signal.keep[:, 1:].int().argmax(1)
    assert signal.keep.sum(1).eq(2).all()
    counts = Counter(drawn.tolist())
    expected = {0: 4000, 1: 2000}
    statistic = sum((counts[i] - n) ** 2 / n for i, n in expected.items())
    assert statistic < naive.chi_square_limit(1)
    again = recast_levels(groups, first_hit(groups), temperature=2.0)
    assert torch.equal(again.keep, signal.keep)
    other = recast_levels(replace(groups, seed=1), first_hit(groups), temperature=2.0)
    assert not torch.equal(other.keep, signal.keep)
    cold = recast_levels(groups, first_hit(groups), temperature=1e-6)
    assert cold.keep[:, 1].all()
    hot = recast_levels(groups, first_hit(groups), temperature=1e6)
    assert 2700 < int(hot.keep[:, 1].sum()) < 3300


def test_extreme_draws_and_log_probabilities_stay_among_the_eligible() -> None:
    logprobs = torch.tensor([[-1e30, -1.0, -2.0, -1e30]], dtype=torch.float64)
    eligible = torch.tensor(
        [[[True, True, False, True], [True, False, False, True], [False] * 4, [False, True] * 2]]
    )
    for value in (0.0, 1 - 2.0**-53):
        for temperature in (1e-300, 1e300):
            draws = torch.full((1, 4), value, dtype=torch.float64)
            row, found = draw_softly(logprobs, eligible, temperature, draws)
            assert found.tolist() == [[True, True, False, True]]
            for level in (0, 1, 3):
                assert eligible[0, level, int(row[0, level])]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(order=st.permutations(range(6)))
def test_the_order_of_the_rows_does_not_matter(order: list[int]) -> None:
    rollouts = [[1, 2, 3], [1, 2, 8], [1, 2, 9], [1, 7, 3], [6, 2, 3], [5, 2, 3]]
    groups = tiny.make_groups([rollouts], TARGET)
    rows = torch.tensor(order)
    permuted = reorder(groups, rows[None])
    signal, other = (recast_levels(g, first_hit(g)) for g in (groups, permuted))
    assert torch.equal(other.advantages, signal.advantages[:, rows])
    assert torch.equal(other.keep, signal.keep[:, rows])
    assert torch.equal(other.groups.loss_mask, signal.groups.loss_mask[:, rows])


def _check(signal: Signal, row: int) -> None:
    """Every level: the positive's weight and, if there is one, exactly one distinct sibling."""
    repaired = signal.groups
    sids = [tuple(sid) for sid in repaired.tokens[row].tolist()]
    exists, target = repaired.exists[row].tolist(), (1, 1, 1)
    misses = {sid for sid, real in zip(sids, exists, strict=True) if real and sid != target}
    weights, count = _weights(signal, row), 0
    for level in range(3):
        siblings = {m[: level + 1] for m in misses if m[:level] == target[:level]}
        siblings -= {target[: level + 1]}
        negative = [p for p in weights if len(p) == level + 1 and p != target[: level + 1]]
        assert len(negative) == bool(siblings)
        assert set(negative) <= siblings
        assert all(weights[p] == pytest.approx(-0.25) for p in negative)
        assert weights[target[: level + 1]] == pytest.approx(0.75 + 0.25 * bool(siblings))
        count += bool(siblings)
    assert int(signal.keep[row].sum()) == 1 + count
    assert signal.advantages[row][~signal.keep[row]].eq(0).all()


_SID = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    groups=st.lists(
        st.lists(st.one_of(_SID, _SID, st.none()), min_size=5, max_size=5), min_size=1, max_size=3
    ),
    seed=st.integers(0, 99),
)
def test_any_batch_equals_the_definition_and_no_input_is_touched(
    groups: list[list[Sid | None]], seed: int
) -> None:
    made = tiny.make_groups(
        [[list(s or (0, 0, 0)) for s in g] for g in groups],
        [[[1, 1, 1]]] * len(groups),
        exists=[[s is not None for s in g] for g in groups],
        seed=seed,
    )
    before = [made.tokens.clone(), made.loss_mask.clone(), made.rollout_logprobs.clone()]
    signal = recast_levels(made, first_hit(made), anchor_weight=0.75, contrast_weight=0.25)
    for row in range(len(groups)):
        _check(signal, row)
    after = [made.tokens, made.loss_mask, made.rollout_logprobs]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert not signal.advantages.requires_grad


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("anchor_weight", -1.0),
        ("contrast_weight", math.nan),
        ("temperature", 0.0),
        ("temperature", math.inf),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, value: float) -> None:
    groups = tiny.make_groups([[[1, 2, 3]]], TARGET)
    with pytest.raises(RecastError, match=f"{name} is {value}: give"):
        recast_levels(groups, first_hit(groups), **{name: value})
