from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recast.evaluation.disk import read_ranks, write_evaluation
from recast.evaluation.facts import Facts
from recast.evaluation.metrics import HR_AT, NDCG_AT, Ranks, row_metrics
from recast.types import RecastError


def ranks_of(*places: tuple[int, int, int]) -> Ranks:
    """Rows given as (sid_rank, items_before, num_sharing)."""
    sid_rank, items_before, num_sharing = torch.tensor(places).T[..., None]
    one = torch.ones(len(places), 1, dtype=torch.bool)
    return Ranks(
        row_ids=torch.arange(len(places)),
        users=torch.arange(len(places)),
        sid_rank=sid_rank,
        items_before=items_before,
        num_sharing=num_sharing,
        item_mask=one,
        sid_mask=one,
    )


def metrics_of(*place: int) -> dict[str, float]:
    return {name: value.item() for name, value in row_metrics(ranks_of(place)).items()}


def test_third_place_is_half_an_ndcg() -> None:
    found = metrics_of(3, 2, 1)
    for level in ("item", "sid"):
        assert found[f"{level}/ndcg@5"] == pytest.approx(0.5)
        assert found[f"{level}/ndcg@10"] == pytest.approx(0.5)
        assert [found[f"{level}/hr@{k}"] for k in (1, 5, 10, 50)] == [0, 1, 1, 1]


def test_a_shared_sid_at_first_place_is_an_expectation() -> None:
    found = metrics_of(1, 0, 2)
    assert found["item/hr@1"] == 0.5
    assert found["item/hr@5"] == 1
    assert found["item/ndcg@5"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert found["sid/hr@1"] == found["sid/ndcg@5"] == 1


def test_a_shared_sid_across_the_cut() -> None:
    found = metrics_of(2, 4, 3)
    assert found["item/hr@5"] == pytest.approx(1 / 3)
    assert found["item/ndcg@5"] == pytest.approx(1 / math.log2(6) / 3)
    assert found["sid/ndcg@5"] == pytest.approx(1 / math.log2(3))


def test_a_target_that_is_not_listed_scores_nothing() -> None:
    assert set(metrics_of(0, 32, 1).values()) == {0.0}


def test_names_and_rows() -> None:
    found = row_metrics(ranks_of((1, 0, 1), (0, 9, 1)))
    assert list(found) == [
        f"{level}/{name}"
        for level in ("item", "sid")
        for name in ("hr@1", "hr@5", "hr@10", "hr@50", "ndcg@5", "ndcg@10")
    ]
    assert all(value.tolist() == [1, 0] for value in found.values())


@given(st.integers(0, 40), st.integers(1, 5))
def test_item_level_is_the_mean_over_every_order_of_the_tie(before: int, sharing: int) -> None:
    found = metrics_of(1, before, sharing)
    places = [before + 1 + order.index(0) for order in permutations(range(sharing))]
    for k in HR_AT:
        hits = [place <= k for place in places]
        assert found[f"item/hr@{k}"] == pytest.approx(sum(hits) / len(places))
    for k in NDCG_AT:
        gains = [(place <= k) / math.log2(place + 1) for place in places]
        assert found[f"item/ndcg@{k}"] == pytest.approx(sum(gains) / len(places))


def test_ranks_survive_the_disk(tmp_path: Path) -> None:
    ranks = ranks_of((3, 2, 1), (0, 32, 4))
    write_evaluation(ranks, tmp_path / "deep" / "eval", {"split": "test"})
    back = read_ranks(tmp_path / "deep" / "eval")
    for f in fields(Ranks):
        own, other = getattr(ranks, f.name), getattr(back, f.name)
        assert torch.equal(own, other) if isinstance(own, torch.Tensor) else own == other


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"at": [3, 50]}, r"at has 50, and each row lists 32 SIDs \(beam_width\): leave it out or"),
        ({"at": [0]}, r"at is \[0\]: give whole numbers from 1 to"),
        ({"at": [True]}, r"at is \[True\]: give whole numbers"),
        ({"levels": []}, r"levels is \[\]: give one or more of item, sid, popular_item"),
        ({"names": ["mrr"]}, r"names is \['mrr'\]: choose from hr, pass"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, Any], message: str) -> None:
    ranks = replace(ranks_of((1, 0, 1)), facts=Facts(beam_width=32))
    with pytest.raises(RecastError, match=message):
        row_metrics(ranks, **asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sid_rank": torch.tensor([[1], [-2]])}, "sid_rank of row 1 is -2, outside 0 to"),
        ({"row_ids": torch.tensor([3, 3])}, "a row is there more than once"),
        ({"item_mask": torch.zeros(2, 1).bool()}, "sid_mask holds a target that item_mask has not"),
    ],
)
def test_ranks_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecastError, match=rf"ranks that cannot be \({message}"):
        row_metrics(replace(ranks_of((1, 0, 1), (2, 1, 1)), **change))


def test_the_cuts_of_the_table_end_where_the_lists_do() -> None:
    """HR@50 of ten beams would be HR@10 under another name."""
    ranks = replace(ranks_of((1, 0, 1)), facts=Facts(beam_width=10))
    assert [name for name in row_metrics(ranks, names=["hr"]) if name.startswith("item")] == [
        "item/hr@1",
        "item/hr@5",
        "item/hr@10",
    ]
