"""Types and shapes of every call in `recast` are checked while the tests run: beartype, with an int
where a float is asked for (PEP 484), within a memory of jaxtyping's axes for each call.

jaxtyping has such a hook too. It binds the arguments of every call, checks them twice and compiles
anew what is imported below a checked module, for the sake of its messages: half of the time of all
tests. Here a function is prepared when it is first called, since a test calls few of those that it
imports, and a function within another once for all.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial, wraps
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import cache_from_source
from inspect import isgeneratorfunction
from types import CodeType, ModuleType
from typing import Any
from unittest.mock import patch

from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, config, jaxtyped

Function = Callable[..., Any]

_NAME = "__checked__"
_check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))
_axes = jaxtyped("context")
_prepared: dict[int, Function] = {}  # by the identity of the code


def check_package(name: str) -> None:
    """Everything that is imported from this package from now on is checked."""
    sys.meta_path.insert(0, _Finder(name))


@contextmanager
def unchecked() -> Iterator[None]:
    """What a user meets, for tests of what is said of wrong types and shapes."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


class _Finder:
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Writes `@__checked__` above every function and class."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_NAME] = checked
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType | None:
        kept = partial(cache_from_source, optimization=_NAME.strip("_"))
        with patch("importlib._bootstrap_external.cache_from_source", kept):
            return super().get_code(fullname)

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        tree = ast.parse(data)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                mark = ast.copy_location(ast.Name(_NAME, ast.Load()), node)
                # The innermost of a function, before others hide what it is annotated with; the
                # outermost of a class, which a dataclass has to be first.
                where = 0 if isinstance(node, ast.ClassDef) else len(node.decorator_list)
                node.decorator_list.insert(where, mark)
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)


def checked(target: Any) -> Any:
    """The function with its arguments and its result checked; a dataclass with its fields."""
    if isinstance(target, type):
        if is_dataclass(target) and "__init__" in vars(target):
            target.__init__ = checked(target.__init__)
        return target
    if isgeneratorfunction(target):  # its body runs when the axes of the call are gone
        return jaxtyped(target, typechecker=_check)

    @wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        if config.jaxtyping_disable:
            return target(*args, **kwargs)
        run = _prepared.get(id(target.__code__)) or _prepare(target)
        with _axes:
            return run(*args, __beartype_func=target, **kwargs)

    return call


def _prepare(function: Function) -> Function:
    """What checks a call of `__beartype_func`, which is this one or another of the same lines."""
    written, function.__annotations__ = function.__annotations__, _hints(function)
    made = _check(function)
    function.__annotations__ = written
    if made is function:  # nothing to check
        made = _call
    _prepared[id(function.__code__)] = made
    return made


def _call(*args: Any, __beartype_func: Function, **kwargs: Any) -> Any:
    return __beartype_func(*args, **kwargs)


def _hints(function: Function) -> dict[str, Any]:
    """What its annotations say; one that names what only mypy imports says nothing."""
    found = dict(function.__annotations__)
    for name, hint in found.items():
        if isinstance(hint, str):
            try:
                found[name] = eval(hint, function.__globals__)
            except NameError:
                found[name] = Any
    return found
