"""What `compare` found, typed: every metric of every method, with its interval and differences.

On disk it is `results.json`, all numbers unrounded:

    {"split": "test", "split_name": "...", "rows": 9924, "users": 166,
     "resampled": "users", "draws": 10000, "seed": 0, "training_seeds": [0],
     "primary": "item/ndcg@10", "against": ["SFT", "GRPO"], "sid_equals_item": true,
     "methods": {
       "ReCast": {
         "metrics": {
           "item/ndcg@10": {
             "value": 0.11, "low": 0.09, "high": 0.13,
             "against": {"SFT": {"difference": 0.01, "low": 0.0, "high": 0.02, "p": 0.04}}}},
         "extras": {"rollouts": 76800, "cpu_s": 61.2, "invalid_frac": 0.03,
                    "optimizer_steps": 150},
         "facts": {"split": "test", "num_candidates": 1682, "beam_width": 32, "evaluator": 1}}}}

with all of `recast.evaluation.facts.Facts`. A file of several tables holds them by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from recast.evaluation.facts import Facts, read_facts
from recast.run.files import staged_file
from recast.run.reading import read_json, reading
from recast.types import in_short

_ROUNDING = 1e-9
_REMEDY = "make it again, or use the file as it was saved"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Of a method from another one, paired by user."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A mean over rows, its 95 % interval over users, and what it is against other methods."""

    value: float
    low: float
    high: float
    against: dict[str, Difference]


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodResults:
    """All of one method; `extras` holds those of `rollouts`, `cpu_s`, `invalid_frac`,
    `optimizer_steps` and `coverage` that apply to it."""

    metrics: dict[str, Measured]
    extras: dict[str, float]
    facts: Facts


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """A table: methods on the same rows. Intervals and p-values resample users; they do not cover
    the training seeds.

    Example: `results.methods["ReCast"].metrics["item/ndcg@10"].against["SFT"].p`.
    """

    split: str | None
    split_name: str | None
    rows: int
    users: int
    resampled: str = "users"
    draws: int
    seed: int
    """Of the resampling."""
    training_seeds: tuple[int, ...]
    primary: str
    against: tuple[str, ...]
    sid_equals_item: bool
    methods: dict[str, MethodResults]

    @property
    def metrics(self) -> list[str]:
        """The keys that every method has, in order."""
        return list(next(iter(self.methods.values())).metrics)

    @property
    def several_targets(self) -> bool:
        return any(key.startswith("item/pass@") for key in self.metrics)

    def save(self, file: str | Path) -> None:
        """Write `file` whole or not at all, replacing an earlier one."""
        with staged_file(file) as stage:
            stage.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def load(file: str | Path) -> Results:
        """What `save` wrote; `RecastError` when it is damaged."""
        with reading(file, _REMEDY):
            return _results(read_json(Path(file), dict))


def save_tables(tables: Mapping[str, Results], file: str | Path) -> None:
    """Several tables in one file, by name, such as `sample` and `beam` of the quickstart."""
    content = {name: asdict(results) for name, results in tables.items()}
    with staged_file(file) as stage:
        stage.write_text(json.dumps(content, indent=2) + "\n")


def load_tables(file: str | Path) -> dict[str, Results]:
    """What `save_tables` wrote, by earlier releases too (their facts are not known);
    `RecastError` when it is damaged."""
    with reading(file, _REMEDY):
        return {name: _results(table) for name, table in read_json(Path(file), dict).items()}


def _results(table: dict[str, Any]) -> Results:
    values = {f.name: table[f.name] for f in fields(Results)}
    shared = {name: values[name] for name in ("split", "split_name")}
    methods = {
        name: MethodResults(
            metrics={key: _measured(metric) for key, metric in method["metrics"].items()},
            extras={key: _number(key, extra, 1e15) for key, extra in method["extras"].items()},
            facts=read_facts(shared | method),
        )
        for name, method in values.pop("methods").items()
    }
    seeds, against = (_list(name, values.pop(name)) for name in ("training_seeds", "against"))
    results = Results(**values, training_seeds=seeds, against=against, methods=methods)
    _check(results)
    return results


def _measured(metric: dict[str, Any]) -> Measured:
    against = {}
    for other, numbers in metric["against"].items():
        gap = Difference(**numbers)
        _ordered(gap.low, gap.high, -1.0)
        _number("difference", gap.difference, 1.0, -1.0)
        _number("p", gap.p, 1.0)
        against[other] = gap
    measured = Measured(**metric | {"against": against})
    _number("value", measured.value, 1.0)
    _ordered(measured.low, measured.high, 0.0)
    return measured


def _ordered(low: Any, high: Any, least: float) -> None:
    if _number("low", low, 1.0, least) > _number("high", high, 1.0, least):
        raise ValueError(f"an interval from {low} to {high}")


def _number(name: str, value: Any, most: float, least: float = 0.0) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A resampled mean of ones may be off 1 by rounding.
    if not (is_number and least - _ROUNDING <= value <= most + _ROUNDING):
        raise ValueError(f"{name} is {in_short(value)}, no number from {least:g} to {most:g}")
    return cast(float, value)


def _list(name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{name} is {in_short(values)}, no list")
    return tuple(values)


def _check(results: Results) -> None:
    """Raise `ValueError` for a table that `compare` cannot have made."""
    fits: dict[str, Callable[[Any], bool]] = {
        **dict.fromkeys(("resampled", "primary"), lambda value: isinstance(value, str)),
        **dict.fromkeys(("split", "split_name"), lambda value: isinstance(value, str | None)),
        **dict.fromkeys(("rows", "users", "draws"), lambda value: type(value) is int and value > 0),
        "users": lambda value: type(value) is int and 0 < value <= results.rows,
        "seed": lambda value: type(value) is int and value >= 0,
        "training_seeds": lambda value: all(type(seed) is int for seed in value),
        "against": lambda value: all(isinstance(name, str) for name in value),
        "sid_equals_item": lambda value: type(value) is bool,
    }
    wrong = [name for name, test in fits.items() if not test(getattr(results, name))]
    if wrong:
        raise ValueError(f"{wrong[0]} is {in_short(getattr(results, wrong[0]))}")
    if not results.methods:
        raise ValueError("methods is empty")
    for name, method in results.methods.items():
        if list(method.metrics) != results.metrics:
            raise ValueError(f"method {name} has other metrics than the first")
        for key, metric in method.metrics.items():
            if set(metric.against) != set(results.against) - {name}:
                raise ValueError(f"{key} of {name} is not against {list(results.against)}")
    if results.primary not in results.metrics:
        raise ValueError(f"primary is {in_short(results.primary)}, none of the metrics")
