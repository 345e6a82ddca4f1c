"""The command line: a verb and its settings in, one stage run, one line per error out.

Settings come from the verb's dataclass in `recast.config`, in this order of authority: flags,
then `--config FILE.yaml`, then the defaults. Exit codes: 0 done, 2 bad input or surroundings
(a setting, a file, a full disk), 1 a bug of ours, 130 interrupted.
"""

from __future__ import annotations

import difflib
import errno
import json
import re
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import is_dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

import recast

BAD_INPUT, BUG, INTERRUPTED = 2, 1, 130


class Verb(NamedTuple):
    """A verb: the config class in `recast.config`, the stage as `module:function`, its one line."""

    config: str
    stage: str
    summary: str


VERBS = {
    "quickstart": Verb(
        "QuickstartConfig",
        "recast.quickstart:quickstart",
        "the whole walk on MovieLens-100K, in one command",
    ),
    "prepare": Verb(
        "PrepareConfig", "recast.data.prepare:prepare", "interactions in, a data folder out"
    ),
    "tokenize": Verb(
        "TokenizeConfig",
        "recast.items.tokenize:tokenize",
        "a data folder in, a catalogue of semantic IDs out",
    ),
    "sft": Verb("SFTConfig", "recast.sft:train_sft", "train a next-item policy"),
    "rl": Verb("RLConfig", "recast.rl:train_rl", "post-train a policy with one method"),
    "evaluate": Verb(
        "EvaluateConfig",
        "recast.evaluate:evaluate_policy",
        "rank the whole catalogue for every row of a split",
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Run one verb. Raises `SystemExit` with the codes above, never another exception."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        run([arg for arg in args if arg != "--debug"])
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exception(error)
        line, code = explain(error)
        fail(line, code)


def run(args: list[str]) -> None:
    """Parse the arguments, run the stage and print the summary it returns."""
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return
    if args[0] == "--version":
        print(f"recast {recast.__version__}")
        return
    name = args[0]
    if name not in VERBS:
        fail(f"{name!r} is no verb: {_nearest(name, VERBS) or 'choose from ' + ', '.join(VERBS)}")
    config = parse(name, args[1:])
    module, function = VERBS[name].stage.split(":")
    began = time.monotonic()
    result = getattr(import_module(module), function)(config)
    if isinstance(result, dict):
        result = "\n".join(f"{key}  {value}" for key, value in result.items())
    if isinstance(result, str):
        print(result)
    print(f"recast {name}: done in {time.monotonic() - began:.0f} s, written to {config.output}")


def overview() -> str:
    """The text of `recast --help`; it imports nothing."""
    verbs = "\n".join(f"  {name:<12}{verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: recast VERB [--config FILE.yaml] [--SETTING VALUE ...]\n\n"
        f"{recast.__doc__.splitlines()[0] if recast.__doc__ else ''}\n\nverbs:\n{verbs}\n\n"
        "options:\n  --help      this text; after a verb, its settings\n"
        "  --version   the version of recast\n  --debug     show the whole trace of an error"
    )


def parse(name: str, args: list[str]) -> Any:
    """The config of a verb from its arguments.

    Raises `RecastError` naming the flag or key, the value and the remedy.
    """
    import argparse

    from jsonargparse import ArgumentParser, set_parsing_settings

    from recast import config as configs
    from recast.types import RecastError

    config_type = getattr(configs, VERBS[name].config)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"recast {name}", description=VERBS[name].summary, exit_on_error=False
    )
    parser.allow_abbrev = False
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    parser.add_class_arguments(config_type, None)
    if {"-h", "--help"} & set(args):
        print(parser.format_help() + (methods_help() if name == "rl" else ""), end="")
        raise SystemExit(0)
    hints = _settings(config_type)
    files = _check_flags(name, args, hints)
    for file in files:
        _check_file(file, hints)
    try:
        values = parser.parse_args(_join_lists(args, hints))
        settings = vars(parser.instantiate(values))
    except argparse.ArgumentError as error:
        raise RecastError(_translate(str(error), name, args, files, hints)) from error
    return config_type(**{key: settings[key] for key in settings if key in hints})


def methods_help() -> str:
    """The methods by name, one line each."""
    from recast.methods import METHODS

    width = max(map(len, METHODS)) + 2
    lines = [f"  {name:<{width}}{method.summary}\n" for name, method in METHODS.items()]
    return "\nmethods:\n" + "".join(lines)


def explain(error: BaseException) -> tuple[str, int]:
    """One line for a person and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    from recast.types import RecastError

    text = str(error)
    full = "choose another output or free some space; nothing half-written was left"
    if isinstance(error, RecastError):
        return text, BAD_INPUT
    if "No space left on device" in text:  # polars and safetensors wrap it in their own errors
        return f"{getattr(error, 'filename', None) or 'the disk'} is full: {full}", BAD_INPUT
    if isinstance(error, OSError):
        remedies = {
            errno.ENOENT: "check the path",
            errno.EACCES: "choose a path you may use",
            errno.EROFS: "choose a path you may write to",
        }
        remedy = remedies.get(error.errno or 0, "check the path and the disk")
        what = f"{error.filename}: {error.strerror}" if error.filename else text
        return f"{what}: {remedy}", BAD_INPUT
    return (
        f"{type(error).__name__}: {text}: this is a bug of recast; "
        "run the same command with --debug and report the trace"
    ), BUG


def fail(line: str, code: int = BAD_INPUT) -> NoReturn:
    """Print one line on stderr and leave."""
    print(f"recast: error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)


def _settings(config_type: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every setting; a nested config is there as itself and by its parts."""
    found: dict[str, Any] = {}
    for key, hint in get_type_hints(config_type).items():
        found[prefix + key] = hint
        if is_dataclass(hint) and isinstance(hint, type):
            found |= _settings(hint, f"{prefix}{key}.")
    return found


def _nearest(name: str, known: Iterable[str], dashes: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {dashes}{close[0]}?" if close else ""


def _check_flags(name: str, args: list[str], hints: dict[str, Any]) -> list[str]:
    """Refuse unknown flags, with the nearest known one; return the files given to `--config`."""
    from recast.types import RecastError

    files = []
    known = [*hints, "config", "print_config", "help", "debug"]
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if not flag.startswith("--"):
            continue
        if flag[2:].removesuffix("+") not in known:
            remedy = _nearest(flag[2:], known, "--") or f"see `recast {name} --help`"
            raise RecastError(f"{flag} is no flag of recast {name}: {remedy}")
        if flag == "--config" and (equals or position + 1 < len(args)):
            files.append(value if equals else args[position + 1])
    return files


def _check_file(file: str, hints: dict[str, Any]) -> None:
    """Refuse a YAML file that does not parse, holds no keys or holds an unknown one."""
    import yaml

    from recast.types import RecastError

    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecastError(f"{file} is not a text file: give a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecastError(f"{file}, line {line}: {error.problem}: write valid YAML") from error
    if not isinstance(content, dict):
        raise RecastError(f"{file} holds no settings: write lines of the form `seed: 1`")

    def check(mapping: dict[Any, Any], prefix: str) -> None:
        for key, value in mapping.items():
            path = f"{prefix}{key}"
            if path not in hints:
                siblings = [
                    k for k in hints if k.startswith(prefix) and "." not in k[len(prefix) :]
                ]
                remedy = _nearest(path, siblings) or _nearest(path, hints)
                remedy = remedy or f"choose from {', '.join(siblings)}"
                raise RecastError(f"{file} has the unknown key {path!r}: {remedy}")
            if isinstance(value, dict):
                check(value, f"{path}.")

    check(content, "")


def _join_lists(args: list[str], hints: dict[str, Any]) -> list[str]:
    """`--text a b` as the one argument `--text=["a", "b"]` that the parser wants."""
    joined: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if get_origin(hints.get(arg.removeprefix("--"))) is list:
            words = list(takewhile(lambda word: not word.startswith("--"), rest))
            del rest[: len(words)]
            is_json = len(words) == 1 and words[0].startswith("[")
            arg += "=" + (words[0] if is_json else json.dumps(words))
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
        return "a list"
    return " or ".join(map(_wanted, get_args(hint))) or "its own settings, one by one"


if __name__ == "__main__":
    main()
