"""Signals that end a run: what the caller does not ignore ends it between two changes of state.

Ctrl-C, `kill` (SIGTERM) and a closed terminal (SIGHUP) raise `Stopped` where the program is, or, in
a block that must not be cut in two, at its end. A second one ends at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal that asks for an end; `number` is its own."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__("interrupted" if number == signal.SIGINT else f"ended by {name}")
        self.number = number


_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@dataclass(slots=True)
class _Asked:
    """What this process was asked."""

    number: int | None = None
    """The signal."""
    is_waiting: bool = False
    """For the end of a block."""
    depth: int = 0
    """Of such blocks."""


_asked = _Asked()


@contextmanager
def listening() -> Iterator[None]:
    """Raise `Stopped` in the main thread at a signal, but not for one that the caller ignores, as
    `nohup` does."""
    _asked.number, _asked.is_waiting, _asked.depth = None, False, 0
    before = {}
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, _ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def whole() -> Iterator[None]:
    """Around what must not be cut in two: a signal waits for its end, a second one does not."""
    _asked.depth += 1
    try:
        yield
    finally:
        _asked.depth -= 1
    if _asked.is_waiting and not _asked.depth and _asked.number is not None:
        _asked.is_waiting = False
        raise Stopped(_asked.number)


def _ask(number: int, frame: FrameType | None) -> None:
    is_second = _asked.number is not None
    _asked.number = number
    _asked.is_waiting = _asked.depth > 0 and not is_second
    if not _asked.is_waiting:
        raise Stopped(number)
