"""Evaluation folders: what is written is read, that of earlier releases too."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from data_folder import forget_hashes
from small_ranks import FACTS, ranks_of

from recast.evaluation.compare import compare
from recast.evaluation.disk import read_ranks, write_evaluation
from recast.evaluation.facts import Facts
from recast.evaluation.metrics import Ranks, row_metrics
from recast.types import RecastError

SEVERAL: dict[str, Any] = {
    "row_ids": torch.tensor([4, 7, 9]),
    "users": torch.tensor([1, 1, 2]),
    "sid_rank": torch.tensor([[3, 0, 3], [0, 1, 0], [0, 0, 0]]),
    "items_before": torch.tensor([[2, 9, 2], [9, 0, 0], [9, 0, 0]]),
    "num_sharing": torch.tensor([[2, 1, 2], [1, 1, 0], [1, 0, 0]]),
    "popular_rank": torch.tensor([[0, 0, 3], [0, 1, 0], [0, 0, 0]]),
    "item_mask": torch.tensor([[True, True, True], [True, True, False], [True, False, False]]),
    "sid_mask": torch.tensor([[True, True, False], [True, True, False], [True, False, False]]),
}


def assert_equal(a: Ranks, b: Ranks) -> None:
    for field in fields(Ranks):
        own, other = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(own, other) if isinstance(own, torch.Tensor) else own == other


def test_several_targets_survive_the_disk(tmp_path: Path) -> None:
    ranks = Ranks(**SEVERAL, facts=FACTS)
    means = write_evaluation(ranks, tmp_path / "eval", {"policy": "p"}, at=(1, 3))
    assert_equal(read_ranks(tmp_path / "eval"), ranks)
    content = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert content["policy"] == "p"
    assert list(content["metrics"]) == list(means) == list(row_metrics(ranks, (1, 3)))
    # Both items of the first row's third SID are targets: one of them is third in any order.
    assert means["item/pass@3"] == pytest.approx(2 / 3)
    assert means["item/first_pass@3"] == pytest.approx(0.5 / 3)
    # No padding on disk.
    rows = pl.read_parquet(tmp_path / "eval" / "rows.parquet")
    assert rows["sid_rank"].to_list() == [[3, 0, 3], [0, 1], [0]]


def test_a_row_without_a_target_survives_the_disk_and_scores_nothing(tmp_path: Path) -> None:
    ranks = Ranks(**{name: value[1:] for name, value in SEVERAL.items()}, facts=FACTS)
    ranks.item_mask[1] = ranks.sid_mask[1] = False
    ranks.items_before[1] = ranks.num_sharing[1] = 0
    write_evaluation(ranks, tmp_path / "eval", {})
    back = read_ranks(tmp_path / "eval")
    assert back.item_mask.tolist() == [[True, True], [False, False]]
    assert all(values[1] == 0 for values in row_metrics(back).values())


def test_one_target_stays_a_plain_column(tmp_path: Path) -> None:
    write_evaluation(ranks_of(0), tmp_path / "eval", {})
    rows = pl.read_parquet(tmp_path / "eval" / "rows.parquet")
    assert rows.columns == ["row_id", "user", "sid_rank", "items_before", "num_sharing"]
    assert rows.dtypes == [pl.Int64] * 5
    assert_equal(read_ranks(tmp_path / "eval"), ranks_of(0))


def test_a_folder_of_0_1_0(tmp_path: Path) -> None:
    """One target in plain columns, no facts; its numbers go with those of today."""
    columns = {
        "row_id": [3, 5, 8],
        "user": [0, 0, 4],
        "sid_rank": [1, 0, 2],
        "items_before": [0, 32, 1],
        "num_sharing": [2, 1, 1],
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "rows.parquet")
    interval = {"value": 0.4, "low": 0.1, "high": 0.6}
    settings = {"data": "d", "policy": "p", "split": "test", "beam_width": 32, "seed": 3}
    content = settings | {"split_name": "by time", "rows": 3, "metrics": {"item/hr@1": interval}}
    (tmp_path / "eval.json").write_text(json.dumps(content))
    old = read_ranks(tmp_path)
    assert old.facts == Facts(split="test", split_name="by time", beam_width=32)
    assert old.sid_rank.tolist() == [[1], [0], [2]]
    assert row_metrics(old)["item/hr@1"].tolist() == [0.5, 0, 0]
    results = compare({"a": old, "b": old}, ["a"], training_seeds=[0], draws=50)
    assert results.split == "test"
    with pytest.raises(RecastError, match="levels has popular_item, and these ranks hold no pop"):
        row_metrics(old, levels=["popular_item"])


@pytest.mark.parametrize(
    "change",
    [
        {"sid_rank": [[1], [0, 1]]},  # other targets than the rest
        {"sid_rank": [[1, 2], [0.5, 1.0]]},
        {"sid_rank": [1, None]},
        {"sid_rank": ["1", "2"]},
        {"user": ["a", "b"]},
        {"user": [[1], [2]]},
        {"sid_rank": [-1, 1]},
        {"items_before": [0, 2**40]},
        {"row_id": [4, 4]},
        {"popular_rank": [[1], [1, 2]]},
        {"sid_mask": [2, 0]},
    ],
)
def test_damaged_rows(tmp_path: Path, change: dict[str, Any]) -> None:
    whole: dict[str, Any] = {name: [0, 1] for name in ("row_id", "user", "sid_rank")}
    whole |= {"items_before": [0, 1], "num_sharing": [1, 1]}
    (tmp_path / "eval.json").write_text("{}")
    pl.DataFrame(whole).write_parquet(tmp_path / "rows.parquet")
    read_ranks(tmp_path)
    pl.DataFrame(whole | change, strict=False).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(RecastError, match=r"rows.parquet is damaged \(.*\): make it again"):
        read_ranks(tmp_path)


def test_damaged_facts(tmp_path: Path) -> None:
    write_evaluation(ranks_of(0), tmp_path / "eval", {})
    (tmp_path / "eval" / "eval.json").write_text('{"facts": {"evaluator": "new"}}')
    with pytest.raises(RecastError, match=r"eval.json is damaged \(fact evaluator is 'new'\)"):
        read_ranks(tmp_path / "eval")
    (tmp_path / "eval" / "eval.json").unlink()
    with pytest.raises(RecastError, match=r"is no evaluation \(no eval.json\): make it again"):
        read_ranks(tmp_path / "eval")


def test_what_was_edited_is_found_by_its_digest(tmp_path: Path) -> None:
    write_evaluation(ranks_of(0), tmp_path / "eval", {"policy": "p"})
    rows, facts = tmp_path / "eval" / "rows.parquet", tmp_path / "eval" / "eval.json"
    content = rows.read_bytes()
    for place in range(0, len(content), 97):
        rows.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(RecastError, match=r"damaged \(rows.parquet was changed since it was w"):
            read_ranks(tmp_path / "eval")
    rows.write_bytes(content)
    facts.write_text(facts.read_text().replace('"split": "test"', '"split": "valid"'))
    with pytest.raises(RecastError, match=r"eval.json is damaged \(it was changed since it was wr"):
        read_ranks(tmp_path / "eval")
    # A folder of an earlier release is tried in a process of its own first.
    forget_hashes(tmp_path / "eval", "eval.json")
    assert read_ranks(tmp_path / "eval").facts.split == "valid"
    rows.write_bytes(content[:60])
    with pytest.raises(RecastError, match=r"rows.parquet is damaged \("):
        read_ranks(tmp_path / "eval")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"facts": []}', r"facts is \[\]"),
        ('{"facts": {"split": "tset"}}', "fact split is 'tset'"),
        ('{"facts": {"beam_width": 0}}', "fact beam_width is 0"),
        ('{"facts": {"evaluator": 99}}', "fact evaluator is 99, of a newer recast"),
        ('{"facts": {"seed": 1, "seed": 2}}', "the key 'seed' is there twice"),
        ('{"facts": {"num_candidates": 5}}', "sid_rank of row .* is .*, outside 0 to 5"),
    ],
)
def test_facts_that_cannot_be(tmp_path: Path, content: str, message: str) -> None:
    write_evaluation(ranks_of(0), tmp_path / "eval", {})
    (tmp_path / "eval" / "eval.json").write_text(content)
    with pytest.raises(RecastError, match=message):
        read_ranks(tmp_path / "eval")
