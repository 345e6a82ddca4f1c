"""Policies of a run's steps: what is kept of them, and that a run that failed keeps the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from small_walk import metric_lines, numbers, rl_config, same, weights

from recast.config import RLConfig
from recast.data.folder import load_data
from recast.evaluation.facts import training_of
from recast.evaluation.free import free_metrics
from recast.evaluation.rank import sample_rows
from recast.methods.table import METHODS
from recast.policy.load import load_policy
from recast.rl import train_rl
from recast.run.files import UnwritableError
from recast.train import steps
from recast.types import RecastError, RolloutGroups, Signal

FAILS_AT: list[int] = []


def failing(groups: RolloutGroups, rewards: torch.Tensor, *, w: float = 1.0) -> Signal:
    """ReCast, until a step."""
    if groups.step in FAILS_AT:
        raise RuntimeError("a bug of the user's")
    return METHODS["recast"].signal(groups, rewards)


def train(walk: Path, run: Path, **changes: Any) -> list[dict[str, Any]]:
    """The reference moves halfway at every step: a run that goes on needs it, too."""
    settings = {"steps": 3, "save_every": 2, "valid_rows": 40, "eval_every": 3, "kl_coef": 0.1}
    settings |= {"ref_every": 1, "ref_mix": 0.5, "warmup_steps": 0, "lr": 1e-3}
    config = rl_config(walk, run, **settings, **changes)
    train_rl(config, method=replace(METHODS["recast"], signal=failing))
    return [numbers(line) for line in metric_lines(run)]


def test_policies_of_the_steps(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind steps 2 and 3, the last; their numbers are those of the folders, shown in a table. A
    run that failed behind the first of them keeps the same."""
    alone = tmp_path / "alone"
    lines = train(walk, alone)
    shown = capsys.readouterr().out
    assert sorted(folder.name for folder in (alone / "steps").iterdir()) == ["2", "3"]
    assert same(weights(alone), weights(alone, "steps/3"))
    assert not same(weights(alone), weights(alone, "steps/2"))
    data = load_data(walk / "data")
    rows = sample_rows(data.rows("valid"), 40)
    for step, folder in ((0, walk / "sft" / "policy"), (2, alone / "steps" / "2")):
        policy = load_policy(folder)
        free = free_metrics(policy, tiny.task_of(data, policy), rows, at=[10])
        assert list(free) == ["free_hr@10", "invalid_frac", "malformed_frac"]
        assert {name: lines[step][f"valid/{name}"] for name in free} == free
    assert "valid/invalid_frac" not in lines[1]
    table = steps.steps_table(alone)
    assert table in shown
    head, *body = (row.split() for row in table.splitlines())
    assert head == ["step", "NDCG@10", "free", "HR@10", "invalid", "malformed"]
    assert [row[:2] for row in body] == [
        [str(step), f"{lines[step]['valid/ndcg@10']:.4f}" if step != 2 else "-"]
        for step in (0, 2, 3)
    ]
    assert body[1][2] == f"{lines[2]['valid/free_hr@10']:.4f}"
    assert training_of(alone / "steps" / "2", walk / "data") == (("train", "rl"), 0)
    FAILS_AT.append(2)
    with pytest.raises(RecastError, match="a bug of the user's"):
        train(walk, tmp_path / "run")
    FAILS_AT.clear()
    assert train(walk, tmp_path / "run", resume=True) == lines
    for folder in ("steps/2", "steps/3", "policy"):
        assert same(weights(alone, folder), weights(tmp_path / "run", folder))


def test_a_step_that_cannot_be_written(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is said, and the run goes on; what an earlier try left there is replaced."""

    def full(*_: object, **__: object) -> None:
        raise UnwritableError("disk full: free some space")

    policy = load_policy(walk / "sft" / "policy")
    assert steps.save_step(policy, tmp_path, 20, merge=True) == ""
    assert steps.save_step(policy, tmp_path, 20, merge=True) == ""
    assert same(weights(walk / "sft"), weights(tmp_path, "steps/20"))
    monkeypatch.setattr(steps, "save_policy", full)
    said = steps.save_step(policy, tmp_path, 20, merge=True)
    assert said.startswith(f"warning: {tmp_path / 'steps' / '20'} is missing (disk full")


def test_more_steps_between_them_than_there_are() -> None:
    with pytest.raises(RecastError, match="save_every is 151: the run has 150 steps, give that"):
        RLConfig(data="d", policy="p", output="o", save_every=151)
