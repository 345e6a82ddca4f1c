"""`module:function` in, the function out: how a user's own part is named on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from recast.types import RecastError


def load_function(kind: str, name: str) -> Callable[..., Any]:
    """The function of a `module:function`, looked for in the working directory first.

    Raises `RecastError` naming the setting `kind` when the module does not import or has no such
    function.
    """
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a console script starts without it
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise RecastError(f"{kind} is {name!r}: its module needs {error.name!r}") from error
        raise RecastError(
            f"{kind} is {name!r}: there is no module {module_name!r} in {here} or among the "
            "installed ones: run from its folder, or install it"
        ) from error
    except (Exception, SystemExit) as error:
        raise RecastError(
            f"{kind} is {name!r}: its module does not import ({type(error).__name__}: {error}): "
            "mend it, --debug shows the trace"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RecastError(f"{kind} is {name!r}: {module_name} has no function {function_name!r}")
    found: Callable[..., Any] = function
    return found
