"""Seconds per phase of a step: names in, sums of wall time out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from recast.types import Metrics


@dataclass(kw_only=True, slots=True)
class Clock:
    """Adds up what was measured since it was last read.

    Example: `with clock.measure("time/update_s"): ...`, then `clock.read()`.
    """

    device: torch.device | None = None
    """Whose work is waited for."""
    _seconds: Metrics = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time until the work is done, on a GPU too, to that name."""
        started = time.perf_counter()
        yield
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def read(self) -> Metrics:
        """The sums; they start again from nothing."""
        seconds, self._seconds = self._seconds, {}
        return seconds
