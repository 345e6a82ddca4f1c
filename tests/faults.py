"""A disk that fails: the n-th time that this process opens, makes or renames something to write.

Python tells of each such call before it is made (`sys.addaudithook`), whoever makes it; libraries
that write by themselves (polars, safetensors) are asked at their door.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recast.run import checkpoint

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Disk:
    """What happens to what is below `root`: the calls from `first` to `last` fail by `code`."""

    root: Path
    code: int
    first: int
    last: int
    calls: list[str] = field(default_factory=list)

    def ask(self, event: str, *paths: object) -> None:
        """Raises `OSError` for a call that is to fail."""
        inside = [p for p in paths if isinstance(p, str | os.PathLike) and self._holds(p)]
        if not inside:
            return
        self.calls.append(f"{event} {os.path.relpath(inside[0], self.root)}")
        if self.first <= len(self.calls) <= self.last:
            raise OSError(self.code, os.strerror(self.code), os.fspath(inside[0]))

    def _holds(self, path: str | os.PathLike[str]) -> bool:
        return os.path.abspath(path).startswith(f"{self.root}{os.sep}")


_disks: list[Disk] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if not _disks:
        return
    if event == "open":
        path, mode, flags = args
        writes = isinstance(flags, int) and flags & _WRITES
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            _disks[-1].ask(event, path)
    elif event in ("os.mkdir", "os.rename", "os.truncate"):
        _disks[-1].ask(event, *args[:2])


@contextmanager
def failing(root: Path, code: int, first: int, last: int = sys.maxsize) -> Iterator[Disk]:
    """The calls below a folder from the `first` (1) to the `last` fail."""
    if not _disks:
        _listen()
    disk = Disk(root, code, first, last)
    _disks.append(disk)
    with pytest.MonkeyPatch.context() as patch:
        _ask_before(patch, disk, checkpoint, "save_file", 1)
        _ask_before(patch, disk, pl.DataFrame, "write_parquet", 1)
        _ask_before(patch, disk, os, "fsync", None)
        try:
            yield disk
        finally:
            _disks.remove(disk)


_listening: list[bool] = []


def _listen() -> None:
    """A hook stays for as long as the process."""
    if not _listening:
        _listening.append(True)
        sys.addaudithook(_hear)


def _ask_before(
    patch: pytest.MonkeyPatch, disk: Disk, owner: Any, name: str, place: int | None
) -> None:
    """The argument at `place` is the path; of a handle the system tells it."""
    inner: Callable[..., Any] = getattr(owner, name)

    def asking(*args: Any, **named: Any) -> Any:
        path = args[place] if place is not None else os.readlink(f"/proc/self/fd/{args[0]}")
        disk.ask(name, path)
        return inner(*args, **named)

    patch.setattr(owner, name, asking)
