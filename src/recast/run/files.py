"""Writing to disk so that nothing is ever half-written: a temporary name first, then a rename.

And reading it back: what was damaged since is an error that names the file.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from polars.exceptions import ComputeError, PanicException, PolarsError
from safetensors import SafetensorError

from recast.types import RecastError

if sys.platform != "win32":
    import fcntl

try:
    from lzma import LZMAError
except ImportError:  # a Python without it unpacks no such member
    LZMAError = zipfile.BadZipFile  # type: ignore[misc, assignment]

LOADING = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    *(AssertionError, MemoryError, ImportError, StrictDataclassError, SafetensorError),
)
"""What transformers, tokenizers and safetensors raise for broken files and missing packages."""

UNPACKING = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError)
"""What zipfile raises for a damaged, an encrypted or an unknown archive once it is open."""

_MOST_JSON = 2**28
"""Bytes of a JSON file; the largest that we know of, a tokenizer of 256,000 words, has 2**25."""


def refuse_existing(folder: str | Path) -> Path:
    """The path, if a folder can be made there and nothing is there yet; a run is never written over
    another one. Raises `RecastError` before any work is done for it."""
    path = Path(folder)
    remedy = "choose another output"
    try:
        if path.is_symlink() and not path.exists():
            raise RecastError(f"{path} is a link that leads nowhere: remove it or {remedy}")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RecastError(f"{path} already holds something: remove it or {remedy}")
        whole = path.resolve()
        above = next(parent for parent in whole.parents if parent.exists())
        for name in (*whole.relative_to(above).parts, _stage_name(whole)):
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                os.lstat(above / name)  # too long a name
    except (OSError, RuntimeError) as error:
        raise RecastError(f"{path} cannot be written ({reason_of(error)}): {remedy}") from error
    # It is renamed to its place when it is whole, which these cannot be.
    if whole == Path.cwd() or os.path.ismount(whole):
        raise RecastError(f"{path} cannot be replaced: name a folder inside it")
    if not above.is_dir():
        raise RecastError(f"{path} cannot be written ({above} is no folder): {remedy}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise RecastError(f"{path} cannot be written (nobody may write to {above}): {remedy}")
    return path


def _stage_name(path: Path) -> str:
    return f".{path.name}.{os.getpid()}.partial"


def kind_of(folder: str | Path) -> str:
    """What a folder that is not the right one is, for its refusal: " (it is ...)" or nothing."""
    path = Path(folder)
    kinds = {
        "recast.json": "a policy",
        "data.json": "a data folder of `recast prepare`",
        "sid.json": "a catalogue of `recast tokenize`",
        "eval.json": "an evaluation",
        "policy/recast.json": f"a run, whose policy is {path / 'policy'}",
    }
    with suppress(OSError, ValueError):
        if path.is_file():
            return " (it is a file)"
        for name, words in kinds.items():
            if (path / name).is_file():
                return f" (it is {words})"
    return ""


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Make the folder and keep every other process that asks out of it for as long as this one
    lives; a folder that was made and stayed empty is removed again.

    Raises `RecastError` when another one is in it, or when it is no folder. Where the file system
    knows no locks nobody is kept out.
    """
    path = Path(folder)
    if not path.is_dir():
        refuse_existing(path)
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(path):
            yield
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                path.rmdir()


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
    stage = path.with_name(_stage_name(path))
    with _writing(path):
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
    """A temporary path that becomes `file`, replacing it, if the block ends well.

    Raises `RecastError` when the block cannot write (a full disk, no permission).
    """
    path = Path(file)
    # Absolute: polars would take a leading ~ for the home folder, Python does not.
    stage = path.absolute().with_name(_stage_name(path))
    with _writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield stage
            stage.replace(path)
        finally:
            stage.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ComputeError) as error:
        # A full disk reaches us as any of these, by the library that was writing.
        raise RecastError(
            f"{path} cannot be written ({reason_of(error)}): free some space or choose another "
            "output"
        ) from error


_DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError),
    *(PolarsError, PanicException, SafetensorError),
)
"""What readers raise for a file that was edited or cut."""


@contextmanager
def reading(path: str | Path, remedy: str) -> Iterator[None]:
    """Around code that reads what Recast wrote; raises `RecastError` when it is damaged."""
    try:
        yield
    except RecastError:
        raise
    except _DAMAGE as error:
        raise RecastError(f"{path} is damaged ({reason_of(error)}): {remedy}") from error


def read_json(file: Path, kind: type, most: int = _MOST_JSON) -> Any:
    """What a JSON file of at most `most` bytes holds, a `kind` (dict, list); never a pipe or a
    device is read.

    Raises what `reading` makes a `RecastError` of.
    """
    if not file.is_file():
        raise ValueError("no plain file" if file.exists() else "no such file")
    with file.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes of JSON")
    value = json.loads(content.decode())
    if not isinstance(value, kind):
        raise ValueError(f"it holds a {type(value).__name__}, no {kind.__name__}")
    return value


def stays_inside(path: str) -> bool:
    """Whether a path that an archive or a config names cannot leave the folder it is taken in, on
    no system."""
    inner = PurePosixPath(path)
    return not (inner.is_absolute() or ".." in inner.parts or "\\" in path or ":" in path)


def require_plain_files(folder: Path) -> None:
    """Raise `RecastError` for a folder with a pipe, a device or a dangling link in it, which other
    libraries would wait for, and for a JSON file that would fill the memory."""
    for file in sorted(folder.iterdir()):
        if not (file.is_file() or file.is_dir()):
            raise RecastError(f"{file} is neither a file nor a folder: remove it")
        if file.suffix == ".json" and file.is_file() and file.stat().st_size > _MOST_JSON:
            size = file.stat().st_size
            raise RecastError(
                f"{file} has {size:,} bytes: give a JSON file of {_MOST_JSON:,} at most"
            )


def reason_of(error: BaseException, length: int = 150) -> str:
    """What another library complains about, on one line of at most `length` characters."""
    text = getattr(error, "strerror", None) or str(error)
    if isinstance(error, KeyError):
        text = f"no {text}"
    if isinstance(error, PolarsError):
        text = text.strip().partition("\n")[0]  # advice on polars' own arguments follows
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = text or type(error).__name__
    return text if len(text) <= length else f"{text[: length - 3]}..."
