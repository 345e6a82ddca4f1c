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
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

from recast.config.check import (
    CODE,
    check_text,
    fits_type,
    in_words,
    names_code,
    options_of,
    refuse_code,
)
from recast.config.settings_file import load_text, read_settings
from recast.errors import RecastError, in_short


def parse(name: str, config_type: type, summary: str, epilog: str, args: list[str]) -> Any:
    """The config of a verb from its arguments.

    Raises `RecastError` naming the flag or key, the value and the remedy.
    """
    hints = _settings(config_type)
    wants_help = bool({"-h", "--help"} & set(args))
    if not wants_help:
        _check_flags(name, args, hints)
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True,
        # A `class_path` in a value is data like any other, never a class to make.
        validate_subclass_spec_in_any=False,
        instantiate_subclass_spec_in_any=False,
    )
    set_loader("yaml", load_text, exceptions=(yaml.YAMLError,))
    parser = ArgumentParser(prog=f"recast {name}", description=summary, exit_on_error=False)
    parser.allow_abbrev = False
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    parser.add_class_arguments(config_type, None)
    if wants_help:
        print(parser.format_help() + epilog, end="")
        raise SystemExit(0)
    args, files = _read_files(args, hints)
    try:
        values = parser.parse_args(_join_lists(args, hints), env=False)
        # as_dict: a namespace hides keys that are also names of its methods, such as `items`.
        settings = parser.instantiate(values).as_dict()
    except RecastError:
        raise
    except (argparse.ArgumentError, yaml.YAMLError, ValueError) as error:
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


def _check_flags(name: str, args: list[str], hints: dict[str, Any]) -> None:
    """Refuse unknown flags, with the nearest known one, and a file in place of nested settings."""
    known = [*hints, "config", "print_config", "help", "debug"]
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if not flag.startswith("--"):
            continue
        key = flag[2:]
        is_entry = get_origin(hints.get(key.partition(".")[0])) is dict
        if key.removesuffix("+") not in known and not is_entry:
            remedy = nearest(key, known, "--") or f"see `recast {name} --help`"
            raise RecastError(f"{in_short(flag)[1:-1]} is no flag of recast {name}: {remedy}")
        value = value if equals else next(iter(args[position + 1 :]), "--")
        hint = hints.get(key)
        if is_dataclass(hint) and not value.startswith("{"):
            parts = " and ".join([k for k in hints if k.startswith(f"{key}.")][:2])
            raise RecastError(
                f"{flag} is {in_short(value)}: give its own settings, such as {parts}"
            )
        is_number = {int, float, bool} & set(options_of(hint))
        if is_number and (equals or not value.startswith("--")) and not _reads_as(value, hint):
            raise RecastError(f"{flag} is {in_short(value)}: give {in_words(hint)}")
        if is_entry or get_origin(hint) is dict:
            _check_yaml(flag, value)
        if flag == "--config" and not value:
            raise RecastError("--config is '': name a YAML file")


def _check_yaml(flag: str, value: str) -> None:
    try:
        load_text(value)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RecastError(f"{flag} is {in_short(value)}: {reason}: write valid YAML") from error


def _reads_as(text: str, hint: Any) -> bool:
    """Whether a text, read as a file's would be, is of the type."""
    try:
        return fits_type(load_text(text), hint)
    except yaml.YAMLError:
        return False


def _read_files(args: list[str], hints: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The arguments with the text of every `--config FILE` in its place, and the files."""
    flags = {arg.partition("=")[0] for arg in args}
    told, files, rest = list[str](), list[str](), list(args)
    while rest:
        arg = rest.pop(0)
        flag, equals, value = arg.partition("=")
        if flag == "--config" and (equals or rest):
            files.append(value if equals else rest.pop(0))
            content = _read_file(files[-1], hints, flags)
            arg = f"--config={yaml.safe_dump(content, default_flow_style=True, width=10**9)}"
        told.append(arg)
    return told, files


def _read_file(file: str, hints: dict[str, Any], flags: set[str]) -> dict[str, Any]:
    """What a YAML file sets. Refuses unknown keys, and code that no flag names."""
    content = read_settings(file)

    def check(mapping: dict[Any, Any], prefix: str) -> None:
        for key, value in mapping.items():
            path = f"{prefix}{key}"
            if path not in hints:
                siblings = [
                    k for k in hints if k.startswith(prefix) and "." not in k[len(prefix) :]
                ]
                namesakes = [k for k in hints if k.endswith(f".{path}")]
                remedy = nearest(path, namesakes or siblings) or nearest(path, hints)
                remedy = remedy or f"choose from {', '.join(siblings)}"
                raise RecastError(f"{file} has the unknown key {in_short(path)}: {remedy}")
            hint = hints[path]
            nested = is_dataclass(hint)
            if value is None and NoneType not in get_args(hint):
                raise RecastError(f"{file}: {path} is null: give {in_words(hint)}")
            if nested and not isinstance(value, dict):
                raise RecastError(f"{file}: {path} is {in_short(value)}: give {in_words(hint)}")
            if nested:
                check(value, f"{path}.")
                continue
            if isinstance(value, str):
                check_text(f"{file}: {path}", value)
            if isinstance(value, str) and hint == list[str]:
                mapping[key] = [value]
            elif not fits_type(value, hint):
                raise RecastError(f"{file}: {path} is {in_short(value)}: give {in_words(hint)}")

    check(content, "")
    for key in CODE:
        value = content.get(key)
        if names_code(value):
            if f"--{key}" not in flags:
                raise RecastError(
                    f"{file}: {key} is {in_short(value)}: a file names no code to run, add "
                    f"--{key} {in_short(value)} to the command if you trust it"
                )
            del content[key]
    rows = content.get("rl", {})
    for row, own in rows.items() if "--rl" not in flags else ():
        refuse_code(f"{file}: rl.{row}", own)
    return content


def _join_lists(args: list[str], hints: dict[str, Any]) -> list[str]:
    """`--text a b` as the one argument `--text=["a", "b"]` that the parser wants, and a flag such
    as `--resume` without a value as `--resume=true`."""
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
            (entry,) = get_args(hints[flag.removeprefix("--")])
            if entry in (int, float) and not is_json:
                words, is_json = [f"[{','.join(words)}]"], True  # 1,3,5 or 1 3 5
            elif get_origin(entry) is Literal and not is_json:  # no name of ours has a comma
                words = [word.strip() for some in words for word in some.split(",")]
            arg = f"{flag}={words[0] if is_json else json.dumps(words)}"
        elif hints.get(flag.removeprefix("--")) is bool and not equals:
            is_alone = not rest or rest[0].startswith("--")
            arg = f"{flag}=true" if is_alone else arg
        joined.append(arg)
    return joined


def _translate(
    text: str, name: str, args: list[str], files: list[str], hints: dict[str, Any]
) -> str:
    """A message of jsonargparse as a line of ours: key, value, remedy."""
    wrong_type = re.search(r'key "([\w.]+)":.*(?:Got|Given) value: (.*)$', text, re.DOTALL)
    if wrong_type and wrong_type[1] in hints:
        key, value = wrong_type.groups()
        given = any(arg.partition("=")[0] == f"--{key}" for arg in args)
        where = f"--{key}" if given or not files else f"{files[-1]}: {key}"
        return f"{where} is {in_short(value.strip())}: give {in_words(hints[key])}"
    if missing := re.search(r"arguments are required: (.*)$", text):
        flags = " and ".join(f"--{key.strip()}" for key in missing[1].split(","))
        return f"recast {name} needs {flags}: give it as a flag or in --config FILE.yaml"
    if stray := re.search(r"unrecognized arguments: (.*)$", text):
        return f"{stray[1]!r} belongs to no flag of recast {name}: see `recast {name} --help`"
    return f"{text}: see `recast {name} --help`"
