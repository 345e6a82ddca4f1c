"""Methods over seeds: differences by hand, an effect that is there and one that is not, and what is
refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_ranks import FACTS, ranks_of

from recast.evaluation.comparison import compare_seeds
from recast.evaluation.ranks import Ranks
from recast.types import RecastError

PRIMARY = "item/ndcg@10"


def listed(places: list[int], users: list[int]) -> Ranks:
    """Rows whose only target stands at these places, 0: nowhere."""
    place = torch.tensor(places)[:, None]
    mask = torch.ones_like(place, dtype=torch.bool)
    return Ranks(
        row_ids=torch.arange(len(places)),
        users=torch.tensor(users),
        sid_rank=place,
        items_before=(place - 1).clamp(min=0),
        num_sharing=torch.ones_like(place),
        item_mask=mask,
        sid_mask=mask,
        facts=FACTS,
    )


def drawn(hit_frac: float, seed: int, rows: int = 600) -> Ranks:
    """One row a user; the same users are easy whatever the method."""
    easy = np.random.default_rng(0).normal(0, 1, rows)
    own = np.random.default_rng(seed + 1).normal(0, 0.3, rows)
    hit = easy + own > np.quantile(easy, 1 - hit_frac)
    return listed(hit.astype(int).tolist(), list(range(rows)))


def test_a_difference_by_hand() -> None:
    """Seeds of `a` hit rows 1 and 2 of 4, then row 1 alone; the start hits row 1: the difference is
    (1/4 + 0) / 2, its spread over seeds .25 / sqrt 2 = .1768, the standard error .125."""
    start = listed([1, 0, 0, 0], [1, 2, 3, 4])
    found = compare_seeds(
        {"start": [start], "a": [listed([1, 1, 0, 0], [1, 2, 3, 4]), start]}, ["start"]
    )
    gap = found["a"].against["start"]["item/hr@1"]
    assert gap.mean == 0.125
    assert gap.spread == pytest.approx(0.176777, abs=1e-6)
    assert gap.over_seeds == pytest.approx((0.125 - 12.7062 * 0.125, 0.125 + 12.7062 * 0.125), 1e-5)
    assert found["a"].metrics["item/hr@1"].mean == 0.375
    assert found["start"].metrics["item/hr@1"].spread is None
    assert found["start"].against == {}


def test_a_planted_effect_is_found_and_a_planted_null_is_not() -> None:
    """Three seeds: `better` hits a tenth more rows than the start, `same` is drawn as it."""
    methods = {
        "start": [drawn(0.3, 0)],
        "better": [drawn(0.4, seed) for seed in (1, 2, 3)],
        "same": [drawn(0.3, seed) for seed in (4, 5, 6)],
    }
    found = compare_seeds(methods, ["start", "same"])
    better, same = (found[name].against["start"][PRIMARY] for name in ("better", "same"))
    assert better.p_holm is not None
    assert better.p_holm < 0.01
    assert better.over_both is not None
    assert 0.05 < better.over_both[0] < better.mean < better.over_both[1] < 0.15
    assert same.p > 0.05
    assert same.smallest is not None
    assert better.mean > same.smallest > abs(same.mean)


def test_p_holds_for_the_family() -> None:
    """Four differences of three rows, one of them seen from both sides: three tests."""
    methods = {name: [ranks_of(seed)] for seed, name in enumerate(("start", "a", "b"))}
    found = compare_seeds(methods, ["start", "a"])
    gaps = {(n, o): gap[PRIMARY] for n, row in found.items() for o, gap in row.against.items()}
    assert list(gaps) == [("start", "a"), ("a", "start"), ("b", "start"), ("b", "a")]
    assert gaps["start", "a"].mean == -gaps["a", "start"].mean
    assert gaps["start", "a"].p_holm == gaps["a", "start"].p_holm
    ends = gaps["a", "start"].over_both
    assert ends
    assert gaps["start", "a"].over_both == (-ends[1], -ends[0])
    tests = [gaps[pair] for pair in (("start", "a"), ("b", "start"), ("b", "a"))]
    smallest = min(tests, key=lambda gap: gap.p)
    assert smallest.p_holm == pytest.approx(min(3 * smallest.p, 1))
    assert found["a"].against["start"]["item/hr@10"].p_holm is None


def test_slices_hold_their_own_rows() -> None:
    ranks = {
        "start": [listed([1, 0, 1, 0], [1, 1, 2, 2])],
        "a": [listed([1, 1, 0, 0], [1, 1, 2, 2])],
    }
    groups = {"kind": (["few", "many", "none"], np.array([0, 0, 1, -1]))}
    found = compare_seeds(ranks, ["start"], groups)["a"].slices["kind"]
    assert [(part.group, part.rows, part.users) for part in found] == [
        ("few", 2, 1),
        ("many", 1, 1),
    ]
    assert [part.against["start"]["item/hr@10"].mean for part in found] == [0.5, -1.0]
    assert [part.metrics["item/hr@10"].mean for part in found] == [1.0, 0.0]


def test_nothing_is_concluded_from_one_user_or_of_equal_policies() -> None:
    one = {"start": [listed([1, 0], [7, 7])], "a": [listed([1, 1], [7, 7])]}
    gap = compare_seeds(one, ["start"])["a"].against["start"][PRIMARY]
    assert (gap.mean, gap.p, gap.p_holm, gap.over_both, gap.smallest) == (0.5, 1.0, 1.0, None, None)
    same = compare_seeds({"start": [ranks_of(0)], "a": [ranks_of(0)] * 2}, ["start"])
    assert same["a"].equals == ["start"]
    assert same["a"].against["start"][PRIMARY].p == 1.0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([replace(ranks_of(1), facts=replace(FACTS, split="valid"))] * 2, "split is 'valid' for a"),
        ([replace(ranks_of(1), facts=replace(FACTS, num_candidates=31))] * 2, "num_candidates is"),
        ([replace(ranks_of(1), facts=replace(FACTS, evaluator=0))] * 2, "evaluator is 0 for a"),
        ([replace(ranks_of(1), facts=replace(FACTS, data="0" * 64))] * 2, ""),
        ([replace(ranks_of(1), row_ids=torch.arange(20))] * 2, "ranked different rows"),
        ([replace(ranks_of(1), users=torch.arange(20))] * 2, "rows of different users"),
        ([ranks_of(1)] * 3, "b has 2 seeds and another method 3: give every method"),
    ],
)
def test_what_does_not_belong_together(other: list[Ranks], said: str) -> None:
    methods = {"start": [ranks_of(0)], "a": other, "b": [ranks_of(2)] * 2}
    if not said:  # whose data is not known goes with any
        compare_seeds(methods, ["start"])
        return
    with pytest.raises(RecastError, match=said):
        compare_seeds(methods, ["start"])
