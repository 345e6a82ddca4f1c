"""trackio beside TensorBoard: the same points, a run that goes on, one that cannot be told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_walk import failure, metric_lines, rl_config

from recast.config import RLConfig
from recast.rl import train_rl
from recast.run.log import RunLog
from recast.types import RecastError


class Project:
    """What trackio's calls were."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.points: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> Project:
        self.runs.append(settings)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.points.append((step, metrics))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Project:
    """In the place of trackio."""
    made = Project()
    stand_in = SimpleNamespace(init=made.init, finish=made.finish, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    return made


def test_a_run_tells_trackio_what_it_tells_the_file(
    walk: Path, tmp_path: Path, project: Project
) -> None:
    train_rl(rl_config(walk, tmp_path / "seeds" / "one", steps=2, trackio="mine"))
    [run] = project.runs
    named = (run["project"], run["name"], run["group"], run["resume"])
    assert named == ("mine", str(tmp_path / "seeds" / "one"), str(tmp_path / "seeds"), "never")
    assert run["config"]["steps"] == 2
    lines = metric_lines(tmp_path / "seeds" / "one")
    for line in lines:
        del line["stage"], line["time_s"]
    assert [{"step": step, **metrics} for step, metrics in project.points] == lines
    assert project.finished == 1


def test_a_run_that_goes_on_is_the_same_run(tmp_path: Path, project: Project) -> None:
    for goes_on in (False, True):
        with RunLog(tmp_path / "run", {}, silent=True, goes_on=goes_on, trackio="mine") as run:
            run.metrics(1, {"actor/kl": 0.5}, stage="rl")
    assert [run["resume"] for run in project.runs] == ["never", "allow"]


def test_what_trackio_refuses_is_said_once_and_ends_nothing(
    tmp_path: Path,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("no such project")

    monkeypatch.setattr(sys.modules["trackio"], "init", refuse)
    with RunLog(tmp_path / "run", {}, trackio="mine") as run:
        for step in (1, 2):
            run.metrics(step, {"actor/kl": 0.5}, stage="rl")
    said = capsys.readouterr().out
    assert said == "warning: trackio: no such project; the run goes on without its trackio\n"
    assert len(metric_lines(tmp_path / "run")) == 2


def test_without_trackio_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    args = ["rl", "--data=d", "--policy=p", "--output=o", "--trackio=mine"]
    line, code = failure(capsys, *args)
    assert line.startswith("trackio is 'mine': it is not installed: pip install \"recast-rl[track")
    assert code == 2


@pytest.mark.usefixtures("project")
def test_a_name_that_trackio_would_change(tmp_path: Path) -> None:
    with pytest.raises(RecastError, match="trackio is 'a b': name a project by letters"):
        RLConfig(data="d", policy="p", output="o", trackio="a b")


REAL = """
import json
from pathlib import Path
from recast.run.log import RunLog

for steps, goes_on in (((0, 1, 2), False), ((3,), True)):
    with RunLog(Path("seeds/one"), {"lr": 0.1}, goes_on=goes_on, trackio="mine") as run:
        for step in steps:
            run.metrics(step, {"actor/kl": step / 4}, stage="rl")
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
[run] = Api().runs("mine")
points = SQLiteStorage.get_logs("mine", run.name)
print(json.dumps([run.name, [[point["step"], point["actor/kl"]] for point in points]]))
"""


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_itself_keeps_the_points(tmp_path: Path) -> None:
    ours = {"TRACKIO_DIR": str(tmp_path / "kept"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", REAL],
        cwd=tmp_path,
        env=os.environ | ours,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()  # nothing else is on the screen
    assert json.loads(line) == ["seeds/one", [[0, 0.0], [1, 0.25], [2, 0.5], [3, 0.75]]]
