"""One object a line, as JSON or as a Python literal, plain or gzip: a file in, its objects out.

The first line decides which of the two a file holds. Literals go through `ast.literal_eval`, which
runs no code. A large file says how far it is.
"""

from __future__ import annotations

import ast
import gzip
import json
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

from recast.run.reading import reason_of
from recast.run.stage import LINE_EVERY_S, duration
from recast.types import RecastError, in_short, one_line

_LONGEST = 2**22
"""Bytes of a line, which bounds the memory; the longest of Amazon's metadata have about 2**18."""

_REMEDY = "give one object a line, as JSON or as a Python literal"


class Line(NamedTuple):
    """An object and the number of its line, from 1."""

    number: int
    fields: dict[str, Any]


def read_lines(file: Path) -> Iterator[Line]:
    """The objects of a file, in order; blank lines are skipped.

    Raises `RecastError` with the line for a damaged archive, text that is no UTF-8, a line that is
    no object or too long, and for a file without any.
    """
    parse: Callable[[str], Any] | None = None
    number = 0
    try:
        if not file.is_file():
            what = "is no plain file" if file.exists() else "is not there"
            raise RecastError(f"{file} {what}: give a file of lines")
        with file.open("rb") as raw, _unpacked(raw) as stream:
            progress = _Progress(file)
            while content := stream.readline(_LONGEST + 1):
                number += 1
                if len(content) > _LONGEST:
                    raise ValueError(f"it is longer than {_LONGEST:,} bytes")
                text = content.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not text:
                    continue
                parse = parse or _parser(text)
                fields = parse(text)
                if not isinstance(fields, dict):
                    raise ValueError(f"it holds a {type(fields).__name__}")
                yield Line(number, fields)
                progress.say(raw.tell(), number)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecastError(
            f"{file} is damaged behind line {number:,} ({reason_of(error)}): fetch it again"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, RecastError):
            raise
        reason = reason_of(error) if str(error) else "it is nested too deep"
        raise RecastError(f"{file}, line {number:,} is no object ({reason}): {_REMEDY}") from error
    except OSError as error:
        raise RecastError(f"{file} cannot be read ({reason_of(error)}): check the file") from error
    if parse is None:
        raise RecastError(f"{file} is empty: {_REMEDY}")


def _unpacked(raw: BufferedIOBase) -> BufferedIOBase:
    """The stream itself, or what gzip makes of it: names do not always say which."""
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if is_gzip else raw


def _parser(text: str) -> Callable[[str], Any]:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        is_literal = text.startswith("{") and not text.startswith('{"')
        if is_literal:
            return _literal
        raise ValueError(reason_of(error)) from error
    return _json


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON, {error.msg} at character {error.pos + 1}") from error


def _literal(text: str) -> Any:
    """A Python literal; strings with odd escapes, of which Python warns, are as they are."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except SyntaxError as error:
        raise ValueError(f"no Python literal, {one_line(error.msg, 80)}") from error
    except ValueError as error:
        raise ValueError("no Python literal; code is never run") from error


class _Progress:
    """A line every few seconds: how much of a file is read, and how long the rest takes."""

    def __init__(self, file: Path) -> None:
        self._file, self._size = file, file.stat().st_size
        self._began = self._said = time.monotonic()

    def say(self, position: int, number: int) -> None:
        if number % 1024 or (now := time.monotonic()) - self._said < LINE_EVERY_S:
            return
        self._said = now
        done = position / max(self._size, 1)
        left = duration((now - self._began) * (1 / done - 1)) if done else "some time"
        with suppress(OSError):  # a reader that left does not end the work
            print(f"{self._file.name}: {done:.0%}, {number:,} lines, {left} left", flush=True)


def text_of(value: Any) -> str:
    """A value of a line as text: texts and numbers, those of a list one after the other.

    >>> text_of(["Beauty", ["Skin Care", None], 3])
    'Beauty Skin Care 3'
    """
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(text_of, value)))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    # A lone surrogate, which JSON can write, is no UTF-8.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else str(value)


def field_of(line: Line, key: str, file: Path) -> Any:
    """What a line holds under a key; raises `RecastError` with the line where that is nothing."""
    value = line.fields.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        holds = one_line(", ".join(map(str, line.fields)), 120)
        raise RecastError(
            f"{file}, line {line.number:,} has no {key!r} (it holds {holds}): mend the line, or "
            "drop it"
        )
    return value


def id_of(line: Line, key: str, file: Path, *, may_lack: bool = False) -> str | None:
    """The id under a key, without white space around it; None where it `may_lack` one.

    Raises `RecastError` with the line for a key that is not there and for what is no id.
    """
    value = line.fields.get(key)
    if may_lack and (value is None or value == ""):
        return None
    value = field_of(line, key, file)
    is_id = isinstance(value, str | int) and not isinstance(value, bool)
    if not is_id or text_of(value) != str(value):  # a lone surrogate is no UTF-8
        raise RecastError(
            f"{file}, line {line.number:,}: {key} is {in_short(value, 62)}: give a UTF-8 text or "
            "an integer"
        )
    return str(value).strip()
