"""The memory of a loop: its state now and then on disk, and the newest whole one back.

A state is written at most every `checkpoint_s` seconds, and so seldom that writing takes under
2 % of the run; besides, whenever the run ends by a signal or an error.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from recast.data.folder import data_hash
from recast.policy.sharded import is_sharded
from recast.run.checkpoint import (
    remove_newer,
    write_checkpoint,
)
from recast.run.files import (
    CHECKPOINTS,
    alone_in,
    remove_whole,
    writing,
)
from recast.run.fingerprint import MACHINE, flat, inputs_of, plain
from recast.run.log import RunLog
from recast.run.reading import reason_of
from recast.run.stop import whole
from recast.run.world import LostRankError, agreed, gathered, is_first, require_same
from recast.train.resumed import MEASURED, Resumed, check_same
from recast.train.state import LoopState
from recast.types import RecastError

_MOST = 0.02  # of the run goes into writing
_BYTES_PER_S = 2e8
"""Written, synced, read back and hashed, before the first checkpoint tells: a slow disk's."""


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
            "measured": {name: self.settings[name] for name in MEASURED if name in self.settings},
        }
        object.__setattr__(self, "facts", facts)
        if self.resumed and self.resumed.checkpoint:
            check_same(self.resumed.checkpoint.facts, facts)

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
        self._is_whole, self._is_sharded = True, is_sharded(state.model)
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
        if self._is_whole and not self._is_sharded:  # the other ranks may be gone
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
            is_due = time.monotonic() >= self._due
            if agreed(is_due) if self._is_sharded else is_due:
                self._write()

    def _begin(self, *_: object) -> None:
        self._is_whole = False

    def _write(self) -> None:
        if self._state.count == self._written or not self._may_write():
            return
        started = time.monotonic()
        facts = self._facts | {"state": self._state.facts()}
        if is_first():
            facts["position"] = self._run.position()
        try:
            write_checkpoint(
                self._run.folder,
                self._state.count,
                self._state.tensors(),
                facts,
                are_shared=self._is_sharded,
            )
            self._written, self._written_step = self._state.count, self._state.optimizer_steps
        except LostRankError:
            raise
        except RecastError as error:
            self._run.say(f"warning: no checkpoint ({reason_of(error)})")
        now = time.monotonic()
        self._checkpoints += 1
        self._spent_s += now - started
        self._due = now + max(self._every_s, (now - started) / _MOST)

    def _may_write(self) -> bool:
        """Whether this rank writes, and what it would is a state to go on with."""
        if self._is_sharded:
            return all(gathered(self._state.is_finite))
        return is_first() and self._state.is_finite


def _code_of(part: Any) -> Any:
    """What tells two versions of a function apart; None where nothing does."""
    try:
        return plain(part, "a function")
    except RecastError:
        return None
