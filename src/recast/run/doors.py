"""The doors of a verb, tried before anything heavy is imported: a config in, an error or nothing
out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recast.config.check import names_code, refuse_ranks, take
from recast.errors import RecastError
from recast.run.files import refuse_existing
from recast.run.reading import kind_of

_KINDS = {
    "data": (
        ("interactions.parquet", "users.parquet", "items.parquet", "data.json"),
        "is no data folder (no {}): make one with `recast prepare`",
    ),
    "catalog": (("sid.json",), "holds no catalogue ({}): make one with `recast tokenize`"),
    "policy": (("recast.json",), "holds no policy ({}): make one with `recast sft`"),
    "embeddings": (
        ("embeddings.safetensors",),
        "holds no embeddings ({}): give the folder of `recast tokenize`",
    ),
    "encoder": ((), "holds no config.json: give a Hugging Face encoder folder or `minilm`"),
    "model.path": (("config.json",), "holds no model ({}): give a Hugging Face folder"),
}
"""Settings that name a folder: the files that it holds, and what is said of one without."""
PUBLISHED = ("movielens-100k", "minilm")
"""Values of settings that name what is fetched, pinned by its hash."""


def enter(config: Any, config_type: type, *, goes_on: bool = False) -> None:
    """Raise `RecastError` unless the inputs of a verb are there, each of its kind, and its output
    is free and lies in none of them. One that `goes_on`, or resumes, may hold something."""
    take(config, config_type)
    refuse_ranks()
    output = Path(config.output)
    goes_on = goes_on or getattr(config, "resume", False)
    if not (goes_on and output.is_dir()):
        refuse_existing(output)
    settings = vars(config) | {"model.path": getattr(getattr(config, "model", None), "path", None)}
    for name, value in settings.items():
        if value is None or value in PUBLISHED:
            continue
        if name == "texts" and not Path(value).exists():
            raise RecastError(f"{value}: no such file: check the path")
        if name in ("ranker", "guide"):
            require_ranker(name, value)
        if name in _KINDS:
            is_policy = name == "model.path" and (Path(value) / "recast.json").is_file()
            require_kind("policy" if is_policy else name, value)
        is_folder = name in _KINDS or name in ("ranker", "guide")
        if is_folder and output.resolve().is_relative_to(Path(value).resolve()):
            raise RecastError(
                f"output is {config.output!r}, inside {name} {value!r}, which stays as it is: "
                "choose another output"
            )


def require_kind(name: str, folder: str | Path) -> None:
    """Raise `RecastError` unless a folder is what the setting `name` asks for."""
    files, lacks = _KINDS[name]
    missing = [file for file in files if not (Path(folder) / file).is_file()]
    if missing or not Path(folder).is_dir():
        raise RecastError(f"{folder}{kind_of(folder)} {lacks.format(*missing[:1] or files[:1])}")


def require_ranker(name: str, spec: str) -> None:
    """Raise `RecastError` unless `spec` is `module:function` or the folder of a policy."""
    if names_code(spec):
        return
    if not Path(spec).is_dir():
        raise RecastError(
            f"{name} is {spec!r}: there is no such folder; give the folder of a policy of "
            "one-level semantic IDs or module:function"
        )
    require_kind("policy", spec)
