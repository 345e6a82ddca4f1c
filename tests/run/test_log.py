"""The run folder and what a run says."""

from __future__ import annotations

import json
import math
import re
import resource
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recast.groups import reorder
from recast.run.log import RunLog
from recast.run.rollouts import rollout_table
from recast.run.stage import SHOWN, duration, shown
from recast.testing import make_groups
from recast.types import RecastError, RolloutGroups, Signal

CONFIG = {"output": "run", "seed": 3, "model": {"num_layers": 2}, "text": ["a"], "lr": None}


def groups_and_signal() -> tuple[RolloutGroups, torch.Tensor, Signal]:
    """Two prompts, two rollouts of two tokens; the last place of row 9 is repaired."""
    groups = make_groups(
        [[[4, 8], [4, 9]], [[6, 8], [0, 0]]],
        [[[4, 8]], [[5, 9]]],
        items=[[0, 1], [4, -1]],
        target_items=[[0], [3]],
        logprobs=[[[-1.0, -0.5], [-2.0, -0.5]], [[-1.0, -1.0], [-9.0, -9.0]]],
        exists=[[True, True], [True, False]],
    )
    prompts = replace(groups.prompts, row_ids=torch.tensor([7, 9]))
    groups = replace(groups, prompts=prompts, step=5)
    tokens = groups.tokens.clone()
    tokens[1, 1] = torch.tensor([5, 9])
    signal = Signal(
        groups=replace(groups, tokens=tokens, loss_mask=torch.ones(2, 2, 2, dtype=torch.bool)),
        advantages=torch.tensor([[[1.0], [-1.0]], [[-1.0], [1.0]]]),
        keep=torch.tensor([[True, True], [True, True]]),
        nll_weight=torch.zeros(2),
        metrics={},
    )
    return groups, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), signal


def test_the_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with RunLog(folder, CONFIG, silent=True) as run:
        run.environment("abc")
        run.metrics(0, {"valid/ndcg@10": 0.05}, stage="rl")
        run.metrics(1, {"actor/kl": 0.25, "group/all_zero_frac": 0.5}, stage="rl")
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG
    env = json.loads((folder / "env.json").read_text())
    assert env["data_hash"] == "abc"
    assert env["torch_threads"] == torch.get_num_threads()
    # Wheels of some builds carry their label in the module alone.
    found, wanted = (v.partition("+")[0] for v in (env["versions"]["torch"], torch.__version__))
    assert found == wanted
    assert {"recast-rl", "polars", "faiss-cpu"} <= set(env["versions"])
    assert "pytest" not in env["versions"]
    assert re.match(r"\d{4}-\d\d-\d\dT.*\+00:00", env["date"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line.pop("time_s") >= 0 for line in lines] == [True, True]
    assert lines == [
        {"step": 0, "stage": "rl", "valid/ndcg@10": 0.05},
        {"step": 1, "stage": "rl", "actor/kl": 0.25, "group/all_zero_frac": 0.5},
    ]


def test_tensorboard_reads_the_scalars(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", CONFIG, silent=True) as run:
        for step in (1, 2, 3):
            run.metrics(step, {"actor/kl": step / 4}, stage="rl")
    events = EventAccumulator(str(tmp_path / "run" / "tb"))
    events.Reload()
    assert events.Tags()["scalars"] == ["actor/kl"]
    assert [(e.step, e.value) for e in events.Scalars("actor/kl")] == [
        (1, 0.25),
        (2, 0.5),
        (3, 0.75),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", CONFIG, silent=True) as run:
        run.metrics(6, {"actor/kl": 0.1}, stage="rl")
        line = f"actor/grad_norm is {value} at step 7 of rl: the run has diverged, start it again"
        with pytest.raises(RecastError, match=line):
            run.metrics(7, {"actor/kl": 0.1, "actor/grad_norm": value}, stage="rl")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("x")
    with pytest.raises(RecastError, match=r"already holds something: remove it or choose another"):
        RunLog(tmp_path, CONFIG)


def test_a_run_that_fails_before_its_first_metric_leaves_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(RecastError, match="no row"),
        RunLog(tmp_path / "run", CONFIG, silent=True),
    ):
        raise RecastError("no row")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_later_keeps_what_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    groups, rewards, signal = groups_and_signal()

    def fail_late() -> None:
        with RunLog(folder, CONFIG, silent=True) as run:
            run.metrics(1, {"actor/kl": 0.1}, stage="rl")
            run.rollouts(1, groups, rewards, signal, groups)
            raise RecastError("late")

    with pytest.raises(RecastError, match="late"):
        fail_late()
    assert (folder / "metrics.jsonl").read_text().count("\n") == 1
    assert (folder / "rollouts" / "step-000001.parquet").is_file()


def test_a_run_that_fails_keeps_what_a_stage_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def fail_after_a_stage() -> None:
        with RunLog(folder, CONFIG, silent=True):
            (folder / "policy").mkdir()
            raise RecastError("late")

    with pytest.raises(RecastError, match="late"):
        fail_after_a_stage()
    assert (folder / "policy").is_dir()


def test_a_run_that_goes_on_keeps_what_is_there(tmp_path: Path) -> None:
    """Its settings are the new ones, its metrics follow, and no error removes the folder."""
    with RunLog(tmp_path, {"seed": 1}, silent=True) as log:
        log.environment("abc")
        log.metrics(1, {"sft/loss": 2.0}, "SFT")
    environment = (tmp_path / "env.json").read_text()
    with RunLog(tmp_path, {"seed": 2}, silent=True, goes_on=True) as log:
        log.metrics(2, {"sft/loss": 1.0}, "SFT")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"seed": 2}
    assert (tmp_path / "env.json").read_text() == environment
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, {}, silent=True, goes_on=True):
        raise KeyboardInterrupt
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with (
        pytest.raises(RecastError, match=r"cannot be written \(Is a directory\): choose another"),
        RunLog(tmp_path, {}, silent=True, goes_on=True),
    ):
        pass
    assert (tmp_path / "env.json").read_text() == environment


@pytest.mark.parametrize(("every_s", "num_lines"), [(0.0, 4), (1e9, 1)])
def test_plain_lines_without_a_terminal(
    every_s: float,
    num_lines: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recast.run.stage.LINE_EVERY_S", every_s)
    with RunLog(tmp_path / "run", CONFIG) as run:
        run.plan([("data", 30), ("rl", 240)])
        with run.stage("rl", total=4, estimate_s=240) as stage:
            for step in range(4):
                valid = {"valid/ndcg@10": 0.0481} if step == 3 else {}
                stage.advance({"actor/kl": 0.01, "group/all_zero_frac": 0.85, **valid})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    steps = [f"rl {step}/4, T  all-zero 0.85  KL 0.01" for step in (1, 2, 3)]
    steps.append("rl 4/4, T  all-zero 0.85  NDCG@10 0.0481  KL 0.01")
    assert re.sub(r"\d+ s left|in \d+ s", "T", out).splitlines() == [
        "Plan: about 4.5 min in all",
        "  data      30 s",
        "  rl     4.0 min",
        "rl: about 4.0 min",
        "hint: 85% of the groups hold no hit, so their rollouts alone teach nothing: "
        "repair them (method recast), raise group_size or train SFT longer",
        *steps[-num_lines:],
        "rl: done T",
    ]


def test_no_hint_where_more_groups_teach_than_hit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with `add_gt`: 15 % of the groups hit by themselves, and 15 or 90 % teach."""
    for trainable, count in ((0.9, 0), (0.15, 1)):
        with RunLog(tmp_path / str(count), CONFIG) as run, run.stage("rl", total=1) as stage:
            stage.advance({"group/all_zero_frac": 0.85, "group/trainable_frac": trainable})
        assert capsys.readouterr().out.count("hint: ") == count


def test_a_live_bar_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with (
        RunLog(tmp_path / "run", CONFIG) as run,
        run.stage("rl", total=2, estimate_s=9) as stage,
    ):
        stage.advance({"actor/kl": 0.01}, step=10)
    out = capsys.readouterr().out
    assert "\x1b[" in out
    assert "1/2" in out
    assert "KL 0.01" in out
    assert "rl: done in " in out


def test_silent_says_nothing_and_a_child_speaks_on_its_parents_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for silent in (True, False):
        with RunLog(tmp_path / f"parent-{silent}", CONFIG, silent=silent) as parent:
            child_folder = parent.folder / "child"
            with RunLog(child_folder, CONFIG, parent=parent) as child:
                child.say("hello")
                with child.stage("rl", total=1) as stage:
                    stage.advance({"valid/ndcg@10": 0.5}, step=1)
            assert (child_folder / "metrics.jsonl").is_file()
        out = capsys.readouterr().out
        assert out == "" if silent else out.startswith("hello\nrl: starts\nrl 1/1, ")


def test_the_table_of_rollouts() -> None:
    groups, rewards, signal = groups_and_signal()
    table = rollout_table(5, groups, rewards, signal, groups)
    assert table.to_dict(as_series=False) == {
        "step": [5, 5, 5, 5],
        "row_id": [7, 7, 9, 9],
        "rank": [0, 1, 0, 1],
        "item": [0, 1, 4, -1],
        "tokens": [[4, 8], [4, 9], [6, 8], [0, 0]],
        "logprob": [-1.5, -2.5, -2.0, 0.0],
        "reward": [1.0, 0.0, 0.0, 0.0],
        "advantage": [1.0, -1.0, -1.0, 1.0],
        "keep": [True, True, True, True],
        "repaired": [False, False, False, True],
        "injected": [False] * 4,
    }


def test_rollouts_come_in_files_of_25_steps(tmp_path: Path) -> None:
    groups, rewards, signal = groups_and_signal()
    with RunLog(tmp_path / "run", CONFIG, silent=True) as run:
        for step in range(1, 28):
            run.rollouts(step, groups, rewards, signal, groups)
    folder = tmp_path / "run" / "rollouts"
    assert sorted(file.name for file in folder.iterdir()) == [
        "step-000025.parquet",
        "step-000027.parquet",
    ]
    first = pl.read_parquet(folder / "step-000025.parquet")
    assert first["step"].to_list() == [step for step in range(1, 26) for _ in range(4)]
    assert first.schema["tokens"] == pl.List(pl.Int32)


def test_a_step_without_rollouts_writes_no_file(tmp_path: Path) -> None:
    groups, rewards, signal = groups_and_signal()
    empty = reorder(groups, torch.empty(2, 0, dtype=torch.long))
    with RunLog(tmp_path / "run", CONFIG, silent=True) as run:
        run.rollouts(1, empty, rewards[:, :0], signal, empty)
    assert not (tmp_path / "run" / "rollouts").exists()


def test_what_is_shown_starts_with_learnability() -> None:
    metrics = dict.fromkeys(["actor/tokens", *reversed(SHOWN)], 0.5)
    assert shown(metrics) == (
        "all-zero 0.5  single-hit 0.5  trainable 0.5  repaired 0.5  reward 0.5  "
        "NDCG@10 0.5  free HR@10 0.5  invalid 0.5  malformed 0.5  KL 0.5  grad 0.5"
    )
    assert shown({"sft/loss": 3.25}) == "sft/loss 3.25"


def test_durations() -> None:
    assert [duration(s) for s in (0.2, 42.4, 90, 630)] == ["0 s", "42 s", "1.5 min", "10.5 min"]


def test_files_that_do_not_fit_end_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is given up with one line; what stands in it stays whole."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with RunLog(tmp_path / "run", {}) as log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
            for step in range(9):
                log.metrics(step, {"sft/loss": 1.0}, "SFT")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().out.splitlines() == [
        f"warning: File too large; the run goes on without its {what}"
        for what in ("metrics.jsonl", "TensorBoard files")
    ]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines)))
    assert 0 < len(lines) < 9


def test_metrics_that_are_removed_are_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path / "run", {}) as run:
        run.metrics(0, {"sft/loss": 3.0}, stage="SFT")
        (tmp_path / "run" / "metrics.jsonl").unlink()
        for step in (1, 2):
            run.metrics(step, {"sft/loss": 2.0}, stage="SFT")
    assert capsys.readouterr().out.count("metrics.jsonl was removed; the run goes on without") == 1
