"""Reading what is on a disk, ours or not: what was damaged since is an error that names it."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from polars.exceptions import PanicException, PolarsError
from safetensors import SafetensorError

from recast.errors import RecastError, one_line

try:
    from lzma import LZMAError
except ImportError:  # a Python without it unpacks no such member
    LZMAError = zipfile.BadZipFile  # type: ignore[misc, assignment]

LOADING = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    *(AssertionError, MemoryError, ImportError, StrictDataclassError, SafetensorError),
    struct.error,
)
"""What transformers, tokenizers and safetensors raise for broken files and missing packages."""

UNPACKING = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError)
"""What zipfile raises for a damaged, an encrypted or an unknown archive once it is open."""

_MOST_JSON = 2**28
"""Bytes of a JSON file; the largest that we know of, a tokenizer of 256,000 words, has 2**25."""

_OF_MODELS = (".json", ".safetensors", ".txt", ".model", ".jinja")


def kind_of(folder: str | Path) -> str:
    """What a folder that is not the right one is, for its refusal: " (it is ...)" or nothing."""
    path = Path(folder)
    kinds = {
        "recast.json": "a policy",
        "data.json": "a data folder of `recast prepare`",
        "sid.json": "a catalogue of `recast tokenize`",
        "eval.json": "an evaluation",
        "baseline.json": "a baseline of `recast baselines`",
        "baselines.json": "what `recast baselines` wrote, a folder for each baseline",
        "policy/recast.json": f"a run, whose policy is {path / 'policy'}",
    }
    with suppress(OSError, ValueError):
        if path.is_file():
            return " (it is a file)"
        for name, words in kinds.items():
            if (path / name).is_file():
                return f" (it is {words})"
    return ""


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
    value = json.loads(content.decode(), object_pairs_hook=_unique)
    if not isinstance(value, kind):
        raise ValueError(f"it holds a {type(value).__name__}, no {kind.__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        twice = next(key for key in keys if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return keys


def stays_inside(path: str) -> bool:
    """Whether a path that an archive or a config names cannot leave the folder it is taken in, on
    no system."""
    inner = PurePosixPath(path)
    return not (inner.is_absolute() or ".." in inner.parts or "\\" in path or ":" in path)


def require_plain_files(folder: Path) -> None:
    """Raise `RecastError` for a folder with a pipe, a device or a dangling link in it, which other
    libraries would wait for, with a folder named as a file of a model is, and for a JSON file that
    would fill the memory."""
    for file in sorted(folder.iterdir()):
        if not (file.is_file() or file.is_dir()):
            raise RecastError(f"{file} is neither a file nor a folder: remove it")
        if file.is_dir() and file.suffix in _OF_MODELS:
            raise RecastError(f"{file} is a folder, where a file of a model is read: remove it")
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
    if "trust_remote_code" in text:  # of transformers, which advises to run what we never run
        text = "it needs code of its own, which is never run"
    return one_line(text, length) or type(error).__name__
