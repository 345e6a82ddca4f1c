"""Post-training with thoughts, from a base model to a run folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_chat
import torch
from small_walk import metric_lines, rl_config, sft_config

from recast import rollout
from recast.config import EvaluateConfig, InspectConfig, ModelConfig, ThinkConfig
from recast.config.think import SelectK
from recast.evaluation.evaluate import evaluate_policy
from recast.policy.load import load_policy
from recast.policy.tasks import load_task
from recast.report.evaluation import describe
from recast.report.inspection import inspect_policy
from recast.rl import train_rl
from recast.sft import train_sft
from recast.types import Draw, RecastError

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
    assert metric_lines(run)[0]["valid/thought_tokens"] == 4
    table = pl.read_parquet(run / "rollouts" / "*.parquet").filter(pl.col("step") == 1)
    assert table["thought"].to_list() == [0, 0, 1, 1] * 2
    tokens = table["thought_tokens"].to_list()
    assert tokens[0] == tokens[1] != tokens[2] == tokens[3]
    lengths = torch.tensor([len(row) for row in tokens], dtype=torch.float64)
    assert float(lengths.mean()) == line["thought/tokens"]
    shown = inspect_policy(
        InspectConfig(
            data=config.data,
            policy=str(base),
            sampler="think",
            sampler_args=THINKS,
            group_size=4,
            reward="format",
        )
    )
    assert "thought   1, 4 tokens, not closed: " in str(shown)


def test_what_has_no_thoughts(walk: Path, base: Path, tmp_path: Path) -> None:
    """Is refused before there is a folder."""
    for changes, said in (
        ({"sampler_args": {"max_thought_tokens": 640}}, "max_thought_tokens is 640: behind"),
        ({"nll_coef": 0.1}, "nll_coef is 0.1: behind the thoughts of sampler think a target"),
        (
            {"sampler": None, "sampler_args": {}, "reward": "format"},
            "reward is 'format': it is of thoughts, and sampler sample writes none",
        ),
        ({"method": "vstar"}, "sampler is 'think', which cannot serve method 'vstar': "),
        ({"policy": str(walk / "sft" / "policy")}, "the policy has no tokenizer"),
    ):
        settings = {"policy": str(base), "sampler": "think", "sampler_args": THINKS} | changes
        with pytest.raises(RecastError, match=said):
            train_rl(rl_config(walk, tmp_path / "run", **settings))
        assert not (tmp_path / "run").exists()


def judge(walk: Path, policy: Path, output: Path, **changes: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {"beam_width": 8, "at": [1, 8], "invalid_rows": 4, "threads": 1}
    settings |= {"split": "valid", "data": str(walk / "data"), "policy": str(policy)}
    return EvaluateConfig(**settings | changes, output=str(output))


@pytest.mark.parametrize("select_k", ["first_k", "top_k_by_logprobs"])
def test_an_evaluation_behind_thoughts(
    walk: Path, base: Path, tmp_path: Path, select_k: SelectK
) -> None:
    """Is that of lists put together by hand, whatever batches the rows come in."""
    think = ThinkConfig(**THINKS, select_k=select_k)
    config = judge(walk, base, tmp_path / "eval", think=think)
    means = evaluate_policy(config)
    policy = load_policy(base)
    task = load_task(config.data, policy)
    rows = task.rows("valid")
    settings = {"temperature": 0.6, "top_p": 0.95, "top_k": 50, "closes": True}
    hits, lengths, closed, repeated = [], [], [], 0
    for row in rows.split(7):
        prompts = task.prompts(row)
        groups = rollout.think(policy, prompts, 8, Draw(), **THINKS, **settings)
        assert groups.thoughts
        lengths += groups.thoughts.num_written.flatten().tolist()
        closed += groups.thoughts.is_closed.flatten().tolist()
        scores = groups.rollout_logprobs.sum(-1).tolist()
        for target, items, each in zip(
            prompts.target_items[:, 0].tolist(), groups.items.tolist(), scores, strict=True
        ):
            order = list(range(8))
            if select_k == "top_k_by_logprobs":
                order.sort(key=lambda place: -each[place])
            listed = [items[place] for place in order]
            repeated += len(set(listed)) < 8
            hits.append([target in listed[:1], target in listed])
    assert repeated > 0
    found = torch.tensor(hits).double().mean(0).tolist()
    assert [means["item/hr@1"], means["item/hr@8"]] == pytest.approx(found)
    assert found[1] > 0
    told = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert told["thoughts"]["thought/tokens"] == pytest.approx(sum(lengths) / len(lengths))
    share = sum(closed) / len(closed)
    assert told["thoughts"]["thought/closed_frac"] == means["thought/closed_frac"] == share > 0
    assert (told["facts"]["thoughts"], told["facts"]["beam_width"], told["exact"]) == (2, 8, None)
    assert told["think"]["select_k"] == select_k
    assert f"thought/closed_frac  {share}" in describe(tmp_path / "eval")


def test_an_evaluation_that_has_no_thoughts(walk: Path, base: Path, tmp_path: Path) -> None:
    sids = str(walk / "sft" / "policy")
    for think, changes, said in (
        ({"thoughts": 3}, {}, "think.thoughts is 3: each gets as many beams, .* beam_width 8"),
        ({"top_k": 10}, {}, "think.top_k is 10: it belongs to think.thoughts"),
        ({"thoughts": 2, "top_p": 0.0}, {}, "think.top_p is 0.0: give a number above 0"),
        (THINKS, {"exact_rows": 1}, "exact_rows is 1: the whole catalogue is scored"),
        (THINKS, {"decoder": "d3", "guide": "item_knn"}, "decoder is 'd3': a guide ranks without"),
        ({"thoughts": 2}, {}, "max_thought_tokens is 1000: behind a prompt of"),
        (THINKS, {"policy": sids}, "policy has no tokenizer"),
    ):
        settings = {"policy": base} | changes
        with pytest.raises(RecastError, match=said):
            evaluate_policy(
                judge(walk, output=tmp_path / "eval", think=ThinkConfig(**think), **settings)
            )
        assert not (tmp_path / "eval").exists()
