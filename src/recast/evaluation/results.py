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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from recast.evaluation.facts import Facts, read_facts
from recast.run.files import read_json, reading, staged_file

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
    """All of one method; `extras` holds those of `rollouts`, `cpu_s`, `invalid_frac` and
    `optimizer_steps` that apply to it."""

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
            extras=method["extras"],
            facts=read_facts(shared | method),
        )
        for name, method in values.pop("methods").items()
    }
    seeds, against = (tuple(values.pop(name)) for name in ("training_seeds", "against"))
    return Results(**values, training_seeds=seeds, against=against, methods=methods)


def _measured(metric: dict[str, Any]) -> Measured:
    against = {other: Difference(**numbers) for other, numbers in metric["against"].items()}
    return Measured(**metric | {"against": against})
