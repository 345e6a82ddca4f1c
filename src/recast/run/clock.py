"""What the phases of a step cost: their names in; seconds, tokens and memory out."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recast.run.peak import begin_phase, peak_bytes, phase_peak_bytes
from recast.run.world import gathered
from recast.types import Metrics

_counts: list[list[Tensor | int]] = []
"""What is being counted, the innermost last."""


def count_tokens(number: Tensor | int) -> None:
    """So many tokens go through a model. A number on a GPU is not waited for here."""
    if _counts:
        _counts[-1].append(number)


@contextmanager
def counting() -> Iterator[list[Tensor | int]]:
    """The numbers of tokens while it lasts, of which what lies around it hears nothing."""
    counts: list[Tensor | int] = []
    _counts.append(counts)
    try:
        yield counts
    finally:
        _counts.pop()


@dataclass(kw_only=True, slots=True)
class Clock:
    """Adds up what was measured since it was last read.

    Example: `with clock.measure("update"): ...`, then `clock.read()` has `time/update_s`,
    `tokens/update` if any went through a model, and `memory/update_gb` where the system tells.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Whose work is waited for, and whose memory is meant."""
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add what is done until it is done, on a GPU too, to that phase."""
        has_peak, started = begin_phase(self.device), time.perf_counter()
        with counting() as counts:
            yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds[phase] += time.perf_counter() - started
        self._tokens[phase] += sum(map(int, counts))
        if has_peak:
            self._bytes[phase] = max(self._bytes[phase], phase_peak_bytes(self.device))

    def read(self) -> Metrics:
        """Seconds and memory of this rank, tokens of all; they start again from nothing."""
        metrics = {f"time/{phase}_s": seconds for phase, seconds in self._seconds.items()}
        metrics |= {f"memory/{phase}_gb": most / 1e9 for phase, most in self._bytes.items()}
        metrics["memory/peak_gb"] = peak_bytes(self.device) / 1e9
        everywhere = gathered(dict(self._tokens))
        for phase in sorted(set[str]().union(*everywhere)):
            if number := sum(tokens.get(phase, 0) for tokens in everywhere):
                metrics[f"tokens/{phase}"] = float(number)
        for measured in (self._seconds, self._tokens, self._bytes):
            measured.clear()
        return metrics
