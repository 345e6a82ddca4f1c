"""What tells two runs apart: a setting in, plain data that compares equal between processes out;
files in, their digest out.

Neither knows where a file lies nor when it was written.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import Parameter
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from recast.types import RecastError


def plain(value: Any, name: str, within: tuple[object, ...] = ()) -> Any:
    """A setting as JSON holds it: numbers and texts as they are, a tensor by the hash of its
    bytes, a function by its name, its code and what is bound to it.

    The code is that of a user's function alone: ours changes with the version, which decides
    nothing. What a function reads from elsewhere (other functions, files) does not count.
    `name` is the setting's, `within` the functions that hold this value.
    Raises `RecastError` for a value that another process could not compare.

    >>> plain({"w": (1, 2.5)}, "signal_args")
    {'w': [1, 2.5]}
    """
    if isinstance(value, Path):
        value = str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not callable(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(entry, name, within) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, name, within) for entry in value]
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        kind = [str(value.dtype), list(value.shape)]
        return {"tensor": kind, "sha256": hashlib.sha256(data).hexdigest()}
    if callable(value):
        return _function(value, name, within)
    raise RecastError(
        f"{name} holds a {type(value).__name__}, which cannot be compared with that of a finished "
        "run: give numbers, texts, tensors and functions, or name a function as module:function"
    )


def _function(value: Callable[..., Any], name: str, within: tuple[object, ...]) -> dict[str, Any]:
    bound: list[Any] = []
    function = value
    while isinstance(function, partial):
        bound = [*function.args, *bound]
        function = function.func
    is_object = not hasattr(function, "__qualname__")
    home = type(function) if is_object else function
    found: dict[str, Any] = {"function": f"{home.__module__}:{home.__qualname__}"}
    if any(function is other for other in within):  # it calls itself
        return found
    within = (*within, function)
    defaults = plain(_defaults(function), name, within)
    values = plain(_defaults(value), name, within)
    # A default that is set to itself is not set.
    found |= {key: v for key, v in values.items() if key not in defaults or v != defaults[key]}
    if bound:
        found["bound"] = plain(bound, name, within)
    if home.__module__.partition(".")[0] != "recast":
        found["code"] = _code(home)
        holds = dict(vars(function)) if is_object else {}
        if isinstance(function, FunctionType):
            holds = dict(inspect.getclosurevars(function).nonlocals)
        found |= {f"holds.{key}": plain(held, name, within) for key, held in holds.items()}
    return found


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in functions that tell nothing
        return {}
    return {n: p.default for n, p in parameters.items() if p.default is not Parameter.empty}


def _code(home: Any) -> str | None:
    """Digest of the source; None where there is none (typed at a prompt, compiled)."""
    try:
        source = inspect.getsource(home)
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def digest(path: Path, patterns: Iterable[str], ignored: Iterable[str] = ()) -> str:
    """Sha256 of a file, or of those files of a folder that match one of the patterns, with their
    names; in a JSON object the keys `ignored` do not count."""
    if path.is_file():
        return sha256_of(path)
    files = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
    total = hashlib.sha256()
    for file in sorted(files):
        content = sha256_of(file)
        if ignored and file.suffix == ".json":
            facts = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(facts, dict):
                facts = {key: facts[key] for key in facts if key not in ignored}
            content = json.dumps(facts, sort_keys=True)
        total.update(f"{file.relative_to(path).as_posix()}\n{content}\n".encode())
    return total.hexdigest()


def sha256_of(file: Path) -> str:
    """Of a file's content, read piece by piece."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
