"""What tells the rows of a comparison apart besides their method: the setting `rl`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from recast.config.check import refuse_code
from recast.config.settings_file import read_settings
from recast.config.train import RLConfig
from recast.errors import RecastError, require

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
        fits = _NAME.fullmatch(name) and name != "start"
        require(bool(fits), "methods", name, "it names a folder: letters, digits, - and _")
        rows[name] = _settings(f"rl.{name}", given)
    object.__setattr__(config, "rl", rows)


def _settings(where: str, given: Any) -> dict[str, Any]:
    """Those of one row."""
    is_file = isinstance(given, str | Path)
    if is_file:
        try:
            given = read_settings(str(given))
        except OSError as error:
            raise RecastError(f"{where} is {str(given)!r}: {error.strerror}") from error
        refuse_code(where, given)
    remedy = "give settings of recast rl, or a YAML file of them"
    require(isinstance(given, dict) and bool(given), where, given, remedy)
    for key in given:
        require(key in RLConfig.__dataclass_fields__, where, key, "recast rl has no such setting")
        remedy = "all rows have that of the comparison, leave it out"
        require(is_file or key not in SHARED, where, key, remedy)
    return {key: value for key, value in given.items() if key not in SHARED}
