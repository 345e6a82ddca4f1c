"""A name and the names there are in; `RecastError` out where it is none of them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from recast.config.plugin import is_path
from recast.types import RecastError


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` for the closest known name, or nothing."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"did you mean {near[0]!r}? " if near else ""


def require_ours(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise `RecastError` with the nearest name unless a part of that kind is one of ours."""
    if is_path(name):
        raise RecastError(f"{kind} is {name!r}: name the function too, {name}:mine")
    if name not in known:
        raise RecastError(
            f"{kind} is {name!r}: {nearest(name, known)}choose one of {', '.join(known)}, "
            "or module:function"
        )
