"""The voice of a run: metrics, rollouts and stages in; the run folder and the screen out.

A run folder holds `config.yaml` (resolved), `env.json`, `metrics.jsonl` (one object per call),
`tb/` (TensorBoard) and `rollouts/step-*.parquet`. On a terminal a stage is a live bar with the
time that is left; elsewhere it is plain lines, one in `LINE_EVERY_S` seconds at most.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import polars as pl
import yaml
from jaxtyping import Float
from rich.console import Console
from rich.live import Live
from torch import Tensor

from recast.run.board import Board
from recast.run.environment import environment
from recast.run.files import CHECKPOINTS, refuse_existing, staged_file, writing
from recast.run.reading import reason_of
from recast.run.rollouts import rollout_table
from recast.run.stage import Stage, duration
from recast.run.trackio import TrackioRun
from recast.run.world import is_first
from recast.types import Metrics, RecastError, RolloutGroups, Signal

ROLLOUT_STEPS = 25
"""Steps per Parquet file of rollouts: large enough for few files, small enough to read one."""
_TENSORBOARD = "TensorBoard files"


class Position(TypedDict):
    """Where the writing of a run is, as JSON holds it."""

    step: int
    """Of the latest metrics."""
    time_s: float
    """Since it began."""
    bytes: list[int]
    """Of `metrics.jsonl`, and of those of the runs that it is part of, from inside out."""


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        """A reader that left (`| head`) silences the run; it does not end it."""
        with suppress(SystemExit):
            super().on_broken_pipe()


class RunLog:
    """Everything a run writes and says about itself.

    Use as a context manager: entering creates the folder (`RecastError` if it holds something),
    leaving by an error before the first metric removes it again unless a stage wrote into it.
    `config` is the resolved settings as plain data. A run inside another one names it as `parent`
    and speaks on its screen and in its `metrics.jsonl`. `silent=True` prints nothing.
    `goes_on=True` takes a folder that an earlier run left: its metrics go on, `env.json` stays,
    nothing is ever removed. `position` is where that run was: all that it wrote since is cut off.
    What cannot be written is said once; a log never ends a run. Of several ranks the first alone
    writes and speaks. `trackio` names a project that gets the same points as TensorBoard.
    """

    def __init__(
        self,
        folder: str | Path,
        config: dict[str, Any],
        *,
        parent: RunLog | None = None,
        silent: bool = False,
        goes_on: bool = False,
        position: Position | None = None,
        trackio: str | None = None,
    ) -> None:
        self.folder = Path(folder) if goes_on else refuse_existing(folder)
        self._goes_on = goes_on
        self._writes = is_first()
        quiet = silent or not self._writes
        own = _Screen(quiet=quiet, highlight=False, markup=False, soft_wrap=True)
        self.console: Console = parent.console if parent else own
        self.parent = parent
        self._config = config
        self._began = time.monotonic()
        self._hinted = False
        self._rollouts: list[pl.DataFrame] = []
        self._last_step = 0
        self._given_up: set[str] = set()
        self._position = position
        self._boards: dict[str, Board | TrackioRun] = {}  # each is made by its first point
        self._made: dict[str, Callable[[], Board | TrackioRun]] = {
            _TENSORBOARD: partial(Board, self.folder.absolute() / "tb")
        }
        if trackio:
            self._made["trackio"] = partial(TrackioRun, trackio, self.folder, config, goes_on)

    def __enter__(self) -> RunLog:
        if not self._writes:
            return self
        settings = yaml.safe_dump(self._config, sort_keys=False)
        try:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with staged_file(self.folder / "config.yaml") as file:
                    file.write_text(settings, encoding="utf-8")
                if not self._goes_on:
                    self.environment()
                self._metrics = FileIO(self.folder / "metrics.jsonl", "a")
                if self._position:
                    self._cut(self._position)
        except (RecastError, KeyboardInterrupt):
            if not self._goes_on:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._writes:
            return
        nothing_yet = self._metrics.tell() == 0 and not self._rollouts and not self._goes_on
        self._metrics.close()
        for board in self._boards.values():
            with suppress(OSError):  # what did not fit is tried again
                board.close()
        ours = {"config.yaml", "env.json", "metrics.jsonl", "tb"}
        if error and nothing_yet:
            with suppress(OSError):  # something is kept, or nothing ever is
                (self.folder / CHECKPOINTS).rmdir()
        if error and nothing_yet and {entry.name for entry in self.folder.iterdir()} <= ours:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self._write_rollouts()

    def position(self) -> Position:
        """Where this run is, with all of its rollouts written."""
        self._write_rollouts()
        for run in self._and_parents():
            with suppress(OSError):  # of a file system that cannot
                os.fsync(run._metrics.fileno())
        return {
            "step": self._last_step,
            "time_s": time.monotonic() - self._began,
            "bytes": [run._metrics.tell() for run in self._and_parents()],
        }

    def cut_metrics(self, size: int) -> None:
        """Remove what stands behind the first bytes of `metrics.jsonl`."""
        if self._metrics.tell() < size < sys.maxsize:
            self.say(f"warning: lines of {self.folder}/metrics.jsonl were removed since")
        self._metrics.truncate(min(size, self._metrics.tell()))
        self._metrics.seek(0, os.SEEK_END)

    def _cut(self, position: Position) -> None:
        """Remove what was written after a position."""
        self._last_step = position["step"]
        self._began = time.monotonic() - position["time_s"]
        for run, size in zip(self._and_parents(), position["bytes"], strict=False):
            run.cut_metrics(size)
        for file in (self.folder / "rollouts").glob("step-*.parquet"):
            if int(file.stem.partition("-")[2]) > self._last_step:
                file.unlink()
        # Of a process that was killed: the steps may go into files of other names now.
        for left in (self.folder / "rollouts").glob(".step-*.partial"):
            left.unlink()
        # TensorBoard forgets what older files hold from the next step on.
        self._boards[_TENSORBOARD] = Board(self.folder / "tb", self._last_step + 1)

    def _and_parents(self) -> Iterator[RunLog]:
        run: RunLog | None = self
        while run:
            yield run
            run = run.parent

    def _unless_full(self, what: str, write: Callable[[], None]) -> None:
        """A log that cannot be written is said once, and not tried again."""
        if what in self._given_up:
            return
        try:
            write()
        except (OSError, RecastError) as error:
            self._given_up.add(what)
            self.say(f"warning: {reason_of(error)}; the run goes on without its {what}")

    def environment(self, data_hash: str | None = None) -> None:
        """Write `env.json`; call it again once the hash of the data is known."""
        if not self._writes:
            return
        described = json.dumps(environment(data_hash), indent=2)
        with staged_file(self.folder / "env.json") as file:
            file.write_text(described + "\n", encoding="utf-8")

    def say(self, text: str) -> None:
        """One line for the person at the screen."""
        self.console.print(text)

    def plan(self, stages: list[tuple[str, float]]) -> None:
        """Say how long each stage will take (seconds), before the first one starts."""
        self.say(f"Plan: about {duration(sum(seconds for _, seconds in stages))} in all")
        width = max(len(name) for name, _ in stages)
        for name, seconds in stages:
            self.say(f"  {name:<{width}}  {duration(seconds):>8}")

    def metrics(self, step: int, metrics: Metrics, stage: str) -> None:
        """Append one line to `metrics.jsonl` and one point per metric to TensorBoard and trackio.

        Raises `RecastError` for a NaN or an infinity, and then writes none of them.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise RecastError(
                    f"{name} is {value} at step {step} of {stage}: the run has diverged, "
                    "start it again with a lower lr"
                )
        if not self._writes:
            return
        seconds = round(time.monotonic() - self._began, 3)
        line = json.dumps({"step": step, "stage": stage, "time_s": seconds, **metrics}) + "\n"
        self._last_step = step
        for run in self._and_parents():  # the run that this one is part of keeps a copy
            self._unless_full("metrics.jsonl", partial(_append, run._metrics, line))
        for name in self._made:
            self._unless_full(name, partial(self._add_point, name, step, metrics))
        all_zero = metrics.get("group/all_zero_frac", 0.0)
        repaired = metrics.get("group/repaired_frac", 0.0) > 0
        # With `add_gt` more groups teach than hit by themselves.
        helped = metrics.get("group/trainable_frac", 0.0) > 1 - all_zero
        if all_zero > 0.8 and not repaired and not helped and not self._hinted:
            self._hinted = True
            self.say(
                f"hint: {all_zero:.0%} of the groups hold no hit, so their rollouts alone teach "
                "nothing: repair them (method recast), raise group_size or train SFT longer"
            )

    def rollouts(
        self,
        step: int,
        groups: RolloutGroups,
        rewards: Float[Tensor, "B G"],
        signal: Signal,
        given: RolloutGroups,
        tasks: list[str] | None = None,
    ) -> None:
        """Keep a step's rollouts for `rollouts/step-NNNNNN.parquet`, named by its last step."""
        if not (groups.items.numel() and self._writes):
            return
        self._rollouts.append(rollout_table(step, groups, rewards, signal, given, tasks))
        if len(self._rollouts) >= ROLLOUT_STEPS:
            self._write_rollouts()

    def _add_point(self, name: str, step: int, metrics: Metrics) -> None:
        if name not in self._boards:
            self._boards[name] = self._made[name]()
        self._boards[name].add(step, metrics)

    def _write_rollouts(self) -> None:
        if not self._rollouts:
            return
        table = pl.concat(self._rollouts)
        self._rollouts.clear()
        last = int(table["step"][-1])

        def write() -> None:
            with staged_file(self.folder / "rollouts" / f"step-{last:06d}.parquet") as file:
                table.write_parquet(file)

        self._unless_full("rollouts", write)

    @contextmanager
    def stage(
        self, name: str, total: int, estimate_s: float | None = None, done: int = 0
    ) -> Iterator[Stage]:
        """A stretch of `total` units that should take `estimate_s` seconds, shown as it goes;
        `done` of them were made by an earlier run."""
        planned = f"about {duration(estimate_s)}" if estimate_s else "starts"
        stage = Stage(self, name, total, estimate_s, done)
        if self.console.is_terminal and not self.console.quiet:
            with Live(get_renderable=stage.picture, console=self.console, transient=True):
                yield stage
        else:
            self.say(f"{name}: {planned}")
            yield stage
        self.say(f"{name}: done in {duration(time.monotonic() - stage.began)}")


def _append(file: FileIO, line: str) -> None:
    """A whole line or none, of a file that is still there."""
    if not os.fstat(file.fileno()).st_nlink:
        raise FileNotFoundError(errno.ENOENT, f"{file.name} was removed")
    size, data = file.tell(), line.encode()
    try:
        written = file.write(data)
        while written < len(data):  # the rest tells what is wrong
            written += file.write(data[written:])
    except OSError:
        file.truncate(size)
        raise
