"""`module:function` in, the function out: how a user's own part is named on the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from recast.config.user_code import told, undisturbed
from recast.errors import RecastError


def load_function(kind: str, name: str) -> Callable[..., Any]:
    """The function of a `module:function`, looked for in the working directory first; the module
    may be a file's path instead, `./my_signals.py:mine`.

    A file of a name that is taken, by Python (`signal.py`) or a package (`torch.py`), is loaded all
    the same and shadows nothing: its folder stands last on the path. Raises `RecastError` naming
    the setting `kind` when the module does not import or has no such function.
    """
    where, colon, attribute = name.rpartition(":")
    if not (where and colon and attribute) or (":" in where and not Path(where).is_file()):
        form = "give module:function, such as my_parts:mine for mine in my_parts.py"
        raise RecastError(f"{kind} is {name!r}: {form}")
    if where.startswith(".") and not is_path(where):
        raise RecastError(f"{kind} is {name!r}: leave out the dots, or give ./my_parts.py:mine")
    module = _import(kind, name, where)
    holder, found = module, module
    try:
        for word in attribute.split("."):
            holder, found = found, getattr(found, word)
    except Exception as error:  # a module may answer for its names itself
        raise RecastError(
            f"{kind} is {name!r}: {where}, {_home(module)}, has no function {attribute!r}: "
            f"{_remedy(module, holder, attribute.rpartition('.')[2])}"
        ) from error
    if not callable(found):
        raise RecastError(
            f"{kind} is {name!r}: {attribute!r} in {_home(module)} is no function but of type "
            f"{type(found).__name__}: {_remedy(module, holder, '')}"
        )
    function: Callable[..., Any] = found
    return function


def is_path(where: str) -> bool:
    """Whether a module is named by its file."""
    return where.endswith(".py") or "/" in where or os.sep in where


def _remedy(module: ModuleType, holder: Any, wanted: str) -> str:
    if _is_pythons(module) or "site-packages" in str(_file_of(module)):
        return "give your own file, such as ./my_parts.py:mine"
    known = [key for key, value in vars(holder).items() if callable(value) and key[0] != "_"]
    if near := get_close_matches(wanted, known, 1):
        return f"did you mean {near[0]!r}?"
    own = [key for key in known if getattr(vars(holder)[key], "__module__", "") == module.__name__]
    return f"it has {', '.join(own[:9])}" if own else "define it there"


def _import(kind: str, name: str, where: str) -> ModuleType:
    file = _file_named(kind, name, where)
    taken = file is not None and _is_taken(where, file)
    folder = str(Path.cwd() if file is None or not is_path(where) else file.parent)
    # Last: whatever lies there beside the user's part is no module of ours or of Python.
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
    try:
        with undisturbed():
            if file is not None and taken:
                return _load(str(file), file)
            return import_module(file.stem if file and is_path(where) else where)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise RecastError(
                f"{kind} is {name!r}: its module needs {error.name!r}, which is not installed: "
                "install it, or leave its import out"
            ) from error
        raise RecastError(
            f"{kind} is {name!r}: there is no module {where!r} in {Path.cwd()} or among the "
            "installed ones: run from its folder, give its file, such as ./my_parts.py:mine, or "
            "install it"
        ) from error
    except BaseException as error:  # SystemExit among others
        raise RecastError(
            f"{kind} is {name!r}: its module does not import ({told(error, file)}): "
            "mend it, --debug shows the trace"
        ) from error


def _file_named(kind: str, name: str, where: str) -> Path | None:
    """The file of a path, or of a module in the working directory; None for an installed one."""
    if is_path(where):
        path = Path(where).expanduser()
        path = path if path.suffix == ".py" else path.with_name(f"{path.name}.py")
        if not path.is_file():
            raise RecastError(f"{kind} is {name!r}: there is no file {path}: check the path")
        return path.resolve()
    stem = Path.cwd().joinpath(*where.split("."))
    for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
        if path.is_file():
            return path.resolve()
    return None


def _is_taken(where: str, file: Path) -> bool:
    """Whether the name of the user's file stands for another module."""
    module = file.stem if is_path(where) else where
    top = module.partition(".")[0]
    if (loaded := sys.modules.get(module)) is not None:
        return _file_of(loaded) != file
    if top in sys.builtin_module_names or top in sys.stdlib_module_names or not top.isidentifier():
        return True
    folder = file.parent if is_path(where) else Path.cwd()
    others = [path for path in sys.path if Path(path or ".").resolve() != folder.resolve()]
    return PathFinder.find_spec(top, others) is not None


def _load(name: str, file: Path) -> ModuleType:
    """The module of a file under a name of its own, its path, which finds it again."""
    if (loaded := sys.modules.get(name)) is not None:
        return loaded
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _is_pythons(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] in sys.stdlib_module_names


def _home(module: ModuleType) -> str:
    """Whose module it is."""
    file = _file_of(module)
    if _is_pythons(module):
        return f"Python's own module ({file or 'built in'})"
    return str(file or "a folder without __init__.py")
