"""How far a stage of a run is: finished units and their metrics in, a bar or plain lines out."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from recast.types import Metrics

LINE_EVERY_S = 5.0
"""Seconds between two plain lines of a stage; a validation always gets its line."""

SHOWN = {
    "group/all_zero_frac": "all-zero",
    "group/single_hit_frac": "single-hit",
    "group/trainable_frac": "trainable",
    "group/repaired_frac": "repaired",
    "reward/mean": "reward",
    "valid/ndcg@10": "NDCG@10",
    "valid/free_hr@10": "free HR@10",
    "valid/invalid_frac": "invalid",
    "valid/malformed_frac": "malformed",
    "actor/kl": "KL",
    "actor/grad_norm": "grad",
}
"""The metrics on screen and their short names, learnability first."""


@runtime_checkable
class Voice(Protocol):
    """What a stage speaks through: the log of its run."""

    console: Console

    def say(self, text: str) -> None: ...

    def metrics(self, step: int, metrics: Metrics, stage: str) -> None: ...


class Stage:
    """The progress of one stage; made by `RunLog.stage`."""

    def __init__(
        self, log: Voice, name: str, total: int, estimate_s: float | None, done: int
    ) -> None:
        self.began = time.monotonic()
        self._log, self._name, self._total, self._estimate_s = log, name, total, estimate_s
        self._done = self._done_before = done
        self._line = ""
        self._last_line = self.began
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._task = self._bar.add_task(name, total=total, left="")

    def advance(self, metrics: Metrics | None = None, step: int | None = None) -> None:
        """One more unit is done; its metrics, if any, are logged at `step` (default: the unit)."""
        self._done += 1
        if metrics:
            self._log.metrics(self._done if step is None else step, metrics, self._name)
            self._line = shown(metrics)
        now = time.monotonic()
        is_validation = any(name.startswith("valid/") for name in metrics or {})
        is_due = now - self._last_line >= LINE_EVERY_S and not self._log.console.is_terminal
        if is_validation or is_due:
            self._last_line = now
            self._log.say(f"{self._name} {self._done}/{self._total}, {self._left()}  {self._line}")

    def picture(self) -> Group:
        """What a terminal shows now: the bar and, below it, the latest metrics."""
        self._bar.update(self._task, completed=self._done, left=self._left())
        return Group(self._bar, Text(self._line))

    def _left(self) -> str:
        """Time still to go: by the pace so far, by the estimate before the first unit is done."""
        spent = time.monotonic() - self.began
        if self._done > self._done_before:
            each = spent / (self._done - self._done_before)
            return f"{duration(each * max(self._total - self._done, 0))} left"
        if self._estimate_s:
            return f"{duration(max(self._estimate_s - spent, 0.0))} left"
        return "starting"


def shown(metrics: Metrics) -> str:
    """The metrics of `SHOWN` in its order; a step that has none of them shows its first four.

    >>> shown({"actor/kl": 0.01, "group/all_zero_frac": 0.85, "actor/tokens": 512.0})
    'all-zero 0.85  KL 0.01'
    >>> shown({"sft/loss": 3.25})
    'sft/loss 3.25'
    """
    chosen = [(SHOWN[name], metrics[name]) for name in SHOWN if name in metrics]
    chosen = chosen or list(metrics.items())[:4]
    return "  ".join(f"{name} {value:.3g}" for name, value in chosen)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(42.4), duration(90), duration(630)
    ('42 s', '1.5 min', '10.5 min')
    """
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
