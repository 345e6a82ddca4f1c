"""Checks that configs share; each raises `RecastError` with the name, the value and the remedy."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from importlib.util import find_spec
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, Union, cast, get_args, get_origin, get_type_hints

from recast.errors import RecastError, require

Shown = Literal["train", "rl"]
"""Splits that something may be fitted on; on the others it is judged."""

_GROUPS = {
    "ModelConfig": "model.",
    "LoRAConfig": "lora.",
    "PromptConfig": "prompt.",
    "ThinkConfig": "think.",
}
"""Nested settings and what their names begin with."""

_PATHS = (
    *("output", "data", "catalog", "policy", "interactions", "rows", "items", "texts"),
    *("encoder", "path", "ranker", "guide", "embeddings", "items_as", "extend", "plain_text"),
    *("predictions", "tokenizer", "tables"),
)
"""Settings that name a file or a folder, or may."""

CODE = ("sampler", "reward", "signal", "loss", "ranker", "guide")
"""Settings that may name code, as `module:function`."""

RANKERS = ("ranker", "guide")
"""Settings that name a ranker."""

BASELINES = ("popularity", "item_knn", "sasrec")
"""Names of `recast baselines`, for rankers and guides: `item_knn:FOLDER`, or `item_knn` alone."""

MOST_RANKS = 100_000
MOST_STEPS = 1_000_000
"""Steps, prompts and the like: a hundred times the longest published run."""

MOST_ROWS = 100_000_000
"""Rows drawn for a whole run, 8 bytes each."""

MOST_WINDOW = 65536
"""Items of a training window: more than any history that a model could read."""

MOST_ROLLOUTS = 2**20
"""Rollouts of a step, lists counted by their items: some GB of keys and values even for the
smallest model."""


def check_settings(config: object) -> None:
    """What Python callers mean as what a settings file holds: a `Path` as text, a number of numpy
    or torch as Python's, one text where a list is meant, a dict for nested settings; `~` as the
    home folder.

    Raises `RecastError` for a nested setting that does not exist, a value of another type and a
    text that no file could be named by.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = _plain(getattr(config, name))
        if isinstance(value, str) and get_origin(hint) is list:
            value = [value]
        if isinstance(value, dict) and is_dataclass(hint):
            known = [field.name for field in fields(hint)]
            for key in value:
                require(key in known, name, value, f"choose from {', '.join(known)}")
            value = cast(type, hint)(**value)
        if isinstance(value, float) and value.is_integer() and int in options_of(hint):
            value = value if float in options_of(hint) else int(value)
        full = full_name(config, name)
        require(fits_type(value, hint), full, value, f"give {in_words(hint)}")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                check_text(full, text)
        if name in _PATHS and isinstance(value, str):
            baseline, folder = split_baseline(value) if name in RANKERS else ("", value)
            if folder is not None:
                folder = _expand(full, folder)
                value = f"{baseline}:{folder}" if baseline else folder
        if name in _PATHS and isinstance(value, list):
            value = [_expand(full, path) for path in value]
        object.__setattr__(config, name, value)


def refuse_set(config: Any, names: Iterable[str], remedy: str) -> None:
    """Raise `RecastError` for settings of these names that are not as by default: nothing would
    read them."""
    parts = {part.name: part for part in fields(config)}
    for name in names:
        make = parts[name].default_factory
        default = parts[name].default if make is MISSING else make()
        require(getattr(config, name) == default, name, getattr(config, name), remedy)


def full_name(config: object, name: str) -> str:
    return _GROUPS.get(type(config).__name__, "") + name


def _plain(value: Any) -> Any:
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def options_of(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def fits_type(value: Any, hint: Any) -> bool:
    """Whether the value is of the type; a whole number is a number, a truth value is none."""
    options, origin = options_of(hint), get_origin(hint)
    if len(options) > 1:
        return any(fits_type(value, option) for option in options)
    if hint in (int, float):
        is_number = isinstance(value, int if hint is int else int | float)
        return is_number and not isinstance(value, bool)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(
            fits_type(entry, get_args(hint)[0]) for entry in value
        )
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return isinstance(value, hint)


def in_words(hint: Any) -> str:
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
        some = {int: "1, 10", float: "0.1, 0.5"}.get(inner, "title")
        return f"a list, such as [{some}]"
    if get_origin(hint) is dict:
        return "names with values, such as {w: 2}"
    return " or ".join(map(in_words, get_args(hint))) or "its own settings, one by one"


def check_text(name: str, text: str) -> None:
    """An empty text is most often a variable that was never set; a line break is none."""
    require(text.strip(" ") != "", name, text, "give a name or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        require(False, name, text, "it is no UTF-8, rename it")
    require("\0" not in text, name, text, "leave out the NUL character")


def names_code(value: object) -> TypeGuard[str]:
    """Whether a setting of `CODE` is `module:function`: no name of ours and no folder."""
    is_text = isinstance(value, str) and ":" in value and not os.path.isdir(value)
    return is_text and not split_baseline(cast(str, value))[0]


def refuse_code(where: str, settings: object) -> None:
    """Raise `RecastError` for settings of a file that name code."""
    for key in CODE:
        value = settings.get(key) if isinstance(settings, dict) else None
        remedy = "a file names no code to run, give this row by --rl if you trust it"
        require(not names_code(value), f"{where}.{key}", value, remedy)


def split_baseline(ranker: str) -> tuple[str, str | None]:
    """Name and folder of a ranker that is a baseline by its name; whatever else it is has none.

    >>> split_baseline("item_knn:runs/baselines"), split_baseline("item_knn")
    (('item_knn', 'runs/baselines'), ('item_knn', None))
    >>> split_baseline("mine:score"), split_baseline("runs/policy")
    (('', 'mine:score'), ('', 'runs/policy'))
    """
    name, colon, folder = ranker.partition(":")
    if name not in BASELINES or os.path.isdir(ranker):
        return "", ranker
    return name, folder if colon else None


def _expand(name: str, path: str) -> str:
    """A path with `~` filled in, as a shell would; its variables are the shell's alone. An
    output that goes up from a folder that is not there is made whole: no such folder is made."""
    if path.startswith("~") and not os.path.lexists(path.partition(os.sep)[0]):
        path = os.path.expanduser(path)
        require(not path.startswith("~"), name, path, "there is no such user, write the path out")
    if re.search(r"\$\{?[A-Za-z_]", path) and not os.path.lexists(path):
        require(False, name, path, "only a shell fills in variables, write the path out")
    try:
        os.lstat(path)
    except OSError as error:
        require(error.errno != errno.ENAMETOOLONG, name, path, "it is too long, shorten it")
    up = path.rpartition("..")
    if name == "output" and up[1] and not os.path.isdir(up[0] + up[1]):
        path = os.path.realpath(path)
    return path


def as_path(name: str, value: object) -> str:
    """The text of a path that a function of the Python API got. Raises `RecastError` for what is
    none."""
    text = _plain(value)
    require(isinstance(text, str), name, value, "give a path, as a text or a pathlib.Path")
    check_text(name, text)
    return _expand(name, text)


def take(config: object, config_type: type) -> None:
    """Raise `RecastError` unless a verb of the Python API got its own config."""
    fits = isinstance(config, config_type)
    require(fits, "config", config, f"give a recast.{config_type.__name__}")


def check_seed(seed: int) -> None:
    require(0 <= seed < 2**31, "seed", seed, "give a whole number from 0 to 2147483647")


def check_splits(config: object) -> None:
    """Raise `RecastError` unless `splits` are `train`, or `train` and `rl`, which are then in this
    order."""
    splits: list[Shown] = config.splits  # type: ignore[attr-defined]
    fits = sorted(splits) in (["train"], ["rl", "train"])
    require(fits, "splits", splits, "give train or train,rl")
    object.__setattr__(config, "splits", sorted(splits, reverse=True))


def within(config: object, least: float, most: float, *names: str) -> None:
    """Refuse a number outside, None excepted: a size far above all that is sensible would only
    spend memory and time before it failed."""
    for name in names:
        value = getattr(config, name)
        if value is not None:
            full = full_name(config, name)
            require(value >= least, full, value, f"give {least} or more")
            require(value <= most, full, value, f"give {most} or less")


def check_rate(config: object, name: str) -> None:
    """A learning rate: AdamW moves every weight by about as much in each step, and above 1 nothing
    is left of a model."""
    rate = getattr(config, name)
    if rate is not None:
        require(0 < rate < math.inf, name, rate, "give a positive rate")
        require(rate <= 1, name, rate, "give 1 or less")


def check_breaks(name: str, text: str | None) -> None:
    """Raise `RecastError` for a line break that is spelled out: a template has real ones."""
    escape = re.search(r"\\[nt]", text or "")
    need = "a shell passes backslash and letter on: write a line break, in bash $'...'"
    require(escape is None, name, text, need)


def check_weights(weights: dict[str, Any]) -> None:
    """How often each task is drawn: relative, so that only their ratios count."""
    for name, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        fits = is_number and 0 <= weight <= MOST_STEPS
        require(fits, f"task_weights.{name}", weight, f"give a number from 0 to {MOST_STEPS}")
    some = not weights or any(weights.values())
    require(some, "task_weights", weights, "give at least one task more than 0")


def check_threads(config: object) -> None:
    """More threads than cores only wait for each other."""
    within(config, 1, 8 * (os.cpu_count() or 1), "threads")


def check_trackio(config: object) -> None:
    """trackio drops all other letters of a project's name, and two would be one."""
    project = config.trackio  # type: ignore[attr-defined]
    if project is not None:
        fits = re.fullmatch(r"[A-Za-z0-9_-]+", project)
        require(bool(fits), "trackio", project, "name a project by letters, digits, - and _")
        remedy = 'it is not installed: pip install "recast-rl[trackio]", or leave it out'
        require(find_spec("trackio") is not None, "trackio", project, remedy)


def num_ranks() -> int:
    """Processes that a launcher such as torchrun says it has started, as far as it is a number."""
    count = os.environ.get("WORLD_SIZE", "1").strip().lstrip("0")
    return int(count[:20]) if count.isascii() and count.isdigit() else 1


def refuse_ranks() -> None:
    """Raise `RecastError` where there are several, for what makes no use of them."""
    if (count := num_ranks()) != 1:
        raise RecastError(
            f"WORLD_SIZE is {count}: this runs in one process, start it without torchrun; "
            "quickstart, tokenize, sft, rl, compare, evaluate and stratify make use of several"
        )
