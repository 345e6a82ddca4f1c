"""How a run is started, which is no setting of it: arguments in; the launcher and the rest out."""

from __future__ import annotations

import re
from typing import NamedTuple

from recast.errors import RecastError, in_short

LAUNCHERS = ("ray",)
_MOST = 100_000


class Launch(NamedTuple):
    """What starts the processes of a run."""

    launcher: str
    """Of `LAUNCHERS`."""
    workers: tuple[int, int]
    """At least and at most."""


def split_launch(args: list[str], *, has_workers: bool = False) -> tuple[list[str], Launch | None]:
    """Arguments without `--launcher ray --workers MIN:MAX`, and what these say. Of a verb that
    `has_workers` as a setting, these are the launcher's only where there is one.

    >>> split_launch(["--seed", "3", "--launcher=ray", "--workers", "1:4"])
    (['--seed', '3'], Launch(launcher='ray', workers=(1, 4)))
    """
    if has_workers and not any(arg.partition("=")[0] == "--launcher" for arg in args):
        return args, None
    given: dict[str, str] = {}
    left: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, has_value, value = arg.partition("=")
        if name in ("--launcher", "--workers"):
            given[name[2:]] = value if has_value else next(rest, "")
        else:
            left.append(arg)
    if not given:
        return left, None
    launcher = given.get("launcher")
    if launcher not in LAUNCHERS:
        raise RecastError(
            f"launcher is {in_short(launcher)}: give {' or '.join(LAUNCHERS)}, or start the "
            "processes with torchrun"
        )
    return left, Launch(launcher, parse_workers(given.get("workers", "")))


def parse_workers(text: str) -> tuple[int, int]:
    """MIN:MAX, or one number for both.

    >>> parse_workers("1:4"), parse_workers("2")
    ((1, 4), (2, 2))
    """
    found = re.fullmatch(r"([0-9]{1,6})(?::([0-9]{1,6}))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most <= _MOST:
        raise RecastError(
            f"workers is {in_short(text)}: give MIN:MAX, two whole numbers from 1 to {_MOST:,} in "
            "this order, such as 1:4"
        )
    return least, most
