"""Writing to disk so that nothing is ever half-written: a temporary name first, then a rename."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from secrets import token_hex

from polars.exceptions import ComputeError
from safetensors import SafetensorError

from recast.errors import RecastError
from recast.run.reading import reason_of

if sys.platform != "win32":
    import fcntl


CHECKPOINTS = "checkpoints"
"""Of a run folder: there as long as the run has not ended."""

_NO_DISK, _IN_RAM = ("/proc", "/sys", "/dev"), "/dev/shm"


class UnwritableError(RecastError):
    """An output that cannot be written, where another one may do."""


def refuse_existing(folder: str | Path) -> Path:
    """The path, if a folder can be made there and nothing is there yet; a run is never written over
    another one. Raises `RecastError` before any work is done for it."""
    path = Path(folder)
    remedy = "choose another output"
    try:
        if path.is_symlink() and not path.exists():
            raise UnwritableError(f"{path} is a link that leads nowhere: remove it or {remedy}")
        if is_ended_run(path):
            with _locked(path):  # it has not ended where another process is in it
                pass
            raise RecastError(
                f"{path} holds a run that was ended: go on with --resume, remove it or {remedy}"
            )
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UnwritableError(f"{path} already holds something: remove it or {remedy}")
        whole = path.resolve()
        above = next(parent for parent in whole.parents if parent.exists())
        for name in (*whole.relative_to(above).parts, _stage_name(whole).name):
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                os.lstat(above / name)  # too long a name
    except (OSError, RuntimeError) as error:
        raise UnwritableError(f"{path} cannot be written ({reason_of(error)}): {remedy}") from error
    if any(whole.is_relative_to(root) for root in _NO_DISK) and not whole.is_relative_to(_IN_RAM):
        raise RecastError(f"{path} lies on no disk: {remedy}")
    # It is renamed to its place when it is whole, which these cannot be.
    if whole == Path.cwd() or os.path.ismount(whole):
        raise UnwritableError(f"{path} cannot be replaced: name a folder inside it")
    if not above.is_dir():
        raise UnwritableError(f"{path} cannot be written ({above} is no folder): {remedy}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UnwritableError(f"{path} cannot be written (nobody may write to {above}): {remedy}")
    return path


def is_ended_run(path: Path) -> bool:
    """Whether a folder holds a run that was begun and has not come to its end, not somebody else's
    folder with one called `checkpoints`."""
    kept = path / CHECKPOINTS
    if not kept.is_dir() or any(not e.name.startswith(("step-", ".")) for e in kept.iterdir()):
        return False
    is_begun = (path / "config.yaml").is_file() or os.listdir(path) == [CHECKPOINTS]
    return is_begun or any(kept.glob("step-*/manifest.json"))


def remove_whole(folder: Path) -> None:
    """Remove a folder, at once or not at all; where nobody may, it stays."""
    stage = _stage_name(folder)
    with suppress(OSError):
        folder.rename(stage)
        _remove(stage)


def _stage_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{token_hex(4)}.partial")


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Make the folder and keep every other process that asks out of it for as long as this one
    lives; folders that were made and stayed empty are removed again.

    Raises `RecastError` when another one is in it, or when it is no folder. Where the file system
    knows no locks nobody is kept out.
    """
    path = Path(folder)
    if not path.is_dir():
        refuse_existing(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(path):
            yield
    finally:
        for empty in made:
            with suppress(OSError):  # it is not
                empty.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    if sys.platform == "win32":  # which opens no folder
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        remedy = "wait for it, or choose another output"
        raise RecastError(f"{path} is in use by another process: {remedy}") from error
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)  # and with it the lock


@contextmanager
def staged_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` if the block ends well, and vanishes if not.

    Raises `RecastError` when the block cannot write (a full disk, no permission).
    """
    path = refuse_existing(folder).resolve()
    with writing(path), _staged(path, Path.mkdir) as stage:
        yield stage
        for file in [entry for entry in stage.rglob("*") if not entry.is_symlink()] + [stage]:
            _to_disk(file)
        if path.exists():
            path.rmdir()
        stage.rename(path)
        _to_disk(path.parent)


@contextmanager
def staged_file(file: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `file`, replacing it, if the block ends well.

    Raises `RecastError` when the block cannot write (a full disk, no permission).
    """
    # Absolute: polars would take a leading ~ for the home folder, Python does not.
    path = Path(file).absolute()
    with writing(path), _staged(path, Path.touch) as stage:
        yield stage
        _to_disk(stage)
        stage.replace(path)
        _to_disk(path.parent)


def remove_partials(path: Path) -> None:
    """Remove the temporary names that processes which are no more left beside `path`."""
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        with suppress(RecastError, OSError), _locked(left):
            _remove(left)


@contextmanager
def _staged(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A name beside `path`, locked so that no other process takes it for a leftover; whatever is
    there in the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(path)
    stage = _stage_name(path)
    try:
        make(stage)
        with _locked(stage):
            yield stage
    finally:
        _remove(stage)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until what was written is on the disk; a rename may otherwise get there first."""
    if path.is_dir() and sys.platform == "win32":  # which opens no folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around code that writes what belongs to `path`; raises `RecastError` when it cannot."""
    try:
        yield
    except RecastError:
        raise
    except Exception as error:
        # A full disk reaches us as any of these, or, from tokenizers, as no type of its own.
        is_kind = isinstance(error, OSError | SafetensorError | ComputeError)
        if not (is_kind or _speaks_of(error, _DISK)):
            raise
        raise UnwritableError(
            f"{path} cannot be written ({reason_of(error)}): {_remedy(error)}"
        ) from error


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_REMEDIES = {
    (errno.EACCES, errno.EPERM): "choose an output that you may write to",
    (errno.EROFS,): "its disk is read-only, choose another output",
    (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR): "choose another output",
    (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP): "choose a shorter, plain output",
    (errno.EIO,): "its disk fails, choose another output",
    (errno.EFBIG,): "files are limited to that size here (ulimit -f), raise it",
    (errno.EMFILE, errno.ENFILE): "too many files are open (ulimit -n), raise it",
}


def _remedy(error: Exception) -> str:
    found = (remedy for codes, remedy in _REMEDIES.items() if _speaks_of(error, codes))
    return next(found, "free some space or choose another output")


def _speaks_of(error: Exception, codes: tuple[int, ...]) -> bool:
    names = [os.strerror(code) for code in codes]
    return getattr(error, "errno", None) in codes or any(name in str(error) for name in names)
