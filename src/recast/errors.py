"""Errors, and what the checks of settings need, without torch, which takes longer to import."""

from __future__ import annotations

from numbers import Real
from typing import Literal

LogprobSpace = Literal["full", "level", "trie"]
"""Over which tokens a log-probability is normalised: the whole vocabulary, the codes of the level,
or the children that the trie allows."""


class RecastError(ValueError):
    """Bad input: one line that names what was given, what is wrong with it and the remedy."""


def require(condition: bool, name: str, value: object, remedy: str) -> None:
    """Raise `RecastError` naming the setting, its value and what to do, unless `condition`."""
    if not condition:
        raise RecastError(f"{name} is {in_short(value)}: {remedy}")


def in_short(value: object, length: int = 200) -> str:
    """A value as Python writes it, on one line and cut to so many characters.

    >>> in_short("x" * 100, 12)
    "'xxxxxxxx..."
    """
    try:
        text = repr(value)
    except Exception as error:  # a number of too many digits, or a type of the caller's
        text = f"a {type(value).__name__} that Python cannot write ({type(error).__name__})"
    text = " ".join(text.split()) if "\n" in text else text  # arrays
    return text if len(text) <= length else f"{text[: length - 3]}..."


def one_line(text: str, length: int) -> str:
    """A text without line breaks and what cannot be printed, cut to so many characters.

    >>> one_line("too\\n long ", 7)
    'too ...'
    """
    text = "".join(c if c.isprintable() else " " for c in text[: 9 * length])
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


LARGEST_FACTOR = 1e6
"""Of a setting of a signal or a loss: far beyond use, and its products still fit into float32."""


def require_range(
    name: str, value: object, least: float, most: float, *, above: bool = False
) -> None:
    """Raise `RecastError` unless it is a number from `least`, or `above` it, to `most`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    inside = is_number and least <= value <= most and not (above and value == least)  # type: ignore[operator]
    start = f"above {least:g}, up" if above else f"from {least:g}"
    require(inside, name, value, f"give a number {start} to {most:g}")
