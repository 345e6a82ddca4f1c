"""Processes that work at once: a function and its arguments in, results out as they come.

A worker is a fresh interpreter that imports the function and takes one argument after another. It
ends with the process that started it, by a signal that lets its work keep what it has
(`recast.run.stop`).
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from recast.errors import RecastError
from recast.run.stop import listening


def in_workers(
    function: Callable[[Any], Any],
    arguments: Iterator[Any],
    done: Callable[[Any, Any], None],
    count: int,
) -> None:
    """Call `function`, of a module's own, with every argument in one of `count` processes; `done`
    gets argument and result here. The next argument is asked for when somebody is free for it.

    Raises what the function raised, with the worker's trace as a note, and `RecastError` where a
    worker is gone; the others are then asked to end, and waited for.
    """
    context = get_context("spawn")
    busy: dict[Any, tuple[Any, Any]] = {}
    try:
        for argument in arguments:
            if len(busy) < count:
                connection, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, function), daemon=True)
                process.start()
                theirs.close()
            else:
                connection, process = _receive(busy, done)
            connection.send(argument)
            busy[connection] = process, argument
        while busy:
            connection, process = _receive(busy, done)
            connection.close()
            process.join()
    finally:
        for process, _ in busy.values():
            process.terminate()
        for process, _ in busy.values():
            process.join()


def _receive(busy: dict[Any, Any], done: Callable[[Any, Any], None]) -> tuple[Any, Any]:
    """The first worker that is free again."""
    connection: Any = wait(list(busy))[0]
    process, argument = busy[connection]
    try:
        result, error = connection.recv()
    except (EOFError, ConnectionError) as gone:
        process.join()
        raise RecastError(
            f"a worker process ended by itself (exit code {process.exitcode}), for lack of memory "
            "most often: set workers to 1 and run the same command again, it goes on"
        ) from gone
    if error is not None:
        raise error
    del busy[connection]
    done(argument, result)
    return connection, process


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a worker. Ctrl-C reaches all processes of a terminal: here it is the parent's to
    answer, who then sends SIGTERM."""
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    try:
        with listening():
            while True:
                connection.send(_answer(function, connection.recv()))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass


def _answer(function: Callable[[Any], Any], argument: Any) -> tuple[Any, Exception | None]:
    try:
        return function(argument), None
    except RecastError as error:
        return None, error
    except Exception as error:  # of any type, which the parent may not know
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.add_note(traceback.format_exc())
        return None, told


def _follow() -> None:
    """End this process once its parent is gone."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
