"""Columns by name: what the settings call and what the file holds in, one line per mismatch out."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence

from recast.types import RecastError, in_short

ROW_ORDER = "row_order"
"""In place of the name of a time column: the events happened in the order of the file's rows."""


GROUNDED = ("row_id", "text")
"""Columns of texts to ground."""

_FIXED = (*GROUNDED, "key", "pid", "sid", "dense_caption")
"""These and the columns of OpenOneRec's files: no setting names them."""


def choose_columns(file: str, present: Sequence[str], columns: dict[str, str]) -> dict[str, str]:
    """Those of `columns` (settings to names) to read: all but a time that is `ROW_ORDER`.

    Raises `RecastError` unless each is there and no name is there twice. A setting of several
    columns is called `text 0`, `text 1` and so on.
    """
    twice = [name for name, count in Counter(present).items() if count > 1]
    if twice:
        raise RecastError(
            f"{file} has the column {named(twice[0])} more than once: rename or drop one of them"
        )
    if columns.get("time") == ROW_ORDER:
        if ROW_ORDER in present:
            raise RecastError(
                f"{file} has a column {ROW_ORDER!r}, which as time means the order of the rows: "
                "rename the column"
            )
        columns = {setting: name for setting, name in columns.items() if setting != "time"}
    for setting, column in columns.items():
        if column not in present:
            advice = _advice(present, columns, setting)
            raise RecastError(f"{file} has no column {named(column)}: {advice}")
    return columns


def _advice(present: Sequence[str], columns: dict[str, str], setting: str) -> str:
    for separator, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(present) == 1 and separator in present[0]:
            return f"its header is separated by {word}, write it with commas"
    if setting in _FIXED:
        return f"rename one of {', '.join(present)[:200]} to {columns[setting]}"
    free = [name for name in present if name not in columns.values()]
    near = difflib.get_close_matches(
        columns[setting], [name[:80] for name in free], n=1, cutoff=0.0
    )
    choices = [f"one it has, the nearest is {named(near[0])}"] if near else []
    if setting == "time":
        choices.append(f"{ROW_ORDER} if its rows are in the order of time")
    if not choices:
        return "add it to the file"
    return f"set {setting.split(maxsplit=1)[0]} to {', or to '.join(choices)}"


def named(value: object) -> str:
    """A name or value out of a file for a message; of a binary file it can be any length."""
    return in_short(value, 62)
