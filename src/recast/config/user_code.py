"""What goes with code that is not ours: what it raised in one line, how it can be called, and the
process as it was before."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recast.errors import RecastError, one_line

_LONGEST = 200
"""Characters of what an exception says."""


def short(value: object) -> str:
    """A value of theirs as text on one line of at most 200 characters."""
    try:
        text = str(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # SystemExit among others
        return f"a {type(value).__name__} that cannot be shown"
    return one_line(text, _LONGEST)


def told(error: BaseException, file: str | Path | None = None) -> str:
    """What an exception says on one short line, and where in `file` it came from.

    >>> told(ValueError("no\\nnumber"))
    'ValueError: no number'
    """
    text, line = short(error), _line_in(file, error)
    place = f" in {file}, line {line}" if line else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def place_of(function: Callable[..., Any], error: BaseException | None = None) -> str:
    """` (FILE, line 3)`: where the code of a function or a callable object stands, or the line of
    that file that `error` came through; nothing where it is not written in Python."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", getattr(type(function).__call__, "__code__", None))
    if code is None:
        return ""
    line = _line_in(code.co_filename, error) or code.co_firstlineno
    return f" ({code.co_filename}, line {line})"


def _line_in(file: str | Path | None, error: BaseException | None) -> int | None:
    line, trace = None, error.__traceback__ if error else None
    while file is not None and trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is like those of ours, neither sparse nor nested nor quantized."""
    return not (tensor.is_nested or tensor.is_quantized) and tensor.layout == torch.strided


def require_call(owner: str, function: Callable[..., Any], inputs: tuple[str, ...] | None) -> None:
    """Raise `RecastError` unless a function gives its result at once, and can be called with so
    many arguments (None: whatever it names) and what it asks for by keyword."""
    called = f"of ({', '.join(inputs or ['logprobs', '...'])})"
    try:
        parameters = inspect.signature(function).parameters
        place_of(function)
    except Exception as error:  # an object may answer for its attributes itself
        remedy = f"wrap it in a function {called}"
        raise RecastError(f"{owner} tells nothing of its arguments: {remedy}") from error
    code = function if inspect.isroutine(function) else type(function).__call__
    for test, kind in (
        (inspect.iscoroutinefunction, "async"),
        (inspect.isasyncgenfunction, "async"),
        (inspect.isgeneratorfunction, "a generator (it yields)"),
    ):
        if test(code):
            raise RecastError(f"{owner} is {kind}: give a plain function {called} that returns")
    if inspect.isclass(function):
        remedy = "make an object of it and name that, or give a function"
        raise RecastError(f"{owner} is a class: {remedy} {called}")
    if inputs is None:
        return
    asked = [name for name, p in parameters.items() if p.kind is Parameter.KEYWORD_ONLY]
    try:
        inspect.signature(function).bind(*inputs, **dict.fromkeys(asked))
    except TypeError as error:
        raise RecastError(
            f"{owner} takes {short(inspect.signature(function))}: give a function {called}"
        ) from error


_SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))


def _set_device(device: torch.device) -> None:
    # The processor is what nobody set, and as a setting of its own slow.
    torch.set_default_device(None if device.type == "cpu" else device)
    while (entered := torch.get_default_device()) != device:  # by a `with` that was not left
        entered.__exit__(None, None, None)


def _set_environ(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


_PROCESS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (os.getcwd, os.chdir),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (lambda: torch.is_autocast_enabled("cpu"), lambda x: torch.set_autocast_enabled("cpu", x)),
    (lambda: torch.is_autocast_enabled("cuda"), lambda x: torch.set_autocast_enabled("cuda", x)),
    *((partial(signal.getsignal, x), partial(signal.signal, x)) for x in _SIGNALS),
    (os.environ.copy, _set_environ),
)
"""How each thing that belongs to the whole process is read and set back."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Around code that is not ours: what it sets for the whole process is set back, so that neither
    numbers nor files of ours hang on it."""
    streams, path = (sys.stdout, sys.stderr), list(sys.path)
    filters, before = list(warnings.filters), [get() for get, _ in _PROCESS]
    files = [_copy_of(number) for number in (1, 2)]
    try:
        yield
    finally:
        for number, copy in enumerate(files, 1):
            if copy is not None:
                os.dup2(copy, number)
                os.close(copy)
        sys.stdout, sys.stderr = map(_reopened, streams, (1, 2))
        # A folder of theirs stays, behind all others.
        sys.path[:] = path + [entry for entry in sys.path if entry not in path]
        warnings.filters[:] = filters  # type: ignore[index]
        for value, (get, set_back) in zip(before, _PROCESS, strict=True):
            if get() != value:
                set_back(value)


def _copy_of(number: int) -> int | None:
    """Of an open file by its number."""
    try:
        return os.dup(number)
    except OSError:
        return None


def _reopened(stream: Any, number: int) -> Any:
    """A stream that they closed, open again; the file under it was not theirs to close."""
    if not getattr(stream, "closed", False):
        return stream
    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
