"""Scores of padded sets of SIDs: worked numbers and a slow reference on Python sets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.rewards.scores import (
    shared_frac,
    sid_any_hit,
    sid_first_hit,
    sid_set_ratio,
    structural_score,
)

NONE = (-1, -1, -1)
Sid = tuple[int, int, int]


def _scores(named: list[Sid], targets: list[Sid]) -> list[float]:
    """first, any, ratio and structural score of one response."""
    predictions, wanted = torch.tensor([[named]]), torch.tensor([targets])
    every = (sid_first_hit, sid_any_hit, sid_set_ratio, structural_score)
    return [float(score(predictions, wanted)) for score in every]


@pytest.mark.parametrize(
    ("named", "targets", "wanted"),
    [
        ([(1, 2, 9)], [(1, 2, 3)], [0, 0, 0, 0.1]),
        ([(1, 9, 9)], [(1, 2, 3)], [0, 0, 0, 0.01]),
        ([(7, 7, 7)], [(1, 2, 3)], [0, 0, 0, 0]),
        ([(9, 2, 3)], [(1, 2, 3)], [0, 0, 0, 0]),
        ([(1, 2, 9), (7, 7, 7)], [(1, 2, 3)], [0, 0, 0, 0.05]),
        ([NONE, NONE], [(1, 2, 3)], [0, 0, 0, 0]),
        ([(1, 2, 3), (4, 5, 8), (9, 9, 9)], [(1, 2, 3), (4, 5, 6)], [1, 1, 1 / 3, 1.1 / 3]),
        # OpenOneRec's example: score 0, hit 0, partial 10 of 100, pass 0.
        ([(1, 2, 9)], [(1, 2, 3), (1, 5, 5)], [0, 0, 0, 0.1]),
        # Repeats count once; the first SID named decides, wherever the padding is.
        ([(1, 2, 3), (1, 2, 3)], [(1, 2, 3)], [1, 1, 1, 1]),
        ([(4, 4, 4), (1, 2, 3)], [(1, 2, 3)], [0, 1, 0.5, 0.5]),
        ([NONE, (1, 2, 3), (4, 4, 4)], [(1, 2, 3)], [1, 1, 0.5, 0.5]),
        # A target that is none is no target, though it looks like a SID that is none.
        ([NONE, (1, 2, 3)], [NONE], [0, 0, 0, 0]),
        ([(1, 2, 3)], [NONE, (1, 2, 3)], [1, 1, 1, 1]),
    ],
)
def test_worked_scores(named: list[Sid], targets: list[Sid], wanted: list[float]) -> None:
    assert _scores(named, targets) == pytest.approx(wanted, abs=1e-7)


_SID = st.one_of(st.just(NONE), st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(named=st.lists(_SID, min_size=1, max_size=5), targets=st.lists(_SID, min_size=1, max_size=3))
def test_scores_equal_the_definitions_on_python_sets(named: list[Sid], targets: list[Sid]) -> None:
    said = [sid for sid in named if sid != NONE]
    p, t = set(said), {sid for sid in targets if sid != NONE}

    def phi(a: Sid, b: Sid) -> float:
        if a == b:
            return 1.0
        return 0.1 if a[:2] == b[:2] else 0.01 if a[0] == b[0] else 0.0

    first = float(bool(said) and said[0] in t)
    ratio = len(p & t) / len(p) if p else 0.0
    score = sum(max(phi(a, b) for b in t) for a in p) / len(p) if p and t else 0.0
    assert _scores(named, targets) == pytest.approx(
        [first, float(bool(p & t)), ratio, score], abs=1e-6
    )


def test_the_shared_part_is_of_the_target_and_what_is_none_shares_nothing() -> None:
    predictions = torch.tensor([[[[1, 2, 9], [1, 2, 3]], [[9, 2, 3], [-1, -1, -1]]]])
    targets = torch.tensor([[[1, 2, 3], [-1, -1, -1]]])
    found = shared_frac(predictions, targets)
    assert found.allclose(torch.tensor([[[2 / 3, 1.0], [0.0, 0.0]]]))
