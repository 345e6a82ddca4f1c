"""Code that is not ours: what it raised in one line, and the process as it was before."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_LONGEST = 200
"""Characters of what an exception says."""


def short(value: object) -> str:
    """A value of theirs as text on one line of at most 200 characters."""
    try:
        text = str(value)
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 9 * _LONGEST]).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def told(error: BaseException, file: str | Path | None = None) -> str:
    """What an exception says on one short line, and where in `file` it came from.

    >>> told(ValueError("no\\nnumber"))
    'ValueError: no number'
    """
    text = short(error)
    line, trace = None, error.__traceback__
    while file is not None and trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f" in {file}, line {line}" if line else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


_PROCESS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (os.getcwd, os.chdir),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    # The processor is what nobody set, and as a setting of its own slow.
    (torch.get_default_device, lambda x: torch.set_default_device(None if x.type == "cpu" else x)),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
)
"""How each thing that belongs to the whole process is read and set back."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Around code that is not ours: what it sets for the whole process is set back, so that neither
    numbers nor files of ours hang on it."""
    streams, path = (sys.stdout, sys.stderr), list(sys.path)
    filters, interrupt = list(warnings.filters), signal.getsignal(signal.SIGINT)
    before = [get() for get, _ in _PROCESS]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        # A folder of theirs stays, behind all others.
        sys.path[:] = path + [entry for entry in sys.path if entry not in path]
        warnings.filters[:] = filters  # type: ignore[index]
        if signal.getsignal(signal.SIGINT) is not interrupt:
            signal.signal(signal.SIGINT, interrupt)
        for value, (get, set_back) in zip(before, _PROCESS, strict=True):
            if get() != value:
                set_back(value)
