"""Arguments of a verb in, its config out: what comes later on the command line wins, a flag or a
`--config FILE.yaml`; defaults fill the rest.

jsonargparse does the parsing; this file adds what a person needs when it fails: the flag or the
file and key, the value, and the nearest name or the wanted type.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from recast.types import RecastError


def parse(name: str, config_type: type, summary: str, epilog: str, args: list[str]) -> Any:
    """The config of a verb from its arguments.

    Raises `RecastError` naming the flag or key, the value and the remedy.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"recast {name}", description=summary, exit_on_error=False)
    parser.allow_abbrev = False
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    parser.add_class_arguments(config_type, None)
    if {"-h", "--help"} & set(args):
        print(parser.format_help() + epilog, end="")
        raise SystemExit(0)
    hints = _settings(config_type)
    files = _check_flags(name, args, hints)
    for file in files:
        _check_file(file, hints)
    try:
        values = parser.parse_args(_join_lists(args, hints))
        # as_dict: a namespace hides keys that are also names of its methods, such as `items`.
        settings = parser.instantiate(values).as_dict()
    except argparse.ArgumentError as error:
        raise RecastError(_translate(str(error), name, args, files, hints)) from error
    assert set(settings) - {"config"} <= set(hints), settings
    return config_type(**{key: settings[key] for key in settings if key in hints})


def _settings(config_type: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every setting; a nested config is there as itself and by its parts."""
    found: dict[str, Any] = {}
    for key, hint in get_type_hints(config_type).items():
        found[prefix + key] = hint
        if is_dataclass(hint) and isinstance(hint, type):
            found |= _settings(hint, f"{prefix}{key}.")
    return found


def nearest(name: str, known: Iterable[str], dashes: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {dashes}{close[0]}?" if close else ""


def _check_flags(name: str, args: list[str], hints: dict[str, Any]) -> list[str]:
    """Refuse unknown flags, with the nearest known one; return the files given to `--config`."""
    files = []
    known = [*hints, "config", "print_config", "help", "debug"]
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if not flag.startswith("--"):
            continue
        is_entry = get_origin(hints.get(flag[2:].partition(".")[0])) is dict
        if flag[2:].removesuffix("+") not in known and not is_entry:
            remedy = nearest(flag[2:], known, "--") or f"see `recast {name} --help`"
            raise RecastError(f"{flag} is no flag of recast {name}: {remedy}")
        if flag == "--config" and (equals or position + 1 < len(args)):
            files.append(value if equals else args[position + 1])
    return files


def _check_file(file: str, hints: dict[str, Any]) -> None:
    """Refuse a YAML file that does not parse, holds no keys or holds an unknown one."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecastError(f"{file} is not a text file: give a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecastError(f"{file}, line {line}: {error.problem}: write valid YAML") from error
    except (yaml.YAMLError, ValueError) as error:  # a control character, an impossible date
        raise RecastError(f"{file}: {error}: write valid YAML") from error
    if not isinstance(content, dict):
        raise RecastError(f"{file} holds no settings: write lines of the form `seed: 1`")

    def check(mapping: dict[Any, Any], prefix: str) -> None:
        for key, value in mapping.items():
            path = f"{prefix}{key}"
            if path not in hints:
                siblings = [
                    k for k in hints if k.startswith(prefix) and "." not in k[len(prefix) :]
                ]
                remedy = nearest(path, siblings) or nearest(path, hints)
                remedy = remedy or f"choose from {', '.join(siblings)}"
                raise RecastError(f"{file} has the unknown key {path!r}: {remedy}")
            hint = hints[path]
            nested = is_dataclass(hint)
            if value is None and NoneType not in get_args(hint):
                raise RecastError(f"{file}: {path} is null: give {_wanted(hint)}")
            if nested and not isinstance(value, dict):
                raise RecastError(f"{file}: {path} is {value!r}: give {_wanted(hint)}")
            if nested:
                check(value, f"{path}.")

    check(content, "")


def _join_lists(args: list[str], hints: dict[str, Any]) -> list[str]:
    """`--text a b` as the one argument `--text=["a", "b"]` that the parser wants."""
    joined: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        flag, equals, value = arg.partition("=")
        if get_origin(hints.get(flag.removeprefix("--"))) is list:
            words = [value] if equals else []
            if not equals:
                words = list(takewhile(lambda word: not word.startswith("--"), rest))
                del rest[: len(words)]
            is_json = len(words) == 1 and words[0].startswith("[")
            if get_args(hints[flag.removeprefix("--")]) == (int,) and not is_json:
                words, is_json = [f"[{','.join(words)}]"], True  # 1,3,5 or 1 3 5
            arg = f"{flag}={words[0] if is_json else json.dumps(words)}"
        joined.append(arg)
    return joined


def _translate(
    text: str, name: str, args: list[str], files: list[str], hints: dict[str, Any]
) -> str:
    """A message of jsonargparse as a line of ours: key, value, remedy."""
    wrong_type = re.search(r'key "([\w.]+)":.*?(?:Got|Given) value: (.*)$', text, re.DOTALL)
    if wrong_type and wrong_type[1] in hints:
        key, value = wrong_type.groups()
        given = any(arg.partition("=")[0] == f"--{key}" for arg in args)
        where = f"--{key}" if given or not files else f"{files[-1]}: {key}"
        return f"{where} is {value.strip()!r}: give {_wanted(hints[key])}"
    if missing := re.search(r"arguments are required: (.*)$", text):
        flags = " and ".join(f"--{key.strip()}" for key in missing[1].split(","))
        return f"recast {name} needs {flags}: give it as a flag or in --config FILE.yaml"
    if stray := re.search(r"unrecognized arguments: (.*)$", text):
        return f"{stray[1]!r} belongs to no flag of recast {name}: see `recast {name} --help`"
    return f"{text}: see `recast {name} --help`"


def _wanted(hint: Any) -> str:
    """A type in words, `float | None` as "a number or null"."""
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text (in YAML: in quotes)",
        bool: "true or false",
        NoneType: "null",
    }
    if hint in words:
        return words[hint]
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is list:
        (inner,) = get_args(hint)
        if get_origin(inner) is Literal:
            return f"a list of any of {', '.join(get_args(inner))}"
        return "a list, such as [1, 10]" if inner is int else "a list, such as [title]"
    if get_origin(hint) is dict:
        return "names with values, such as {w: 2}"
    return " or ".join(map(_wanted, get_args(hint))) or "its own settings, one by one"
