"""The memory of a loop: its state now and then on disk, and the newest whole one back.

A state is written at most every `checkpoint_s` seconds, and so seldom that writing takes under
2 % of the run; besides, whenever the run ends by a signal or an error.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from recast.data.folder import data_hash
from recast.run.checkpoint import (
    Checkpoint,
    read_checkpoints,
    remove_newer,
    write_checkpoint,
)
from recast.run.files import (
    CHECKPOINTS,
    alone_in,
    is_ended_run,
    refuse_existing,
    remove_whole,
    writing,
)
from recast.run.fingerprint import MACHINE, flat, inputs_of, plain
from recast.run.log import Position, RunLog
from recast.run.reading import reason_of
from recast.run.stop import whole
from recast.run.world import is_first, once, require_same, shared
from recast.train.state import LoopState
from recast.types import RecastError, in_short

_MOST = 0.02  # of the run goes into writing
_BYTES_PER_S = 2e8
"""Written, synced, read back and hashed, before the first checkpoint tells: a slow disk's."""

_MEASURED = ("threads", "micro_batch_tokens", "pass_tokens")
"""Settings that a run measures where they are unset; one that goes on takes them as they were."""

_FACTS = ("settings", "reads", "parts", "measured", "state", "position")
"""Of a checkpoint, each by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """Where a run goes on."""

    checkpoint: Checkpoint | None
    """None: it was ended before it kept anything, and begins anew in its folder."""
    skipped: list[str]
    """Lines on damaged checkpoints."""

    def without_tensors(self) -> Resumed:
        """What the other ranks are told; the tensors follow one by one."""
        kept = self.checkpoint and replace(self.checkpoint, tensors={})
        return replace(self, checkpoint=kept)

    def measured(self, config: Any) -> dict[str, Any]:
        """What a config leaves open, as the run measured it for itself."""
        then = self.checkpoint.facts["measured"] if self.checkpoint else {}
        return {name: value for name, value in then.items() if getattr(config, name, ...) is None}

    @property
    def position(self) -> Position:
        empty: Position = {"step": -1, "time_s": 0.0, "bytes": [0]}
        return self.checkpoint.facts["position"] if self.checkpoint else empty

    def restore(self, state: LoopState) -> None:
        """Let a state stand there, on every rank; the memory of what was read is free again."""
        if self.checkpoint:
            state.restore(shared(self.checkpoint.tensors), self.checkpoint.facts["state"])
            self.checkpoint.tensors.clear()


def find_checkpoint(output: str, resume: bool) -> Resumed | None:
    """The newest whole checkpoint of a run folder, as the first rank finds it; None for a run that
    does not go on.

    Raises `RecastError` without `resume` for a folder that holds something, with it for one that
    holds no run, a finished one, or damaged checkpoints alone.
    """
    found: list[Resumed | None] = []

    def facts() -> Resumed | None:
        found.append(_find_checkpoint(output, resume))
        return found[0] and found[0].without_tensors()

    told = once(facts)
    return found[0] if found else told


def _find_checkpoint(output: str, resume: bool) -> Resumed | None:
    path = Path(output)
    if not resume:
        refuse_existing(output)
        return None
    if not is_ended_run(path):
        kind = "a finished run" if (path / "policy").exists() else "no run that was ended"
        raise RecastError(f"{path} holds {kind}: start without --resume, in another output")
    with alone_in(path):  # it has not ended yet where another process is in it
        pass
    skipped: list[str] = []
    for found in read_checkpoints(path):
        if isinstance(found, RecastError):
            skipped.append(str(found))
        elif all(isinstance(found.facts.get(name), dict) for name in _FACTS):
            return Resumed(checkpoint=found, skipped=skipped)
        else:
            skipped.append(f"step {found.step} in {path / CHECKPOINTS} was edited: it is skipped")
    if skipped:
        raise RecastError(
            f"{path} holds no whole checkpoint ({skipped[0]}): remove it and start anew"
        )
    return Resumed(checkpoint=None, skipped=[])


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What decides what a run does, and where it is written."""

    output: str
    settings: dict[str, Any]
    """All that it uses."""
    resumed: Resumed | None
    """Where it goes on."""
    parts: dict[str, Any] = field(default_factory=dict)
    """Its functions, by kind."""
    facts: dict[str, Any] = field(init=False)
    """What a run that goes on is held against."""

    def __post_init__(self) -> None:
        inputs = inputs_of(self.settings)
        deciding = {
            key: value
            for key, value in flat(plain(self.settings, "settings"))
            if key.partition(".")[0] not in MACHINE and key not in inputs
        }
        facts = {
            "recast": version("recast-rl"),
            "settings": deciding,
            "reads": {key: source.digest() for key, source in inputs.items()},
            "parts": {kind: _code_of(part) for kind, part in self.parts.items()},
            "measured": {name: self.settings[name] for name in _MEASURED if name in self.settings},
        }
        object.__setattr__(self, "facts", facts)
        if self.resumed and self.resumed.checkpoint:
            _check_same(self.resumed.checkpoint.facts, facts)

    @contextmanager
    def open(self, state: LoopState, parent: RunLog | None) -> Iterator[tuple[RunLog, Keeper]]:
        """The run's log and the keeper of its state, which then stands where the run ended."""
        resumed = self.resumed
        log = RunLog(
            self.output,
            self.settings,
            parent=parent,
            goes_on=resumed is not None,
            position=resumed.position if resumed else None,
            trackio=self.settings["trackio"],
        )
        kept = Path(self.output) / CHECKPOINTS
        require_same(dict(flat(self.facts)))  # all ranks are here before there is a folder
        with alone_in(self.output) if is_first() else nullcontext():
            if is_first():
                with writing(kept):  # first of all: what is killed from here on can go on
                    kept.mkdir(exist_ok=True)
            with log as run:
                if resumed:
                    self._go_on(resumed, run, state)
                if not (resumed and resumed.checkpoint):
                    run.environment(data_hash(self.settings["data"]))
                with Keeper(run, state, self) as keeper:
                    yield run, keeper

    def _go_on(self, resumed: Resumed, run: RunLog, state: LoopState) -> None:
        """Let the state stand where the run ended."""
        if is_first():
            shutil.rmtree(run.folder / "policy", ignore_errors=True)  # it ended right behind it
        for line in self._warnings(resumed):
            run.say(f"warning: {line}")
        resumed.restore(state)
        if is_first():
            remove_newer(run.folder, state.count)
        run.say(f"goes on behind optimizer step {state.optimizer_steps}")

    def _warnings(self, resumed: Resumed) -> Iterator[str]:
        yield from resumed.skipped
        if resumed.checkpoint:
            then, now = (facts["parts"] for facts in (resumed.checkpoint.facts, self.facts))
            for kind in sorted(now):
                if then.get(kind) != now[kind]:
                    yield f"the code of {kind} is another than when the run began"


class Keeper:
    """Keeps the state of a loop; used around it as a context manager."""

    def __init__(self, run: RunLog, state: LoopState, facts: RunFacts) -> None:
        self._run, self._state, self._facts = run, state, facts.facts
        self._every_s = facts.settings["checkpoint_s"]
        self._written, self._written_step = state.count, state.optimizer_steps
        self._is_whole = True
        self._began = time.monotonic()
        size = 3 * sum(tensor.nbytes for tensor in state.tensors().values())  # AdamW adds two
        self._due = self._began + max(self._every_s, size / _BYTES_PER_S / _MOST)
        self._checkpoints, self._spent_s = 0, 0.0
        self._hook = state.optimizer.register_step_pre_hook(self._begin)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()
        if self._checkpoints:
            share = self._spent_s / (time.monotonic() - self._began)
            self._run.say(
                f"checkpoints: {self._checkpoints} in {self._spent_s:.2f} s, {share:.2%} of the run"
            )
        if not error:  # its result is on the disk
            if not self._run.parent and is_first():  # a cell has ended when it is marked
                remove_whole(self._run.folder / CHECKPOINTS)
            return
        if self._is_whole:
            with whole():
                self._write()
        if self._written:
            self._run.say(f"kept behind optimizer step {self._written_step}: resume goes on there")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one change of the state, its lines in the log included: a signal waits for its
        end, and an error behind the optimizer's step leaves nothing to keep."""
        with whole():
            yield
            self._state.moved()
            self._is_whole = True
            if time.monotonic() >= self._due:
                self._write()

    def _begin(self, *_: object) -> None:
        self._is_whole = False

    def _write(self) -> None:
        if self._state.count == self._written or not (is_first() and self._state.is_finite):
            return
        started = time.monotonic()
        facts = self._facts | {"state": self._state.facts(), "position": self._run.position()}
        try:
            write_checkpoint(self._run.folder, self._state.count, self._state.tensors(), facts)
            self._written, self._written_step = self._state.count, self._state.optimizer_steps
        except RecastError as error:
            self._run.say(f"warning: no checkpoint ({reason_of(error)})")
        now = time.monotonic()
        self._checkpoints += 1
        self._spent_s += now - started
        self._due = now + max(self._every_s, (now - started) / _MOST)


def _code_of(part: Any) -> Any:
    """What tells two versions of a function apart; None where nothing does."""
    try:
        return plain(part, "a function")
    except RecastError:
        return None


def _check_same(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `RecastError` unless the run that goes on is the one that was ended."""
    if then.get("recast") != now["recast"]:
        raise RecastError(
            f"the run was begun by recast {then.get('recast')}, this is {now['recast']}: resume "
            "it with that version, or start anew"
        )
    old, new = then["settings"], now["settings"]
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise RecastError(
                f"{key} is {in_short(new.get(key))}, the run was begun with "
                f"{in_short(old.get(key))}: resume it with its own settings, or choose another "
                "output"
            )
    for key in sorted(then["reads"].keys() | now["reads"].keys()):
        if then["reads"].get(key) != now["reads"].get(key):
            raise RecastError(
                f"{key} holds other files than when the run began: resume it with those, or "
                "choose another output"
            )
