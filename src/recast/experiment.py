"""An experiment: a list of cells in, each run into a folder of its own, in turn or several at once,
what they returned out; a finished cell is never run again.

When a list is run again the settings of a cell and the digests of the files that it read, which
stand in its record, decide whether it is the same.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import recast
from recast.cell import (
    Cell,
    has_ranks,
    inputs_of,
    is_below,
    listed,
    refuse_unsent,
    settings_by_name,
    stage_of,
    verb_of,
)
from recast.config import EvaluateConfig, RLConfig
from recast.config.check import as_path
from recast.policy.threads import usable_cores
from recast.record import (
    Record,
    begun_of,
    can_go_on,
    empty,
    leave,
    mark_of,
    read_begun,
    read_record,
    refuse_changed,
    refuse_foreign,
    refuse_other,
    tidy,
    write_record,
)
from recast.run.files import alone_in, refuse_existing
from recast.run.fingerprint import Input, plain
from recast.run.lead import handed, led
from recast.run.log import RunLog
from recast.run.reading import reading
from recast.run.stage import Stage, duration, shown
from recast.run.workers import in_workers
from recast.run.world import world
from recast.types import Metrics, RecastError, require

SCREENS = "screens"
"""Folder of what cells say that run at once."""


def run_cells(
    folder: str | Path,
    cells: Iterable[Cell],
    settings: dict[str, Any] | None = None,
    *,
    workers: int = 1,
    goes_on: bool = False,
) -> dict[str, Metrics]:
    """Run the cells in their order; returns what each of them returned, by name.

    Of several ranks the first goes through the list; the others run with it the cells whose verb
    makes use of them (`follow`).

    Outputs lie below `folder`, which gets `config.yaml` (`settings`, by default those of all
    cells), `env.json` and `metrics.jsonl` with the lines of all cells; those of an interrupted
    cell stay, before those of its second run. Threads that are left open are measured by the first
    RL cell and kept by the RL and evaluation cells after it, so that their CPU seconds compare.

    With several `workers` the cells of a stage run at once, each with one thread unless its config
    says how many; their lines stand in their own `metrics.jsonl` alone, what they say in
    `screens/NAME.txt`. `goes_on` says that other cells of the same experiment were run there.

    Raises `RecastError`, before anything is run or written, for cells that no run could use or
    ranks cannot be told, for `workers` of several ranks, for a finished cell that has other
    settings, read other files or is damaged, for an output that no cell began, and while another
    process runs an experiment in `folder`.
    """
    work = partial(_run_cells, folder, cells, settings, workers, goes_on)
    return led(work, follow)


def _run_cells(
    folder: str | Path,
    cells: Iterable[Cell],
    settings: dict[str, Any] | None,
    workers: int,
    goes_on: bool,
) -> dict[str, Metrics]:
    root, cells = Path(os.path.abspath(as_path("folder", folder))), listed(cells)
    is_plain = settings is None or isinstance(settings, dict)
    require(is_plain, "settings", settings, "give a dict of plain data")
    used = settings_by_name(root, cells)
    if world().led:
        remedy = "several ranks run one cell after another: leave it out, or start one process"
        require(workers == 1, "workers", workers, remedy)
        refuse_unsent(cells)
    with alone_in(root):
        runs = _Runs(root, cells, used)
        goes_on |= any(mark_of(cell).exists() or begun_of(cell).exists() for cell in cells)
        told = settings or {cell.name: plain(cell.config, cell.name) for cell in cells}
        with RunLog(root, told, goes_on=goes_on) as log:
            plan = runs.plan(workers)
            if any(seconds for _, seconds in plan):
                log.plan(plan)
            for _, stage in groupby(cells, key=stage_of):
                runs.run_stage(list(stage), log, workers)
    return {cell.name: runs.done[cell.name]["returned"] for cell in cells}


def finished_cells(folder: str | Path, cells: Iterable[Cell]) -> dict[str, Metrics]:
    """What those of the cells returned that are finished, by name.

    Nothing is run or written; raises `RecastError` as `run_cells` does before it begins.
    """
    root, cells = Path(os.path.abspath(as_path("folder", folder))), listed(cells)
    done = _Runs(root, cells, settings_by_name(root, cells)).done
    return {name: record["returned"] for name, record in done.items()}


class _Runs:
    """Which cells are done, and the running of the others; made by `run_cells`."""

    def __init__(self, root: Path, cells: Sequence[Cell], used: dict[str, dict[str, Any]]) -> None:
        """Look at every folder; nothing is written."""
        self.done: dict[str, Record] = {}
        self._root, self._cells, self._used = root, cells, used
        self._digests: dict[Input, str] = {}
        to_come: list[Path] = []
        for cell in cells:
            if mark_of(cell).exists():
                self.done[cell.name] = record = read_record(cell)
                refuse_other(cell, record["settings"], used[cell.name])
            elif begun_of(cell).exists():
                refuse_foreign(cell.folder)
            else:
                refuse_existing(cell.folder)
            # What a cell before this one has yet to write is looked at when it is there.
            waits = any(is_below(path, to_come) for path, _ in inputs_of(cell).values())
            if not waits:
                reads = self._reads(cell)
                if cell.name in self.done:
                    refuse_changed(cell, self.done[cell.name]["reads"], reads)
            if cell.name not in self.done:
                to_come.append(cell.folder)

    def plan(self, workers: int) -> list[tuple[str, float]]:
        """The stages that are left and their seconds."""
        rest = [cell for cell in self._cells if cell.name not in self.done]
        plan = []
        for name, members in groupby(rest, key=stage_of):
            stage = list(members)
            unit = f", {len(stage)} {stage[0].unit}" if stage[0].unit and len(stage) > 1 else ""
            seconds = sum(cell.estimate_s for cell in stage) / min(workers, len(stage))
            plan.append((name + unit, seconds))
        return plan

    def run_stage(self, cells: list[Cell], log: RunLog, workers: int) -> None:
        """Run those of a stage's cells that are not done."""
        rest = [cell for cell in cells if cell.name not in self.done]
        at_once = min(workers, len(rest))
        seconds = sum(cell.estimate_s for cell in rest) / max(at_once, 1)
        is_silent = rest and (at_once > 1 or not verb_of(rest[0]).has_stage)
        told = log.stage(stage_of(rest[0]), len(rest), seconds) if is_silent else nullcontext()
        with told as stage:
            for cell in cells:
                if cell.name in self.done:
                    refuse_changed(cell, self.done[cell.name]["reads"], self._reads(cell))
                    tidy(cell)
                    log.say(f"{cell.name}: finished before, not run again")
                elif at_once == 1:
                    self._run(cell, log)
                    if stage and len(rest) > 1:
                        stage.advance()
            if at_once > 1:
                assert stage
                self._run_at_once(rest, log, stage, at_once)
        for cell in rest:
            if describe := verb_of(cell).describe:
                log.say(describe(cell.folder))

    def _run(self, cell: Cell, log: RunLog) -> None:
        ready, record = self._begin(cell, log)
        try:
            with handed(ready) if has_ranks(ready) else nullcontext():
                returned = verb_of(cell).run(ready, log)
        except BaseException:
            leave(cell)
            raise
        self._end(ready, record, returned, torch.get_num_threads())

    def _run_at_once(self, cells: list[Cell], log: RunLog, stage: Stage, workers: int) -> None:
        begun: dict[str, tuple[Cell, Record, float]] = {}
        screens = self._root / SCREENS

        def tasks() -> Iterator[tuple[Cell, Path]]:
            screens.mkdir(exist_ok=True)
            for cell in cells:
                ready, record = self._begin(cell, log, apart=True)
                if getattr(ready.config, "threads", 1) is None:
                    ready = replace(ready, config=replace(ready.config, threads=1))
                begun[cell.name] = ready, record, time.monotonic()
                yield ready, screens / f"{cell.name.replace(os.sep, '_')}.txt"

        def done(task: tuple[Cell, Path], result: tuple[Metrics, int]) -> None:
            ready, record, began = begun.pop(task[0].name)
            self._end(ready, record, *result)
            told = shown({key: result[0][key] for key in ("valid/ndcg@10",) if key in result[0]})
            log.say(f"{ready.name}: done in {duration(time.monotonic() - began)}  {told}".rstrip())
            stage.advance()

        try:
            in_workers(run_apart, tasks(), done, workers)
        except BaseException:
            for cell, *_ in begun.values():
                leave(cell)
            raise

    def _begin(self, cell: Cell, log: RunLog, *, apart: bool = False) -> tuple[Cell, Record]:
        """Mark a cell as begun; returns it as it is to be run, and its record so far. One that runs
        `apart` writes no line here."""
        record: Record = {
            "cell": cell.name,
            "settings": self._used[cell.name],
            "reads": self._reads(cell),
        }
        begun, cell = begun_of(cell), self._with_threads(cell)
        if begun.exists() and can_go_on(cell, then := read_begun(begun), record):
            log.say(f"{cell.name}: was begun but not finished, goes on")
            record["metrics_bytes"] = then["metrics_bytes"]
            cell = replace(cell, config=replace(cell.config, resume=True))
        else:
            if begun.exists():
                log.say(f"{cell.name}: was begun but not finished, begins anew")
                empty(cell.folder)
                log.cut_metrics(then.get("metrics_bytes", sys.maxsize))
            record["metrics_bytes"] = sys.maxsize if apart else log.position()["bytes"][0]
            write_record(begun, record)
        return cell, record

    def _end(self, cell: Cell, record: Record, returned: Metrics, threads: int) -> None:
        """Mark a cell as done."""
        del record["metrics_bytes"]
        record |= {"returned": returned, "threads": threads, "recast": recast.__version__}
        write_record(mark_of(cell), record)
        tidy(cell)
        self.done[cell.name] = record

    def _with_threads(self, cell: Cell) -> Cell:
        """The cell with the threads of the first RL cell, where it leaves them open."""
        counts = [
            self.done[other.name]["threads"]
            for other in self._cells
            if other.name in self.done and isinstance(other.config, RLConfig)
        ]
        keeps = isinstance(cell.config, RLConfig | EvaluateConfig) and cell.config.threads is None
        if not (counts and keeps):
            return cell
        threads = min(counts[0], usable_cores())  # it may have moved to a smaller machine
        return replace(cell, config=replace(cell.config, threads=threads))

    def _reads(self, cell: Cell) -> dict[str, dict[str, str]]:
        """Where each input of the cell is, for a person, and its digest, which decides."""
        reads = {}
        for key, source in inputs_of(cell).items():
            path = source.path
            if not path.exists():
                raise RecastError(
                    f"{key} of cell {cell.name!r} is {path}, which is not there: check the path, "
                    "or let the cell that makes it stand before this one"
                )
            if source not in self._digests:
                with reading(path, "make it again"):
                    self._digests[source] = source.digest()
            shown = path.relative_to(self._root) if is_below(path, [self._root]) else path
            reads[key] = {"path": shown.as_posix(), "sha256": self._digests[source]}
        return reads


def follow(cell: Cell) -> None:
    """Run a cell that the first rank has begun, together with it. Raises `RecastError` where this
    one does not see that."""
    if not begun_of(cell).exists():
        raise RecastError(
            f"output of cell {cell.name!r} is {cell.config.output!r}, which rank {world().rank} "
            "does not see: give a folder on a file system that all machines share"
        )
    verb_of(cell).run(cell, None)


def run_apart(task: tuple[Cell, Path]) -> tuple[Metrics, int]:
    """Run a cell in a worker; what it says goes into a file. Returns its metrics and threads."""
    cell, screen = task
    with screen.open("a", encoding="utf-8") as file, redirect_stdout(file):
        return verb_of(cell).run(cell, None), torch.get_num_threads()
