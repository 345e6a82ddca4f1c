"""Where a run goes on: a run folder in; its newest whole checkpoint out, and the state that stood
there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recast.policy.sharded import is_sharded
from recast.run.checkpoint import Checkpoint, read_checkpoints, read_tensors
from recast.run.files import CHECKPOINTS, alone_in, is_ended_run, refuse_existing
from recast.run.log import Position
from recast.run.reading import reading
from recast.run.shards import read_shards
from recast.run.world import is_first, once, shared
from recast.train.state import LoopState
from recast.types import RecastError, in_short

MEASURED = ("threads", "micro_batch_tokens", "pass_tokens")
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

    def measured(self, config: Any) -> dict[str, Any]:
        """What a config leaves open, as the run measured it for itself."""
        then = self.checkpoint.facts["measured"] if self.checkpoint else {}
        return {name: value for name, value in then.items() if getattr(config, name, ...) is None}

    @property
    def position(self) -> Position:
        empty: Position = {"step": -1, "time_s": 0.0, "bytes": [0]}
        return self.checkpoint.facts["position"] if self.checkpoint else empty

    def restore(self, state: LoopState) -> None:
        """Let a state stand there, on every rank. Of weights that they share each reads its part,
        whole ones are read by the first and told to the others."""
        if not self.checkpoint:
            return
        folder, facts = self.checkpoint.folder, self.checkpoint.facts["state"]
        if is_sharded(state.model):
            with reading(folder, "all ranks have to reach it"):
                tensors = read_shards(folder, state.like())
        else:
            tensors = shared(read_tensors(folder) if is_first() else None)
        state.restore(tensors, facts)


def find_checkpoint(output: str, resume: bool) -> Resumed | None:
    """The newest whole checkpoint of a run folder, as the first rank finds it; None for a run that
    does not go on.

    Raises `RecastError` without `resume` for a folder that holds something, with it for one that
    holds no run, a finished one, or damaged checkpoints alone.
    """
    return once(lambda: _find_checkpoint(output, resume))


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


def check_same(then: dict[str, Any], now: dict[str, Any]) -> None:
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
