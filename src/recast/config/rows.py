"""What tells the rows of a comparison apart besides their method: the setting `rl`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recast.config.check import check_text, refuse_code
from recast.config.settings_file import read_settings
from recast.config.train import RLConfig
from recast.errors import RecastError, in_short, require

_NAME = re.compile(r"\w[\w-]{0,63}")
_PLACE = ("data", "policy", "output", "resume", "device", "threads", "trackio")
_BUDGET = ("steps", "prompts_per_step", "group_size", "mini_batch_rows", "lr", "seed")
_VALIDATION = ("eval_every", "valid_rows", "valid_metrics")
SHARED = (*_PLACE, *_BUDGET, *_VALIDATION)
"""Settings of `recast rl` that the comparison has for all rows."""


def take_rows(config: Any) -> None:
    """Put in place of every file its settings, without those that all rows share.

    Raises `RecastError` for settings that are none of `recast rl`, and for shared ones that are no
    part of a file.
    """
    rows = {}
    for name, given in config.rl.items():
        require(name in config.methods, f"rl.{name}", "given", "name it in methods too")
        remedy = "it names a folder: at most 64 letters, digits, - and _"
        require(bool(_NAME.fullmatch(name)), "methods", name, remedy)
        require(name != "start", "methods", name, "every table has that row, choose another name")
        rows[name] = _settings(f"rl.{name}", given)
    object.__setattr__(config, "rl", rows)


def _settings(where: str, given: Any) -> dict[str, Any]:
    """Those of one row."""
    is_file = isinstance(given, str | Path)
    if is_file:
        check_text(where, str(given))
        try:
            given = read_settings(str(given))
        except OSError as error:
            said = f"{where} is {in_short(str(given))}: {error.strerror}"
            raise RecastError(f"{said}: check the path") from error
        refuse_code(where, given)
    remedy = "give settings of recast rl, or a YAML file of them"
    require(isinstance(given, dict) and bool(given), where, given, remedy)
    for key in given:
        require(key in RLConfig.__dataclass_fields__, where, key, "recast rl has no such setting")
        remedy = "all rows have that of the comparison, leave it out"
        require(is_file or key not in SHARED, where, key, remedy)
    method = given.get("method", "")
    require(isinstance(method, str), f"{where}.method", method, "give the name of a method")
    return {key: value for key, value in given.items() if key not in SHARED}


@contextmanager
def telling(config: Any, name: str) -> Iterator[None]:
    """Whatever is refused of a row that has settings of its own is said of that row."""
    try:
        yield
    except RecastError as error:
        if name not in config.rl:
            raise
        raise RecastError(f"rl.{name}: {error}") from error
