"""Checks that configs share; each raises `RecastError` with the name and the value."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from os import PathLike, fspath
from typing import Any, cast, get_origin, get_type_hints

from recast.types import require


def make_plain(config: object) -> None:
    """What Python callers mean as what a settings file holds: a `Path` as text, a number of numpy
    or torch as Python's, one text where a list is meant, a dict for nested settings.

    Raises `RecastError` for a nested setting that does not exist.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = _plain(getattr(config, name))
        if isinstance(value, str) and get_origin(hint) is list:
            value = [value]
        if isinstance(value, dict) and is_dataclass(hint):
            known = [field.name for field in fields(hint)]
            for key in value:
                require(key in known, name, value, f"choose from {', '.join(known)}")
            value = cast(type, hint)(**value)
        object.__setattr__(config, name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def check_seed(seed: int) -> None:
    require(0 <= seed < 2**31, "seed", seed, "give a whole number from 0 to 2147483647")


def no_empty(config: object, *names: str) -> None:
    """An empty text is most often a variable that was never set."""
    for name in names:
        value = getattr(config, name)
        require(value != "", name, value, "give a name or leave it out")


def at_least(config: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        fits = value is None or least <= value < math.inf
        require(fits, name, value, f"give {least} or more")
