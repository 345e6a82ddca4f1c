"""What a user's part did wrong: one line that names it, and a file with the group that shows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from recast.config.user_code import place_of, short, told, undisturbed
from recast.types import RecastError

FILE = "failed_group.json"


@contextmanager
def blame(owner: str, function: Callable[..., Any]) -> Iterator[None]:
    """What is raised inside a user's function is a line about it, not a bug of recast, and what it
    sets for the whole process is set back. An interruption stays one."""
    try:
        with undisturbed():
            yield
    except (RecastError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit among others
        where = place_of(function, error)
        raise RecastError(
            f"{owner}{where} failed ({told(error)}): mend it, --debug shows the trace"
        ) from error


def show(content: dict[str, Any], folder: str | Path) -> str:
    """Write a group into `folder`, or beside it while there is none, and say where it is; nothing
    without a folder."""
    if not folder:
        return ""
    folder = Path(folder)
    file = folder / FILE if folder.is_dir() else folder.with_name(f"{folder.name}.{FILE}")
    shown = {name: _shown(value) for name, value in content.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(shown, indent=2, default=short) + "\n")
    except OSError as error:
        return f"; the group cannot be written to {file} ({error.strerror})"
    return f"; the group is in {file}"


def _shown(value: Any) -> Any:
    if isinstance(value, Tensor):
        try:
            return value.tolist()
        except (RuntimeError, NotImplementedError):  # without values, as on the device meta
            pass
    return value if value is None or isinstance(value, int | float | str | list) else short(value)
