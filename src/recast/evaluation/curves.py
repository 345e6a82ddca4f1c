"""What a run says of itself over its steps: the folder of `recast rl` in, its validation curve and
the means of its metrics out, and the same of several seeds together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from recast.evaluation.seeds import budget_ratio
from recast.run.reading import reading
from recast.types import Metrics

CURVE = "valid/ndcg@10"

_MEANS = (
    *("group/all_zero_frac", "group/single_hit_frac", "group/trainable_frac", "reward/mean"),
    *("actor/kl", "actor/ppo_kl", "actor/grad_norm", "actor/entropy"),
)
_PHASES = ("rollout", "signal", "reference", "old_logprobs", "update", "valid")
_SUMS = tuple(name for phase in _PHASES for name in (f"time/{phase}_s", f"tokens/{phase}"))
_MOST = ("memory/peak_gb", *(f"memory/{phase}_gb" for phase in _PHASES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run."""

    curve: dict[int, Metrics]
    """Step -> what a validation measured; step 0 is the start."""
    metrics: Metrics
    """Means over the steps, sums of seconds and tokens, the most memory; by phase too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A step of the curves of several seeds."""

    step: int
    mean: float
    spread: float | None
    seeds: int
    """That were validated there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Share of another method's steps after which a method is as good as that at its end, on
    validation; seeds are paired (arXiv 2604.22169, 5.4.1)."""

    ratio: float | None
    """Mean over the seeds that got there; None: none did, the ratio is above 1."""
    reached: int
    seeds: int


def read_run(folder: str | Path, returned: Metrics) -> Run:
    """Raises `RecastError` for a damaged file, one that lacks a step or ends otherwise than with
    what the run `returned`, and for a metric that is no finite number."""
    file = Path(folder) / "metrics.jsonl"
    with reading(file, f"remove {folder} to run its cell again"):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            for name, value in line.items():
                if name != "stage" and not (type(value) in (int, float) and math.isfinite(value)):
                    raise ValueError(f"{name} at step {line.get('step')} is {value!r}")
        curve = {
            line["step"]: {k: v for k, v in line.items() if k.startswith("valid/")}
            for line in lines
            if CURVE in line
        }
        if not curve:
            raise ValueError(f"it has no {CURVE}")
        if [line["step"] for line in lines] != list(range(len(lines))):
            raise ValueError("its steps are not one line each, in turn")
        for name, ended in (("step", returned["rl/step"]), (CURVE, returned[CURVE])):
            if lines[-1].get(name) != ended:
                raise ValueError(f"{name} ends with {lines[-1].get(name)}, the run with {ended}")
    steps = [line for line in lines if line["step"] > 0]
    metrics: Metrics = {}
    for names, reduce in ((_MEANS, mean), (_SUMS, sum), (_MOST, max)):
        for name in names:
            if values := [line[name] for line in steps if name in line]:
                metrics[name] = float(reduce(values))
    return Run(curve=curve, metrics=metrics)


def joined_curve(runs: Sequence[Run], name: str = CURVE) -> list[Point]:
    """Mean and spread of every step that a seed was validated at."""
    points = []
    for step in sorted({step for run in runs for step in run.curve}):
        values = [run.curve[step][name] for run in runs if name in run.curve.get(step, {})]
        if values:
            spread = stdev(values) if len(values) > 1 else None
            points.append(Point(step=step, mean=mean(values), spread=spread, seeds=len(values)))
    return points


def mean_metrics(runs: Sequence[Run]) -> Metrics:
    """Means over the seeds of what all of them measured."""
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    return {name: mean(run.metrics[name] for run in runs) for name in names}


def budget(runs: Sequence[Run], others: Sequence[Run]) -> Budget:
    """Of a method against another one, seed by seed."""
    ratios = []
    for run, other in zip(runs, others, strict=True):
        last = max(other.curve)
        curve = [run.curve[step][CURVE] for step in run.curve]
        ratios.append(budget_ratio(list(run.curve), curve, other.curve[last][CURVE], last))
    reached = [ratio for ratio in ratios if ratio is not None]
    return Budget(ratio=mean(reached) if reached else None, reached=len(reached), seeds=len(ratios))
