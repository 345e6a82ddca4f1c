"""A cell: one stage of an experiment and what tells it from another one.

Its settings as resolved and the digests of the files it reads decide whether it is the cell that
finished before. Its name, threads, device, where it lies and where its inputs lie do not, nor does
the version or how a method is called.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recast.baselines import describe as describe_baselines
from recast.baselines import fit_baselines
from recast.config import (
    BaselinesConfig,
    EvaluateConfig,
    PrepareConfig,
    RLConfig,
    SFTConfig,
    TokenizeConfig,
)
from recast.config.check import names_code
from recast.config.plugin import load_function
from recast.data.folder import data_hash
from recast.data.folder import describe as describe_data
from recast.data.prepare import prepare
from recast.evaluation.evaluate import evaluate_policy
from recast.items.card import describe as describe_catalog
from recast.items.tokenize import tokenize
from recast.methods.assembly import resolve
from recast.methods.parts import find_part, spell
from recast.methods.table import Method
from recast.rl import train_rl
from recast.run import fingerprint
from recast.run.doors import RANKED
from recast.run.fingerprint import MACHINE, Input, flat, plain
from recast.run.log import RunLog
from recast.run.reading import reason_of
from recast.sft import train_sft
from recast.types import Metrics, RecastError, require


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One stage of an experiment: the settings of a verb, or of a function of yours.

    Example: `Cell(name="sft", config=SFTConfig(data=data, catalog=catalog, output="runs/my/sft"))`.
    """

    name: str
    """On the screen and in what `run_cells` returns."""
    config: Any
    """A verb's config; for `run` any dataclass with an `output`."""
    method: Method | None = None
    """A method by value, for an `RLConfig`."""
    run: Callable[[Any, Any], Metrics] | None = None
    """A small function of the config, and of the `RunLog` of the experiment (None in a worker), in
    place of a verb; it makes the folder `output`."""
    stage: str = ""
    """Neighbours of one stage share a line of the plan and a bar; unset: the name."""
    unit: str = ""
    """What the plan calls the cells of a stage when there are several."""
    estimate_s: float = 0.0
    """Seconds, for the plan."""

    @property
    def folder(self) -> Path:
        return Path(os.path.abspath(self.config.output))  # not resolved: it may be a link


def listed(cells: Iterable[Cell]) -> list[Cell]:
    """The cells; `RecastError` for what is none."""
    remedy = "give a list of recast.Cell, each with a name of its own and a config"
    fits = not isinstance(cells, str) and isinstance(cells, Iterable) and not hasattr(cells, "ndim")
    require(fits, "cells", cells, remedy)
    found = list(cells)
    for cell in found:
        require(isinstance(cell, Cell) and isinstance(cell.name, str), "cells", cells, remedy)
        is_run = cell.run is None or callable(cell.run)
        require(is_run, f"run of cell {cell.name!r}", cell.run, "give a function of config and log")
    return found


class Verb(NamedTuple):
    """How a cell is run."""

    name: str
    run: Callable[[Cell, RunLog | None], Metrics]
    describe: Callable[[Path], str] | None = None
    """Says what is in the output folder."""
    has_stage: bool = False
    """It says itself how far it is."""


def verb_of(cell: Cell) -> Verb:
    """Raises `RecastError` for a config that belongs to no verb here."""
    if (function := cell.run) is not None:
        return Verb(
            plain(function, "run")["function"], lambda cell, log: function(cell.config, log)
        )
    known = ", ".join(config.__name__ for config in _VERBS)
    remedy = f"give one of {known}, or a function as run"
    require(type(cell.config) in _VERBS, f"config of cell {cell.name!r}", cell.config, remedy)
    return _VERBS[type(cell.config)]


def _prepare(cell: Cell, log: RunLog | None) -> Metrics:
    prepare(cell.config)
    if log:
        log.environment(data_hash(cell.folder))
    return {}


def _tokenize(cell: Cell, log: RunLog | None) -> Metrics:
    tokenize(cell.config)
    return {}


def _baselines(cell: Cell, log: RunLog | None) -> Metrics:
    return fit_baselines(cell.config, log)


def _sft(cell: Cell, log: RunLog | None) -> Metrics:
    return train_sft(cell.config, log)


def _rl(cell: Cell, log: RunLog | None) -> Metrics:
    return train_rl(cell.config, log, cell.method)


def _evaluate(cell: Cell, log: RunLog | None) -> Metrics:
    return evaluate_policy(cell.config)


_VERBS = {
    PrepareConfig: Verb("prepare", _prepare, describe_data),
    TokenizeConfig: Verb("tokenize", _tokenize, describe_catalog),
    BaselinesConfig: Verb("baselines", _baselines, describe_baselines, has_stage=True),
    SFTConfig: Verb("sft", _sft, has_stage=True),
    RLConfig: Verb("rl", _rl, has_stage=True),
    EvaluateConfig: Verb("evaluate", _evaluate),
}

_RESOLVED = ("method", "logprob_space", "reward_args", "signal_args", "loss_args")
"""Settings of `RLConfig` that the resolved method holds."""
_WORDS = ("summary", "paper", "label", "samplers")
"""Fields of a `Method` that only tell of it; its one sampler counts as `sampler`."""


def settings_of(cell: Cell) -> dict[str, Any]:
    """Dotted name -> value of all that decides, what is left to the method filled in.

    Raises `RecastError` for settings that no run could use and for values that cannot be compared
    with those of another process.
    """
    config = cell.config
    is_config = is_dataclass(config) and isinstance(getattr(config, "output", None), str | Path)
    require(is_config, f"config of cell {cell.name!r}", config, "give a dataclass with an output")
    settings: dict[str, Any] = {"verb": verb_of(cell).name} | asdict(config)
    if isinstance(config, RLConfig):
        method = resolve(config, cell.method)
        settings |= {field.name: getattr(method, field.name) for field in fields(Method)}
        settings["sampler"] = find_part("sampler", method.sampler) if method.sampler else None
        settings = {k: v for k, v in settings.items() if k not in (*_RESOLVED, *_WORDS)}
        for kind in ("sampler", "reward", "signal", "loss"):
            if part := settings[kind]:
                args = plain(part, kind) | settings.get(f"{kind}_args", {})
                del args["function"]
                settings |= {kind: spell(part)[0], f"{kind}_args": args}
    else:
        if isinstance(config, SFTConfig):
            settings |= config.resolved._asdict()
        require(cell.method is None, f"method of cell {cell.name!r}", "given", "only rl has one")
    for kind in ("ranker", "guide"):
        if names_code(spec := settings.get(kind)):
            settings[kind] = load_function(kind, spec)
    if cell.run is not None:
        settings["run"] = cell.run
    kept = {key: value for key, value in settings.items() if key not in MACHINE}
    written = dict(flat(plain(kept, f"cell {cell.name!r}")))
    return {key: value for key, value in written.items() if key not in inputs_of(cell)}


def inputs_of(cell: Cell) -> dict[str, Input]:
    """What the cell reads, by the dotted name of the setting."""
    return fingerprint.inputs_of(asdict(cell.config))


def default_of(cell: Cell, key: str) -> Any:
    """Default of a setting, by its dotted name; `...` where it has none.

    >>> from recast.config import EvaluateConfig
    >>> config = EvaluateConfig(data="data", policy="policy", output="eval")
    >>> default_of(Cell(name="eval", config=config), "beam_width")
    50
    """
    defaults: dict[str, Any] = {}
    for field in fields(cell.config):
        if field.default_factory is not MISSING:
            defaults[field.name] = field.default_factory()
        elif field.default is not MISSING:
            defaults[field.name] = field.default
    return dict(flat(plain(defaults, "a default"))).get(key, ...)


def has_ranks(cell: Cell) -> bool:
    """Whether several ranks run it together."""
    return cell.run is None and isinstance(cell.config, RANKED)


def refuse_unsent(cells: Iterable[Cell]) -> None:
    """Raise `RecastError` for a method that other processes cannot be told."""
    for cell in filter(has_ranks, cells):
        try:
            pickle.dumps(cell)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RecastError(
                f"method of cell {cell.name!r} cannot be told to other ranks ({reason_of(error)}): "
                "let its functions stand at the top of a module"
            ) from error


def settings_by_name(root: Path, cells: list[Cell]) -> dict[str, dict[str, Any]]:
    """The settings of every cell, by name; refuses a list that cannot be run."""
    used: dict[str, dict[str, Any]] = {}
    folders: list[Path] = []
    for cell in cells:
        require(cell.name not in used, "name", cell.name, "two cells have it, give each its own")
        used[cell.name] = settings_of(cell)
        where, output = f"output of cell {cell.name!r}", cell.config.output
        is_inside = cell.folder != root and is_below(cell.folder, [root])
        require(is_inside, where, output, f"give a folder inside {root}")
        is_own = not is_below(cell.folder, folders)
        is_own = is_own and not any(is_below(folder, [cell.folder]) for folder in folders)
        require(is_own, where, output, "another cell writes there, give each its own")
        folders.append(cell.folder)
    return used


def stage_of(cell: Cell) -> str:
    """What cells that belong together call themselves on the screen."""
    return cell.stage or cell.name


def is_below(path: Path, folders: Iterable[Path]) -> bool:
    """Whether it lies in one of them."""
    return any(path.is_relative_to(folder) for folder in folders)
