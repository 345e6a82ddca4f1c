"""A run folder of commit b5e33a4 stays readable: data, catalogue, policy and evaluation.

`tests/run_of_b5e33a4` was written by that commit's `recast prepare`, `tokenize` (codebook_size 8),
`sft`, `rl` (2 steps) and `evaluate`, on 24 users with 10 events each of a ring of 24 items.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from recast import EvaluateConfig, RLConfig, evaluate_policy, train_rl
from recast.evaluation.disk import read_ranks
from recast.evaluation.metrics import row_metrics

RUN = Path(__file__).with_name("run_of_b5e33a4")


def test_its_numbers_come_again(tmp_path: Path) -> None:
    policy = str(RUN / "rl" / "policy")
    config = EvaluateConfig(
        data=str(RUN / "data"),
        policy=policy,
        output=str(tmp_path / "eval"),
        at=[1, 5, 10, 32],  # the cuts of that commit
        threads=1,
    )
    evaluate_policy(config)
    then, now = (read_ranks(folder) for folder in (RUN / "eval", tmp_path / "eval"))
    assert then.sid_rank.tolist() == now.sid_rank.tolist()
    means = json.loads((RUN / "eval" / "eval.json").read_text())["metrics"]
    again = json.loads((tmp_path / "eval" / "eval.json").read_text())["metrics"]
    assert {name: again[name]["value"] for name in means} == {
        name: of["value"] for name, of in means.items()
    }
    hits = row_metrics(then, [10], ["item"], ["hr"])["item/hr@10"]
    assert float(hits.mean()) == means["item/hr@10"]["value"] == 16 / 24


def test_its_policy_can_be_trained(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    config = RLConfig(
        data=str(tmp_path / "run" / "data"),
        policy=str(tmp_path / "run" / "rl" / "policy"),
        output=str(tmp_path / "rl"),
        steps=1,
        prompts_per_step=4,
        group_size=4,
        threads=1,
    )
    assert train_rl(config)["optimizer_steps"] == 1
