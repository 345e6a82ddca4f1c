"""A list of cells: run once, told apart by settings and inputs, gone on with after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experiment import NAMES, cells_of, refusal, times
from small_walk import MODEL, metric_lines, same, weights

from recast.cell import Cell
from recast.experiment import run_cells
from recast.record import WRITTEN
from recast.run.files import alone_in
from recast.run.log import RunLog
from recast.types import Metrics, RecastError

TESTS = Path(__file__).parent
SKIPPED = "finished before, not run again"


def test_a_finished_list_elsewhere_is_finished(
    finished: tuple[Path, dict[str, Any]],
    moved: Path,
    events: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Moved, and named by a relative path: every cell is skipped and returns what it returned."""
    before = times(moved)
    monkeypatch.chdir(moved.parent)
    assert run_cells("run", cells_of(Path("run"), events)) == finished[1]
    assert capsys.readouterr().out.splitlines() == [f"{name}: {SKIPPED}" for name in NAMES]
    assert times(moved) == before
    assert metric_lines(moved) == metric_lines(finished[0])
    reads = json.loads((moved / "louder" / "cell.json").read_text())["reads"]
    assert {key: read["path"] for key, read in reads.items()} == {
        "data": "data",
        "policy": "sft/policy",
    }


def test_what_it_returned(finished: tuple[Path, dict[str, Any]]) -> None:
    root, returned = finished
    assert list(returned) == NAMES
    assert returned["data"] == returned["items"] == {}
    assert returned["louder"]["optimizer_steps"] == 3
    means = json.loads((root / "judged" / "eval.json").read_text())["metrics"]
    assert returned["judged"]["item/ndcg@10"] == means["item/ndcg@10"]["value"]
    assert json.loads((root / "env.json").read_text())["data_hash"]
    assert {line["stage"] for line in metric_lines(root)} == {"SFT", "Louder, sample rollouts"}
    assert not [file for file in root.rglob("*") if file.name.endswith((".begun", ".partial"))]


def test_what_verbs_write_is_known(finished: tuple[Path, dict[str, Any]]) -> None:
    """So that what an interrupted cell left can be told from a user's files."""
    for name in NAMES:
        assert {entry.name for entry in (finished[0] / name).iterdir()} <= set(WRITTEN)


def test_a_killed_list_goes_on(
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    events: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGKILL in the third step of RL: what was finished stays, the rest equals a run without."""
    root, paused = tmp_path / "run", tmp_path / "paused"
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "small_experiment.py"), str(root), str(events)],
        env=os.environ | {"PAUSE_IN": str(paused), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while not paused.exists():
            assert process.poll() is None, "it ended before the pause"
            time.sleep(0.05)
        other = cells_of(root, events)
        assert refusal(root, other) == (
            f"{root} is in use by another process: wait for it, or choose another output"
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = times(root)
    assert (root / ".louder.begun").exists()
    assert len(metric_lines(root / "louder")) == 3
    returned = run_cells(root, cells_of(root, events))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"{name}: {SKIPPED}" for name in NAMES[:3]]
    assert lines[3] == "louder: was begun but not finished, begins anew"
    after = times(root)
    done = [file for file in before if file.relative_to(root).parts[0] in NAMES[:3]]
    assert {file: after[file] for file in done} == {file: before[file] for file in done}

    def numbers(all_of_them: dict[str, Metrics]) -> list[Metrics]:
        return [{k: v for k, v in m.items() if k != "cpu_s"} for m in all_of_them.values()]

    assert numbers(returned) == numbers(finished[1])
    assert same(weights(root / "louder"), weights(finished[0] / "louder"))
    kept = ("step", "stage", "valid/ndcg@10", "reward/mean")
    ours, theirs = (
        [{k: line.get(k) for k in kept} for line in metric_lines(folder / "louder")]
        for folder in (root, finished[0])
    )
    assert ours == theirs
    steps = [
        [(line["stage"], line["step"]) for line in metric_lines(folder)]
        for folder in (root, finished[0])
    ]
    assert steps[0] == steps[1]
    assert sorted(file.name for file in root.iterdir()) == sorted(
        file.name for file in finished[0].iterdir()
    )


def test_an_interrupted_list_keeps_what_it_has(
    moved: Path, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before RL has a folder leaves no trace of it; a cell that failed may change."""
    shutil.rmtree(moved / "louder")
    shutil.rmtree(moved / "judged")
    before = times(moved)

    def interrupting(*args: object) -> Metrics:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recast.cell.train_rl", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run_cells(moved, cells_of(moved, events))
    assert times(moved) == before
    assert not (moved / ".louder.begun").exists()
    returned = run_cells(moved, cells_of(moved, events, steps=2))
    assert returned["louder"]["optimizer_steps"] == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {}, "reads": {}, "returned": [1]}'])
def test_a_damaged_mark(moved: Path, events: Path, text: str) -> None:
    file = moved / "sft" / "cell.json"
    file.write_text(text)
    line = refusal(moved, cells_of(moved, events))
    assert line.startswith(f"{file} is damaged (")
    assert line.endswith(f": remove {moved}/sft to run its cell again")


def test_files_of_a_user(moved: Path, events: Path) -> None:
    """In a folder that no cell began, or beside what an unfinished one left: never removed."""
    shutil.rmtree(moved / "judged")
    (moved / "judged").mkdir()
    (moved / "judged" / "notes.txt").write_text("mine")
    cells = cells_of(moved, events)
    already = f"{moved}/judged already holds something: remove it or choose another output"
    assert refusal(moved, cells) == already
    (moved / ".judged.begun").touch()
    line = (
        f"{moved}/judged was begun but not finished, and holds notes.txt, which is not the cell's"
    )
    assert refusal(moved, cells).startswith(line)
    assert (moved / "judged" / "notes.txt").read_text() == "mine"
    (moved / "judged" / "notes.txt").unlink()
    (moved / "judged" / "rows.parquet").touch()
    (moved / ".judged.1.partial").mkdir()
    run_cells(moved, cells)
    assert not list(moved.glob(".judged.*"))
    shutil.rmtree(moved)
    moved.mkdir()
    (moved / "notes.txt").write_text("mine")
    assert refusal(moved, cells).startswith(f"{moved} already holds something")
    assert [file.name for file in moved.iterdir()] == ["notes.txt"]


@dataclass(frozen=True)
class Count:
    output: Path
    step: int = 1


def count(config: Count, log: RunLog) -> Metrics:
    log.say("counting")
    return {"count": float(config.step), "threads": float(torch.get_num_threads())}


def test_functions_share_a_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "run"

    def cell(name: str, stage: str, step: int = 1) -> Cell:
        config = Count(output=root / name, step=step)
        return Cell(name=name, config=config, run=count, stage=stage, unit="counts", estimate_s=2)

    cells = [cell("a", "all"), cell("b", "all"), cell("c", "last", step=3)]
    assert [metrics["count"] for metrics in run_cells(root, cells[:1]).values()] == [1]
    capsys.readouterr()
    assert [metrics["count"] for metrics in run_cells(root, cells).values()] == [1, 1, 3]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "Plan: about 4 s in all",
        "  all        2 s",
        "  last       2 s",
        "all: about 2 s",
        f"a: {SKIPPED}",
        "counting",
        "all: done in 0 s",
        "last: about 2 s",
        "counting",
        "last: done in 0 s",
    ]
    with pytest.raises(RecastError, match="c is finished with step 3; this list has step 4: "):
        run_cells(root, [cell("c", "last", step=4)])


def test_threads_are_measured_once(
    moved: Path, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first RL cell, an earlier process' too; what later cells leave open is that."""
    file = moved / "louder" / "cell.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"threads": 2}))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    shutil.rmtree(moved / "judged")
    before = torch.get_num_threads()
    try:
        run_cells(moved, cells_of(moved, events))
    finally:
        torch.set_num_threads(before)
    assert json.loads((moved / "judged" / "eval.json").read_text())["threads"] == 2


def test_the_example_of_the_docs(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (TESTS.parent / "docs" / "experiment.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    shutil.copy(walk / "events.csv", tmp_path)
    # The walk's model: the default one would take half a minute.
    code = code.replace("epochs=5", "epochs=1, model=MODEL").replace("steps=20", "steps=1")
    exec(compile(code, "docs", "exec"), {"MODEL": MODEL})
    first = capsys.readouterr().out.splitlines()
    exec(compile(code, "docs", "exec"), {"MODEL": MODEL})
    names = ["data", "items", "sft", "kl_coef 0.0", "kl_coef 0.01"]
    again = capsys.readouterr().out.splitlines()
    assert again == [f"{name}: {SKIPPED}" for name in names] + first[-5:]


def test_one_process_at_a_time(moved: Path, events: Path) -> None:
    with alone_in(moved):
        line = refusal(moved, cells_of(moved, events))
    assert line == f"{moved} is in use by another process: wait for it, or choose another output"
    run_cells(moved, cells_of(moved, events))


@pytest.mark.skipif(os.environ.get("RECAST_TORTURE") != "1", reason="workers take seconds to start")
def test_cells_of_a_stage_run_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both wait for the other; what they say stands in files of their own."""
    cells = [
        Cell(name=name, config=Meeting(output=str(tmp_path / "run" / name)), run=meet, stage="all")
        for name in ("a", "b")
    ]
    found = run_cells(tmp_path / "run", cells, workers=2)
    assert found == {"a": {"met": 1.0}, "b": {"met": 1.0}}
    assert [(tmp_path / "run" / "screens" / f"{n}.txt").read_text() for n in "ab"] == ["I\n"] * 2
    capsys.readouterr()
    assert run_cells(tmp_path / "run", cells, workers=2) == found
    assert capsys.readouterr().out.splitlines() == [f"{name}: {SKIPPED}" for name in "ab"]


@dataclass(frozen=True)
class Meeting:
    output: str


def meet(config: Meeting, log: RunLog | None) -> Metrics:
    """Waits until there are two."""
    print("I")
    own = Path(config.output)
    (own.parent / f"{own.name}.here").touch()
    until = time.monotonic() + 60
    while len(list(own.parent.glob("*.here"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    own.mkdir()
    return {"met": float(time.monotonic() < until)}
