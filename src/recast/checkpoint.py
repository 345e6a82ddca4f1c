"""Writing to disk so that nothing is ever half-written: a temporary name first, then a rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recast.types import RecastError


def refuse_existing(folder: str | Path) -> Path:
    """The path, if nothing is there yet; a run is never written over another one."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RecastError(f"{path} already holds something: remove it or choose another output")
    return path


@contextmanager
def staged_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` if the block ends well, and vanishes if not."""
    path = refuse_existing(folder)
    stage = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        stage.mkdir(parents=True)
        yield stage
        if path.exists():
            path.rmdir()
        stage.rename(path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def staged_file(file: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `file`, replacing it, if the block ends well."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield stage
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)
