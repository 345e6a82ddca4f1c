"""Post-training with thoughts that a server writes: what it is handed, what is kept, what is not
lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_chat
from small_walk import metric_lines, rl_config, same, sft_config, weights
from thought_server import ThoughtServer, thought_server

from recast.config import InspectConfig, ModelConfig, RLConfig
from recast.report.inspection import inspect_policy
from recast.rl import train_rl
from recast.sft import train_sft
from recast.types import RecastError

THINKS = {"thoughts": 2, "max_thought_tokens": 4}


@pytest.fixture(scope="module")
def base(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows the names of the items and nothing of them."""
    folder = tmp_path_factory.mktemp("served")
    small_chat.save_model(folder / "model")
    config = sft_config(walk, folder / "sft", epochs=0, valid_rows=4)
    train_sft(replace(config, model=ModelConfig(path=str(folder / "model"))))
    return folder / "sft" / "policy"


def served_config(
    walk: Path, base: Path, run: Path, server: ThoughtServer, **settings: Any
) -> RLConfig:
    args = THINKS | {"server": server.url} | settings.pop("args", {})
    few = {"group_size": 4, "prompts_per_step": 2, "valid_rows": 4, "steps": 3}
    few |= {"policy": str(base), "sampler": "think", "sampler_args": args} | settings
    return rl_config(walk, run, **few)


def handed(server: ThoughtServer) -> list[str]:
    path = "/update_weights_from_disk"
    return [body["model_path"] for call, body in server.calls if call == path]


def test_a_run_hands_over_its_weights_when_they_are_too_old(
    walk: Path, base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with thought_server() as server:
        train_rl(served_config(walk, base, run, server, args={"max_staleness": 1}))
        assert handed(server) == [str(base), str(run / "served" / "2")]
        asked = sum(path == "/v1/completions" for path, _ in server.calls)
    assert asked == 2 + 3 * 2 * 2  # one prompt is tried before the run begins
    assert [folder.name for folder in (run / "served").iterdir()] == ["2"]
    assert not same(weights(run, "served/2"), weights(base.parent))
    table = pl.read_parquet(run / "rollouts" / "*.parquet")
    by = table.group_by("step").agg(pl.col("weights_step").unique()).sort("step")
    assert by["weights_step"].to_list() == [[0], [0], [2]]
    gaps = [line["thought/server_gap"] for line in metric_lines(run)[1:]]
    assert max(gaps[0], gaps[2]) <= 1e-5 < gaps[1]  # whose weights are a step old
    line = metric_lines(run)[1]
    assert line["actor/ratio_deviation"] == 0
    assert 1 <= line["thought/tokens"] <= 4


def test_a_server_that_goes_away_costs_no_step(walk: Path, base: Path, tmp_path: Path) -> None:
    """The steps before are kept, and the run goes on with what it would have had."""
    run, other = tmp_path / "run", tmp_path / "other"
    with thought_server() as server:
        config = served_config(walk, base, run, server)
        server.faults["/v1/completions"] = lambda answer: (
            "gone" if len(handed(server)) == 3 else answer
        )
        with pytest.raises(RecastError, match=r"/v1/completions gave no JSON \(gone\)"):
            train_rl(config)
        kept = pl.read_parquet(run / "rollouts" / "*.parquet")
        assert kept["step"].unique().sort().to_list() == [1, 2]
        server.faults.clear()
        train_rl(replace(config, resume=True))
        train_rl(replace(config, output=str(other)))
    whole = pl.read_parquet(run / "rollouts" / "*.parquet")
    assert whole.filter(pl.col("step") <= 2).equals(kept)
    assert whole.equals(pl.read_parquet(other / "rollouts" / "*.parquet"))
    assert same(weights(run), weights(other))


def test_what_a_server_does_not_go_with(walk: Path, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with thought_server() as server:
        config = served_config(walk, base, run, server)
        shown = inspect_policy(
            InspectConfig(
                data=config.data,
                policy=str(base),
                sampler="openonerec",
                sampler_args={"max_thought_tokens": 4, "server": server.url},
                group_size=4,
            )
        )
        assert "thought   1, 4 tokens, not closed: " in str(shown)
        server.faults["/update_weights_from_disk"] = lambda answer: {"success": False}
        with pytest.raises(RecastError, match="did not take the weights of"):
            train_rl(config)
    for args, said in (
        ({"max_staleness": 2}, "sampler_args.max_staleness is 2: the policy writes its thoughts"),
        ({"server": 7}, "server is 7: give http://127.0.0.1:PORT"),
    ):
        with pytest.raises(RecastError, match=said):
            train_rl(replace(config, sampler_args=THINKS | args))
    assert not run.exists()
