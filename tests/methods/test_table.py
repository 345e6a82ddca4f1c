"""Every method from the command line's own entry, on a walk whose best policy is known.

The small walk goes one item on, 3 times in 4, or two: who always says "one on" hits 3 in 4. The
start is half-trained, so that groups do hit. Methods must raise Recall@1 on their prompts; controls
must run and reproduce.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from small_walk import metric_lines, numbers, rl_config, same, weights

from recast.config import LoRAConfig, RLConfig
from recast.data.folder import load_data
from recast.evaluation.metrics import row_metrics
from recast.evaluation.rank import rank_policy
from recast.methods.assembly import resolve
from recast.methods.parts import resources, spell
from recast.methods.table import METHODS
from recast.policy.load import load_policy
from recast.rl import train_rl

CONTROLS = ("nll_on_all_zero", "random_gate", "fixed_mix", "ungated", "sft_continued")
LEARNING = {"steps": 20, "prompts_per_step": 16, "group_size": 8, "lr": 2e-3}
LEARNING |= {"eval_every": 20, "valid_rows": 8}
OWN: dict[str, dict[str, Any]] = {
    "dapo": {"max_rollout_batches": 3},
    "sage": {"group_size": 8, "list_length": 2},
    "rank_grpo": {"group_size": 8, "list_length": 2},
}


def _recall(walk: Path, run: Path) -> float:
    data = load_data(walk / "data")
    trained = load_policy(run / "policy")
    ranks = rank_policy(trained, tiny.task_of(data, trained), data.rows("rl"), 10)
    return float(row_metrics(ranks)["item/hr@1"].mean())


def _settings(name: str, ranker: Path) -> dict[str, Any]:
    method = METHODS[name]
    needs_ranker = "ranker" in resources(method.signal) | resources(method.reward)
    own = OWN.get(name, {}) | ({"ranker": str(ranker)} if needs_ranker else {})
    return {"method": name} | own | ({} if method.samplers else {"group_size": 1})


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CONTROLS])
def test_a_method_raises_recall(walk: Path, one_level: Path, tmp_path: Path, name: str) -> None:
    settings = LEARNING | _settings(name, one_level)
    result = train_rl(rl_config(walk, tmp_path / "run", **settings))
    assert _recall(walk, tmp_path / "run") > 0.03 + _recall(walk, walk / "sft")
    assert result["optimizer_steps"] == LEARNING["steps"]


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bits(
    walk: Path, one_level: Path, tmp_path: Path, name: str
) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    settings = {"steps": 2, "valid_rows": 8} | _settings(name, one_level)
    for run in runs:
        torch.rand(7)  # what ran before has no influence
        train_rl(rl_config(walk, run, **settings))
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(walk / "sft"))
    # The settings that a run writes are enough to run it again.
    used = yaml.safe_load((runs[0] / "config.yaml").read_text())
    method = replace(METHODS[name], samplers=METHODS[name].samplers[:1])
    changes = {"method": name, "output": str(tmp_path / "c"), "lora": LoRAConfig(**used["lora"])}
    config = RLConfig(**(used | changes))
    if method.samplers:
        assert spell(resolve(config).signal) == spell(method.signal)
    lines = [[numbers(line) for line in metric_lines(run)[1:]] for run in runs]
    assert lines[0] == lines[1]
    assert all(line["actor/ratio_deviation"] == 0 for line in lines[0])
