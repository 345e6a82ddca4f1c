"""Post-training with thoughts, from a base model to a run folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import small_chat
import torch
from small_walk import metric_lines, rl_config, sft_config

from recast.config import InspectConfig, ModelConfig
from recast.report.inspection import inspect_policy
from recast.rl import train_rl
from recast.sft import train_sft
from recast.types import RecastError

THINKS = {"thoughts": 2, "max_thought_tokens": 4}


@pytest.fixture(scope="module")
def base(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows the names of the items and nothing of them."""
    folder = tmp_path_factory.mktemp("thoughts")
    small_chat.save_model(folder / "model")
    config = sft_config(walk, folder / "sft", epochs=0, valid_rows=4)
    train_sft(replace(config, model=ModelConfig(path=str(folder / "model"))))
    return folder / "sft" / "policy"


def test_a_run_with_thoughts(walk: Path, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"policy": str(base), "group_size": 4, "prompts_per_step": 2, "valid_rows": 4}
    config = rl_config(walk, run, sampler="think", sampler_args=THINKS, **settings, steps=2)
    train_rl(config)
    line = metric_lines(run)[1]
    assert 1 <= line["thought/tokens"] <= 4
    assert line["thought/closed_frac"] == line["thought/format_frac"] == 0
    assert 4 < line["thought/entropy"] < 7  # of 300 tokens about as likely as each other: 5.7
    assert line["actor/ratio_deviation"] == 0
    table = pl.read_parquet(run / "rollouts" / "*.parquet").filter(pl.col("step") == 1)
    assert table["thought"].to_list() == [0, 0, 1, 1] * 2
    tokens = table["thought_tokens"].to_list()
    assert tokens[0] == tokens[1] != tokens[2] == tokens[3]
    lengths = torch.tensor([len(row) for row in tokens], dtype=torch.float64)
    assert float(lengths.mean()) == line["thought/tokens"]
    shown = inspect_policy(
        InspectConfig(
            data=config.data, policy=str(base), sampler="think", sampler_args=THINKS, group_size=4
        )
    )
    assert "thought   1, 4 tokens, not closed: " in str(shown)


def test_what_has_no_thoughts(walk: Path, base: Path, tmp_path: Path) -> None:
    """Is refused before there is a folder."""
    for changes, said in (
        ({"sampler_args": {"max_thought_tokens": 640}}, "max_thought_tokens is 640: behind"),
        ({"nll_coef": 0.1}, "nll_coef is 0.1: behind the thoughts of sampler think a target"),
        ({"method": "vstar"}, "sampler is 'think', which cannot serve method 'vstar': "),
        ({"policy": str(walk / "sft" / "policy")}, "the policy has no tokenizer"),
    ):
        settings = {"policy": str(base), "sampler": "think", "sampler_args": THINKS} | changes
        with pytest.raises(RecastError, match=said):
            train_rl(rl_config(walk, tmp_path / "run", **settings))
        assert not (tmp_path / "run").exists()
