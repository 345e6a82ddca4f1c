from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import torch

from recast.config import EvaluateConfig, ModelConfig, PrepareConfig
from recast.data.folder import load_data
from recast.data.prepare import prepare
from recast.evaluate import evaluate_policy, invalid_frac, rank_policy, sample_rows
from recast.items.catalog import build_catalog
from recast.policy.load import Policy, create_policy, load_policy, save_policy
from recast.ranks import read_ranks, row_metrics
from recast.types import RecastError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """A data folder of 12 users and 30 items, and a policy that was never trained."""
    folder = tmp_path_factory.mktemp("run")
    draw = torch.Generator().manual_seed(0)
    events = [
        (user, int(item), 100 * place + user)
        for user in range(12)
        for place, item in enumerate(torch.randperm(30, generator=draw)[:15])
    ]
    table = pl.DataFrame(events, schema=["user", "item", "time"], orient="row")
    table.write_csv(folder / "events.csv")
    prepare(PrepareConfig(interactions=str(folder / "events.csv"), output=str(folder / "data")))
    save_policy(policy_of(30), folder / "policy")
    return EvaluateConfig(
        data=str(folder / "data"),
        policy=str(folder / "policy"),
        output=str(folder / "eval"),
        beam_width=10,
        invalid_rows=5,
        threads=torch.get_num_threads(),
    )


def policy_of(num_items: int) -> Policy:
    codes = torch.stack([torch.arange(num_items) // 6, torch.arange(num_items) % 6], 1)
    model = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2)
    return create_policy(model, build_catalog(codes, (6, 6)), window=8, seed=0)


def test_what_is_written_is_what_was_ranked(run: EvaluateConfig) -> None:
    means = evaluate_policy(run)
    folder = Path(run.output)
    assert sorted(file.name for file in folder.iterdir()) == [
        "eval.json",
        "rows.parquet",
    ]
    data, policy = load_data(run.data), load_policy(run.policy)
    rows = data.rows("test")
    ranks, again = read_ranks(folder), rank_policy(policy, data, rows, 10)
    assert torch.equal(ranks.row_ids, rows)
    assert torch.equal(ranks.sid_rank, again.sid_rank)
    facts = json.loads((folder / "eval.json").read_text())
    metrics = facts.pop("metrics")
    assert facts == asdict(run) | {
        "split": "test",
        "split_name": data.split_name,
        "rows": len(rows),
        "users": len(data.users[rows].unique()),
        "resampled": "users",
        "draws": 10_000,
        "seed": 0,
        "beam_width": 10,
        "invalid_rows": 5,
        "invalid_frac": pytest.approx(means["invalid_frac"]),
    }
    for name, values in row_metrics(ranks).items():
        found = metrics[name]
        assert found["value"] == means[name] == pytest.approx(float(values.mean()))
        assert found["low"] <= found["value"] <= found["high"]
    few = sample_rows(data, "test", 5)
    assert means["invalid_frac"] == invalid_frac(policy, data, few, 10)
    assert means["rows"] == len(rows)


def test_an_existing_folder_is_kept(run: EvaluateConfig, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(RecastError, match="already holds something: remove it or choose another"):
        evaluate_policy(replace(run, output=str(tmp_path)))
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_policy_of_other_items_is_refused(run: EvaluateConfig, tmp_path: Path) -> None:
    save_policy(policy_of(29), tmp_path / "policy")
    other = replace(run, policy=str(tmp_path / "policy"), output=str(tmp_path / "eval"))
    with pytest.raises(RecastError, match="the data has 30 items, the catalogue 29"):
        evaluate_policy(other)
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beam_width": 9}, "beam_width is 9: metrics at 10 need 10 or more"),
        ({"invalid_rows": 0}, "invalid_rows is 0: give 1 or more"),
    ],
)
def test_settings_out_of_range(run: EvaluateConfig, setting: dict, message: str) -> None:
    with pytest.raises(RecastError, match=message):
        replace(run, **setting)


def test_a_beam_wider_than_the_catalogue(run: EvaluateConfig) -> None:
    data, policy = load_data(run.data), load_policy(run.policy)
    rows = data.rows("test")
    all_items, wider = (rank_policy(policy, data, rows, width) for width in (30, 10**6))
    assert torch.equal(all_items.sid_rank, wider.sid_rank)
    assert torch.equal(all_items.items_before, wider.items_before)
    assert bool((wider.sid_rank > 0).all())
    few = rows[:2]
    assert invalid_frac(policy, data, few, 10**6) == invalid_frac(policy, data, few, 30)
    assert invalid_frac(policy, data, rows[:0], 10) == 0


def test_damaged_ranks(tmp_path: Path) -> None:
    with pytest.raises(RecastError, match=r"rows.parquet is damaged \(.*\): make it again with"):
        read_ranks(tmp_path)
    pl.DataFrame({"row_id": [0.5]}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(RecastError, match=r"rows.parquet is damaged \("):
        read_ranks(tmp_path)
