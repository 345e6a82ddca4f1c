"""`recast compare`: methods and a start in, a table that a sceptic can check out.

Every row of the table searches its learning rate with seed 0 on validation rows, the same number of
tries for all, then runs the other seeds with the best one. All runs of a seed read the same prompts
in the same order. Test rows are ranked when all is chosen; `test.json` says how often that was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from recast.cell import Cell, settings_of
from recast.config import CompareConfig, EvaluateConfig, RLConfig
from recast.config.rows import telling
from recast.evaluation.curves import CURVE
from recast.evaluation.drift import DriftConfig, measure_drift
from recast.evaluation.rank import rows_to_rank
from recast.evaluation.seed_results import Trial
from recast.experiment import finished_cells, follow, run_cells
from recast.methods.check import check_methods
from recast.methods.parts import find_part, resources
from recast.methods.table import METHODS
from recast.policy.device import find_device
from recast.policy.load import load_policy
from recast.policy.tasks import load_task
from recast.policy.threads import usable_cores
from recast.record import mark_of
from recast.report.comparison import markdown, plain
from recast.run.doors import enter
from recast.run.files import staged_file
from recast.run.fingerprint import meet
from recast.run.lead import led
from recast.run.reading import read_json, reading
from recast.run.world import world
from recast.tabulate import CONTROL, START, Row, refuse_outside, refuse_unknown, tabulate
from recast.types import Metrics, RecastError, require

_RETURNED = (CURVE, "rl/step", "rollouts", "optimizer_steps", "cpu_s")
"""What is read of a run's own numbers."""


def compare_methods(config: CompareConfig) -> str:
    """Run what is missing below `config.output`, write `results.json` and `results.md`; returns the
    verdict and the tables as text.

    Raises `RecastError` where finished runs do not belong to this comparison, and with `verify`
    for a value outside of its band.
    """
    meet(config, CompareConfig, goes_on=True)
    check_methods(config)
    return led(partial(_compare, config), follow)


def _compare(config: CompareConfig) -> str:
    out, rows = Path(config.output), rows_of(config)
    refuse_unknown(config.expected, [START, *(row.name for row in rows)], config.beam_width)
    _refuse_early(config, rows)
    told = ("verify", "expected", "workers", "trackio")
    settings = {k: v for k, v in asdict(config).items() if k not in told}
    at_once = usable_cores() if config.device == "cpu" and not world().led else 1
    workers = config.workers or at_once

    def run(cells: list[Cell], *, goes_on: bool = True) -> dict[str, Metrics]:
        found = run_cells(out, cells, settings, workers=workers, goes_on=goes_on)
        return _refuse_damaged(cells, found)

    trials = [run_cell(config, row, lr, 0, "search") for row in rows for lr in config.lrs]
    starts = [evaluate_cell(config, START, *one) for one in enumerate(config.policy)]
    found = _refuse_damaged(trials, finished_cells(out, [*trials, *starts]))
    if any(cell.name not in found for cell in trials):
        found = run(trials, goes_on=False)
    tried = {
        row.name: [
            Trial(lr=lr, value=found[_run_name(row, lr, 0)][CURVE]) for lr in sorted(config.lrs)
        ]
        for row in rows
    }
    lrs = {name: max(some, key=lambda trial: trial.value).lr for name, some in tried.items()}
    others = range(1, config.seeds)
    seeds = [run_cell(config, row, lrs[row.name], s, "seeds") for row in rows for s in others]
    runs = {
        row.name: [_run_name(row, lrs[row.name], seed) for seed in range(config.seeds)]
        for row in rows
    }
    judged = [drift_cell(config, name) for names in runs.values() for name in names]
    judged += starts
    judged += [
        evaluate_cell(config, row, seed, str(out / name / "policy"))
        for row, names in runs.items()
        for seed, name in enumerate(names)
    ]
    finished_cells(out, [*trials, *seeds, *judged])  # what does not fit, before it is trained for
    if seeds:
        found |= run(seeds)
    reads = _note_test(out, {"lrs": lrs, "seeds": config.seeds, "policies": config.policy})
    found |= run(judged)
    results = tabulate(config, rows, runs, found, tried, reads)
    results.save(out / "results.json")
    with staged_file(out / "results.md") as file:
        file.write_text(markdown(results), encoding="utf-8")
    if config.verify:
        values = {
            name: {key: found.mean for key, found in row.compared.metrics.items()}
            for name, row in results.methods.items()
        }
        refuse_outside(config.expected, values)
    return plain(results)


def rows_of(config: CompareConfig) -> list[Row]:
    """The methods in their order, the control last where it is not named."""
    rows = []
    for row in [*config.methods, *([CONTROL] if CONTROL not in config.methods else [])]:
        method, own = config.method_of(row), config.rl.get(row, {})
        sizes: Sequence[int | None] = config.group_sizes if METHODS[method].samplers else [None]
        for size in sizes:
            name = f"{row}@{size}" if len(sizes) > 1 else row
            rows.append(Row(name=name, method=method, group_size=size, settings=own))
    return rows


def _refuse_damaged(cells: Sequence[Cell], found: dict[str, Metrics]) -> dict[str, Metrics]:
    """What cells returned; `RecastError` where a run's numbers are not there, or not finite."""
    for cell in cells:
        if cell.name not in found:
            continue
        returned, remedy = found[cell.name], f"remove {cell.folder} to run its cell again"
        for key in (*returned, *(_RETURNED if isinstance(cell.config, RLConfig) else ())):
            value = returned.get(key)
            fits = isinstance(value, int | float) and isfinite(value)
            require(fits, f"{key} in {mark_of(cell)}", value, remedy)
    return found


def _refuse_early(config: CompareConfig, rows: Sequence[Row]) -> None:
    """Raise `RecastError` for what would come up behind the training: settings that no method
    reads, a device or a folder of a row that is not there and no row to rank."""
    find_device(config.device)
    asked = set[str]().union(*(_reads(config, row) for row in rows))
    for name in ("ranker", "embeddings", "sampler"):
        value = getattr(config, name)
        if value is not None and name not in asked:
            raise RecastError(f"{name} is {value!r}: none of these methods uses one, leave it out")
    for row in rows:
        with telling(config, row.name.partition("@")[0]):
            cell = run_cell(config, row, config.lrs[0], 0, "search")
            settings_of(cell)
            enter(cell.config, RLConfig, goes_on=True)
    for policy in config.policy:
        rows_to_rank(load_task(config.data, load_policy(policy)), config.data, "test")


def _reads(config: CompareConfig, row: Row) -> set[str]:
    """The resources of a method's parts; `sampler` where it has rollouts."""
    method, own = METHODS[row.method], row.settings
    parts: list[Any] = [
        find_part(kind, own[kind]) if own.get(kind) else getattr(method, kind)
        for kind in ("reward", "signal", "loss")
    ]
    drawn_by = own.get("sampler") or config.sampler or method.sampler
    drawn_by = drawn_by if method.samplers else None
    if drawn_by:
        parts.append(find_part("sampler", drawn_by))
    found = set[str]().union(*(resources(part) for part in parts))
    return found | ({"sampler"} if drawn_by else set())


def _run_name(row: Row, lr: float, seed: int) -> str:
    return f"rl/{row.name}/lr_{lr:g}_seed_{seed}"


def run_cell(config: CompareConfig, row: Row, lr: float, seed: int, stage: str) -> Cell:
    """A run; what its method has no use for is left out."""
    name, asked = _run_name(row, lr, seed), _reads(config, row)
    shared: dict[str, Any] = {
        "data": config.data,
        "policy": config.policy[seed % len(config.policy)],
        "output": str(Path(config.output) / name),
        "method": row.method,
        "sampler": config.sampler if "sampler" in asked else None,
        "ranker": config.ranker if "ranker" in asked else None,
        "embeddings": config.embeddings if "embeddings" in asked else None,
        "group_size": row.group_size or RLConfig.group_size,
        "prompts_per_step": config.prompts_per_step,
        "steps": config.steps,
        "eval_every": config.eval_every,
        "valid_rows": config.valid_rows,
        "valid_metrics": ["ndcg@10", "hr@1", "hr@10", "hr@50"],
        "mini_batch_rows": config.mini_batch_rows if row.group_size else None,
        "lr": lr,
        "seed": seed,
        "device": config.device,
        "threads": _threads(config),
        "trackio": config.trackio,
    }
    return Cell(name=name, config=RLConfig(**{**shared, **row.settings}), stage=stage, unit="runs")


def drift_cell(config: CompareConfig, run: str) -> Cell:
    out = Path(config.output)
    drift = DriftConfig(
        data=config.data, policy=str(out / run / "policy"), output=str(out / "drift" / run[3:])
    )
    return Cell(name=f"drift/{run[3:]}", config=drift, run=measure_drift, stage="judge")


def evaluate_cell(config: CompareConfig, row: str, seed: int, policy: str) -> Cell:
    name = f"test/{row}/seed_{seed}"
    evaluate = EvaluateConfig(
        data=config.data,
        policy=policy,
        output=str(Path(config.output) / name),
        beam_width=config.beam_width,
        exact_rows=0,
        device=config.device,
        threads=_threads(config),
    )
    return Cell(name=name, config=evaluate, stage="judge")


def _threads(config: CompareConfig) -> int | None:
    return 1 if config.device == "cpu" else None


def _note_test(out: Path, choices: dict[str, Any]) -> list[dict[str, Any]]:
    """Every set of choices that test rows were ranked with, this one included."""
    file, reads = out / "test.json", []
    if file.is_file():
        with reading(file, "remove it, and say that test was read before"):
            reads = read_json(file, list)
            reads = [
                {"when": str(read["when"]), "choices": dict(read["choices"])} for read in reads
            ]
    if choices not in [read["choices"] for read in reads]:
        reads.append({"when": f"{datetime.now():%Y-%m-%d %H:%M}", "choices": choices})
        with staged_file(file) as stage:
            stage.write_text(json.dumps(reads, indent=2) + "\n")
    return reads
