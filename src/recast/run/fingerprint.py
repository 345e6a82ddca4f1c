"""What tells two runs apart: a setting in, plain data that compares equal between processes out;
files in, their digest out.

Neither knows where a file lies nor when it was written.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from inspect import Parameter
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recast.config.check import RANKERS
from recast.run.doors import PUBLISHED, enter, ranker_folder
from recast.run.environment import version_of
from recast.run.launched import join
from recast.run.world import require_same, world
from recast.types import RecastError, require

MACHINE = (
    *("threads", "device", "micro_batch_tokens", "pass_tokens"),
    *("output", "resume", "checkpoint_s", "fsdp_size", "trackio"),
)
"""Settings that move numbers by rounding at most, and those that move none."""

_CATALOG = ("catalog.parquet", "sid.json")
_POLICY = (
    "recast.json",
    "baseline.json",
    "config.json",
    "adapter_config.json",
    *("tokenizer.json", "tokenizer_config.json", "*.jinja"),  # by which prompts are rendered
    "*.safetensors",
    *(f"catalog/{f}" for f in _CATALOG),
)
_MODEL = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"),
    *(f"catalog/{f}" for f in _CATALOG),
)
_ENCODER = tuple(f"**/*.{kind}" for kind in ("json", "safetensors", "txt", "model"))
_READ: dict[str, tuple[str, ...]] = {
    "interactions": ("*",),
    "rows": tuple(f"**/*.{kind}" for kind in ("parquet", "csv", "json", "jsonl", "txt")),
    "items": (),
    "items_as": (),
    "encoder": _ENCODER,
    "tokenizer": ("*.json", "*.txt", "*.model", "*.jinja"),
    "data": ("interactions.parquet", "rows.parquet", "items.parquet", "data.json"),
    "catalog": (*_CATALOG, "embeddings.safetensors"),
    "extend": (*_CATALOG, "embeddings.safetensors", "config.yaml"),
    "model.path": _MODEL,
    "policy": _POLICY,
    "ranker": _POLICY,
    "guide": _POLICY,
    "plain_text": (),
    "embeddings": (*_CATALOG, "embeddings.safetensors"),
}
"""Settings that name a file or a folder, and the files of the folder that a verb reads."""
_UNREAD = ("source", "sha256", "digest")
"""Keys of `data.json` that tell where the events came from, and the digest that covers them."""


class Input(NamedTuple):
    """A file, or a folder and the patterns of its files that decide."""

    path: Path
    patterns: tuple[str, ...]

    def digest(self) -> str:
        return digest(self.path, self.patterns, _UNREAD)


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
    if (home.__module__ or "").partition(".")[0] != "recast":
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


def digest_texts(texts: Iterable[str]) -> str:
    """Sha256 of texts, their number and their order."""
    total = hashlib.sha256()
    for text in texts:
        total.update(json.dumps(text).encode())
    return total.hexdigest()


def sha256_of(file: Path) -> str:
    """Of a file's content, read piece by piece."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(facts: dict[str, Any], folder: Path, *names: str) -> dict[str, Any]:
    """The facts of a folder with size and sha256 of these files of it, and a digest of themselves:
    what was changed since is found by `check_seal` and `check_stamp`."""
    facts = facts | {"files": {name: _stamp(folder / name) for name in names}}
    return facts | {"digest": _digest(facts)}


def check_seal(facts: Mapping[str, Any]) -> None:
    """Raise `ValueError` for facts that were changed; those of earlier releases have no digest."""
    if "digest" in facts and facts["digest"] != _digest(facts):
        raise ValueError("it was changed since it was written")


def check_stamp(file: Path, facts: Mapping[str, Any]) -> str | None:
    """Sha256 of a file, which is as its folder's facts say; None where they, of an earlier release,
    say nothing. Raises `ValueError` for a file that was changed."""
    stamp = facts.get("files", {}).get(file.name)
    if stamp is None:
        return None
    # The size first, since a sparse file takes long to read.
    if file.stat().st_size != stamp["bytes"] or _stamp(file) != stamp:
        raise ValueError(f"{file.name} was changed since it was written")
    return str(stamp["sha256"])


def _stamp(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _digest(facts: Mapping[str, Any]) -> str:
    """Of all facts but the digest itself."""
    content = json.dumps({key: facts[key] for key in sorted(facts) if key != "digest"})
    return hashlib.sha256(content.encode()).hexdigest()


def inputs_of(settings: dict[str, Any]) -> dict[str, Input]:
    """What a verb reads, by the dotted name of the setting that names it.

    >>> sorted(inputs_of({"data": "d", "model": {"path": None}, "seed": 0, "ranker": "mine:f"}))
    ['data']
    """
    named = dict(flat(settings))
    for key in RANKERS:
        if isinstance(named.get(key), str):
            named[key] = ranker_folder(named[key])
    if named.get("items_as") in ("codes", "item"):
        del named["items_as"]  # no file
    return {
        key: Input(_place(key, named[key]), patterns)
        for key, patterns in _READ.items()
        if isinstance(named.get(key), str | Path) and named[key] not in PUBLISHED
    }


def _place(key: str, value: str | Path) -> Path:
    path = Path(os.path.abspath(value))
    # FOLDER/NAME is one of several data sets of a folder.
    return path.parent if key == "rows" and not path.exists() else path


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name.

    >>> dict(flat({"seed": 0, "model": {"path": "m"}}))
    {'seed': 0, 'model.path': 'm'}
    """
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def meet(config: Any, config_type: type, *, goes_on: bool = False) -> None:
    """Enter a verb, together with the other ranks if there are any. Raises `RecastError` unless all
    have the same settings, versions and files, and for ranks that cannot share the weights so."""
    enter(config, config_type, goes_on=goes_on)
    join()
    size, asked = world().size, getattr(config, "fsdp_size", 1)
    remedy = f"it has to divide the {size} ranks" if size > 1 else "start several, with torchrun"
    require(size % asked == 0, "fsdp_size", asked, remedy)
    if size == 1:
        return
    require_same({"kind of settings": config_type.__name__})
    settings = asdict(config)
    versions = {name: version_of(name) for name in ("recast-rl", "torch", "transformers")}
    require_same(versions | dict(flat(plain(settings, "settings"))))
    require_same({f"what {k} holds": source.digest() for k, source in inputs_of(settings).items()})
