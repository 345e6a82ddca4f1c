"""What the folders of a comparison say, together: ranks, curves and returned numbers in, its table
out, held to the bands of its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recast.config import CompareConfig
from recast.evaluation.breakdown import groups_of
from recast.evaluation.comparison import Groups, compare_seeds
from recast.evaluation.curves import budget, joined_curve, mean_metrics, read_run
from recast.evaluation.disk import read_ranks
from recast.evaluation.metrics import LEVELS, table_cuts
from recast.evaluation.ranks import Ranks
from recast.evaluation.seed_results import Comparison, MethodRow, Trial
from recast.policy.load import load_policy
from recast.policy.tasks import load_task
from recast.report.verdict import verdict
from recast.types import Metrics, RecastError, require

START, CONTROL = "start", "sft_continued"
"""Rows that every table has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of the table: a method with a group size."""

    name: str
    method: str
    group_size: int | None
    """None without rollouts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its own, of `recast rl`."""


def tabulate(
    config: CompareConfig,
    rows: Sequence[Row],
    runs: Mapping[str, Sequence[str]],
    found: Mapping[str, Metrics],
    tried: Mapping[str, list[Trial]],
    reads: Sequence[Mapping[str, Any]],
) -> Comparison:
    """All that the folders say, together; `found` is what the cells returned."""
    out = Path(config.output)
    ranks: dict[str, list[Ranks]] = {
        name: [_read_ranks(out / "test" / name / f"seed_{seed}") for seed in range(count)]
        for name, count in [(START, len(config.policy)), *((r, config.seeds) for r in runs)]
    }
    first = next((row.name for row in rows if row.method != CONTROL), CONTROL)
    against = list(dict.fromkeys([START, CONTROL, first]))
    compared = compare_seeds(ranks, against, _groups(config, ranks[START][0]))
    trained = {
        name: [read_run(out / one, found[one]) for one in names] for name, names in runs.items()
    }
    table = {START: MethodRow(method=None, group_size=None, lr=None, compared=compared[START])}
    for row in rows:
        own = trained[row.name]
        drifts = [found[f"drift/{name[3:]}"] for name in runs[row.name]]
        costs = [found[name] for name in runs[row.name]]
        means: Metrics = {
            key: float(np.mean([cost[key] for cost in costs]))
            for key in ("rollouts", "optimizer_steps", "cpu_s")
        }
        for key in ("kl", "kl_tail_frac"):
            if all(key in drift for drift in drifts):
                means[f"valid/{key}"] = float(np.mean([drift[key] for drift in drifts]))
        table[row.name] = MethodRow(
            method=row.method,
            group_size=row.group_size,
            lr=max(tried[row.name], key=lambda trial: trial.value).lr,
            compared=compared[row.name],
            trials=list(tried[row.name]),
            training=means | mean_metrics(own),
            curve={
                name: joined_curve(own, f"valid/{name}") for name in ("ndcg@10", "hr@1", "hr@50")
            },
            budget={other: budget(own, trained[other]) for other in trained if other != row.name},
        )
    start = ranks[START][0]
    results = Comparison(
        split=start.facts.split,
        split_name=start.facts.split_name,
        num_candidates=start.facts.num_candidates,
        exclude_seen=start.facts.exclude_seen,
        beam_width=config.beam_width,
        rows=len(start.row_ids),
        users=len(start.users.unique()),
        seeds=config.seeds,
        reseeded="SFT and RL" if len(config.policy) > 1 else "RL",
        steps=config.steps,
        prompts_per_step=config.prompts_per_step,
        mini_batch_rows=config.mini_batch_rows,
        settings=config.rl,
        against=against,
        test_reads=list(map(dict, reads)),
        methods=table,
        verdict=[],
    )
    return replace(results, verdict=verdict(results))


def _read_ranks(folder: Path) -> Ranks:
    try:
        return read_ranks(folder)
    except RecastError as error:
        told = str(error).removesuffix(": make it again with `recast evaluate`")
        raise RecastError(f"{told}: remove {folder} to run its cell again") from error


def _groups(config: CompareConfig, ranks: Ranks) -> Groups:
    """Slices of the test rows: popularity (0: cold) and history, and the task where there are
    several."""
    task = load_task(config.data, load_policy(config.policy[0]))
    rows = ranks.row_ids
    events = task.item_counts(("train", "rl"))[task.targets(rows)[:, 0]]
    groups = groups_of(events, task.history_lengths(rows))
    if len(task.tasks) > 1:
        groups["task"] = list(task.tasks), task.task_of(rows)
    return {kind: (names, index.numpy()) for kind, (names, index) in groups.items()}


def refuse_unknown(expected: Mapping[str, Any], rows: Sequence[str], beam_width: int) -> None:
    """Raise `RecastError` for bands of rows or metrics that the table does not have.

    Recall is there where rows have several targets.
    """
    known = [
        f"{level}/{name}@{k}"
        for level in LEVELS
        for name in ("hr", "ndcg", "recall")
        for k in table_cuts(name, beam_width)
    ]
    for name, bands in expected.items():
        require(name in rows, "expected", name, f"the rows are {', '.join(rows)}")
        for metric in bands:
            require(metric in known, f"expected.{name}", metric, f"choose from {', '.join(known)}")


def refuse_outside(expected: Mapping[str, Any], values: Mapping[str, Metrics]) -> None:
    """Raise `RecastError` for values, by row and metric, outside of their bands."""
    wrong = []
    for name, bands in expected.items():
        for metric, (least, most) in bands.items():
            remedy = f"choose from {', '.join(values[name])}"
            require(metric in values[name], f"expected.{name}", metric, remedy)
            value = values[name][metric]
            if not least <= value <= most:
                wrong.append(f"{metric} of {name} is {value:.4f}, outside {least:g} to {most:g}")
    if wrong:
        raise RecastError(
            f"{'; '.join(wrong)}: the results are in results.md, the recipe's "
            "expected bands do not hold"
        )
