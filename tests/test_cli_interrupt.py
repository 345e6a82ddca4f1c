"""Ctrl-C in the middle of a run: one line, exit code 130, nothing half-written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from small_walk import failure, metric_lines, rl_args, same, sft_args, weights
from torch import Tensor

from recast import cli, sft
from recast.methods.table import METHODS
from recast.types import Metrics, RolloutGroups, Signal


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Also where the caller ignores Ctrl-C, as `nohup make test &` does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupted_rl_run(
    walk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its third step: two steps of metrics and rollouts are on disk, no policy."""
    method = METHODS["recast"]

    def interrupting(groups: RolloutGroups, rewards: Tensor) -> Signal:
        if groups.step == 2:
            interrupt()
        return method.signal(groups, rewards)

    monkeypatch.setitem(METHODS, "recast", replace(method, signal=interrupting))
    run = tmp_path / "run"
    assert failure(capsys, *map(str, rl_args(walk, run))) == ("interrupted", 130)
    assert [line["step"] for line in metric_lines(run)] == [0, 1, 2]
    (file,) = (run / "rollouts").iterdir()
    assert file.name == "step-000002.parquet"
    assert pl.read_parquet(file)["step"].to_list() == [1] * 16 + [2] * 16
    assert not (run / "policy").exists()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_interrupted_sft_run(
    walk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
) -> None:
    """What its batches did is kept, and goes on as if nothing had happened, dropout too."""
    calls: list[Metrics] = []
    validate = sft.validate

    def interrupting(*args: object) -> Metrics:
        if len(calls) == epoch:
            interrupt()
        calls.append(validate(*args))  # type: ignore[arg-type]
        return calls[-1]

    monkeypatch.setattr(sft, "validate", interrupting)
    run = tmp_path / "run"
    args = [*map(str, sft_args(walk, run, "--ema=0.9", "--layer_dropout=0.2"))]
    assert failure(capsys, *args) == ("interrupted", 130)
    assert len(metric_lines(run)) == epoch
    assert [folder.name[:5] for folder in (run / "checkpoints").iterdir()] == ["step-"]
    assert not (run / "policy").exists()
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    torch.rand(7)  # whatever the process has drawn since
    cli.main([*args, "--resume"])
    cli.main([*map(str, sft_args(walk, tmp_path / "alone", "--ema=0.9", "--layer_dropout=0.2"))])
    assert same(weights(run), weights(tmp_path / "alone"))
