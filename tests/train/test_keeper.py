"""Runs that go on, and those that do not; that they end alike is tests/test_resume.py."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_walk import metric_lines, numbers, rl_config, same, weights

from recast.methods.table import METHODS, Method
from recast.rl import train_rl
from recast.run.checkpoint import read_checkpoints
from recast.run.files import CHECKPOINTS, alone_in
from recast.run.fingerprint import sha256_of
from recast.run.log import RunLog
from recast.train import keeper, resumed
from recast.types import RecastError, RolloutGroups, Signal

FAILS_AT: list[int] = []


def failing(groups: RolloutGroups, rewards: torch.Tensor, *, w: float = 1.0) -> Signal:
    """ReCast, until a step."""
    if groups.step in FAILS_AT:
        raise RuntimeError("a bug of the user's")
    return METHODS["recast"].signal(groups, rewards)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the state after every change, however long that takes."""
    monkeypatch.setattr(keeper, "_MOST", math.inf)
    FAILS_AT.clear()
    yield
    FAILS_AT.clear()


FAILING = replace(METHODS["recast"], signal=failing)


def train(walk: Path, run: Path, method: Method | None = FAILING, **changes: Any) -> None:
    used = {"checkpoint_s": 0.0, "steps": 4} | changes
    train_rl(rl_config(walk, run, **used), method=method)


@pytest.fixture(scope="module")
def ended(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that failed in its third step."""
    run = tmp_path_factory.mktemp("ended") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "_MOST", math.inf)
        FAILS_AT.append(2)
        with pytest.raises(RecastError, match="a bug of the user's"):
            train(walk, run)
    return run


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    shutil.copytree(ended, tmp_path / "run")
    return tmp_path / "run"


def test_goes_on(walk: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest two are kept; in the end none is, and the run equals one that never failed."""
    kept = sorted(folder.name for folder in (run / CHECKPOINTS).iterdir())
    assert kept == ["step-000000002", "step-000000003"]  # the first validation is a change, too
    left = run / "rollouts" / ".step-000007.parquet.0f1e2d3c.partial"
    left.parent.mkdir(exist_ok=True)
    left.touch()  # a process was killed while it wrote, and no file is called so again
    train(walk, run, resume=True)
    assert not left.exists()
    assert "goes on behind optimizer step 2\n" in capsys.readouterr().out
    assert not (run / CHECKPOINTS).exists()
    alone = tmp_path / "alone"
    train(walk, alone)
    assert same(weights(run), weights(alone))
    ours, theirs = ([numbers(line) for line in metric_lines(folder)] for folder in (run, alone))
    assert ours == theirs
    with pytest.raises(RecastError, match="holds a finished run: "):
        train(walk, run, resume=True)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 1}, "seed is 1, the run was begun with 0: "),
        ({"method": None}, "signal is .*, the run was begun with "),
        ({"steps": 5}, "steps is 5, the run was begun with 4: "),
        ({"signal_args": {"w": 2.0}}, r"signal_args.w is 2.0, the run was begun with 1.0: "),
        ({"lr": 1e-3}, "lr is 0.001, the run was begun with "),
    ],
)
def test_other_settings(walk: Path, run: Path, changes: dict[str, Any], line: str) -> None:
    before = sorted(run.rglob("*"))
    with pytest.raises(RecastError, match=line):
        train(walk, run, resume=True, **changes)
    assert sorted(run.rglob("*")) == before


def test_other_data(walk: Path, run: Path, tmp_path: Path) -> None:
    """The same data elsewhere will do, other weights will not."""
    policy = shutil.copytree(walk / "sft" / "policy", tmp_path / "policy")
    file = policy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RecastError, match="policy holds other files than when the run began: "):
        train(walk, run, resume=True, policy=str(policy))
    shutil.copytree(walk / "data", tmp_path / "data")
    train(walk, run, resume=True, data=str(tmp_path / "data"))


def test_another_version(walk: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "version", lambda _: "0.0.1")
    with pytest.raises(RecastError, match=r"the run was begun by recast .*, this is 0.0.1: "):
        train(walk, run, resume=True)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_checkpoint(run: Path, file: str, damage: str) -> None:
    """Is named and skipped."""
    newest = run / CHECKPOINTS / "step-000000003" / file
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content) if damage == "flipped" else newest.unlink()
    found = resumed.find_checkpoint(str(run), True)
    assert found
    assert found.checkpoint
    assert found.checkpoint.step == 2
    (line,) = found.skipped
    assert line.startswith(f"{newest.parent} is damaged (")
    assert line.endswith(": it is skipped")


def test_no_whole_checkpoint(run: Path) -> None:
    for file in (run / CHECKPOINTS).rglob("state.json"):
        file.write_text("{}")
    assert len(list(read_checkpoints(run))) == 2
    with pytest.raises(
        RecastError, match=r"holds no whole checkpoint .*: remove it and start anew"
    ):
        resumed.find_checkpoint(str(run), True)


def test_before_the_first_one(walk: Path, run: Path, tmp_path: Path) -> None:
    """It begins anew in its folder."""
    for folder in (run / CHECKPOINTS).iterdir():
        shutil.rmtree(folder)
    train(walk, run, resume=True)
    assert [line["step"] for line in metric_lines(run)] == [0, 1, 2, 3, 4]


def test_folders_that_cannot_go_on(run: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    with pytest.raises(RecastError, match=f"{nothing} holds no run that was ended: start without"):
        resumed.find_checkpoint(str(nothing), True)
    with pytest.raises(RecastError, match=f"{run} holds a run that was ended: go on with --resume"):
        resumed.find_checkpoint(str(run), False)
    for resume in (False, True):
        with alone_in(run), pytest.raises(RecastError, match=f"{run} is in use by another process"):
            resumed.find_checkpoint(str(run), resume)


def test_a_signal_that_was_mended(
    walk: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goes on, and says so."""
    for state in (run / CHECKPOINTS).rglob("state.json"):
        facts = json.loads(state.read_text())
        facts["parts"]["signal"]["code"] = "another"
        state.write_text(json.dumps(facts))
        manifest = state.with_name("manifest.json")
        sums = json.loads(manifest.read_text()) | {"state.json": sha256_of(state)}
        manifest.write_text(json.dumps(sums))
    train(walk, run, resume=True)
    said = capsys.readouterr().out
    assert "warning: the code of signal is another than when the run began\n" in said


def test_killed_before_anything_is_kept(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its folder is made: the run that goes on begins anew there."""
    run = tmp_path / "run"
    monkeypatch.setattr(keeper, "RunLog", Killed)
    with pytest.raises(SystemExit):
        train(walk, run)
    monkeypatch.undo()
    assert [entry.name for entry in run.iterdir()] == [CHECKPOINTS]
    train(walk, run, resume=True)
    assert json.loads((run / "env.json").read_text())["data_hash"]
    assert [line["step"] for line in metric_lines(run)] == [0, 1, 2, 3, 4]


class Killed(RunLog):
    """Where nothing is cleaned up any more."""

    def __enter__(self) -> RunLog:
        raise SystemExit


def test_checkpoints_vanish_at_once(walk: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while they are removed is a finished one."""
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    train(walk, run, resume=True)
    assert (run / "policy").is_dir()
    with pytest.raises(RecastError, match="holds a finished run: "):
        resumed.find_checkpoint(str(run), True)


@pytest.mark.parametrize("file", ["last.ckpt", "step-x/weights"])
def test_a_folder_of_somebody_else(tmp_path: Path, file: str) -> None:
    """Is no run, though it has one called `checkpoints`."""
    other = tmp_path / CHECKPOINTS / file
    other.parent.mkdir(parents=True)
    other.write_text("theirs")
    (tmp_path / "notes.txt").write_text("theirs")
    with pytest.raises(RecastError, match="holds no run that was ended: "):
        resumed.find_checkpoint(str(tmp_path), True)
    with pytest.raises(RecastError, match="already holds something: "):
        resumed.find_checkpoint(str(tmp_path), False)


def test_an_edited_state(run: Path) -> None:
    """With a manifest that was mended, too."""
    state = run / CHECKPOINTS / "step-000000003" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"position": None}))
    manifest = state.with_name("manifest.json")
    sums = json.loads(manifest.read_text()) | {"state.json": sha256_of(state)}
    manifest.write_text(json.dumps(sums))
    found = resumed.find_checkpoint(str(run), True)
    assert found
    assert found.checkpoint
    assert found.checkpoint.step == 2
    assert found.skipped == [f"step 3 in {run / CHECKPOINTS} was edited: it is skipped"]
