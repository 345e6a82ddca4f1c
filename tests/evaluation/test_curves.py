"""Runs over their steps: means, curves of several seeds, the budget ratio; damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recast.evaluation.curves import (
    Budget,
    Point,
    Run,
    budget,
    joined_curve,
    mean_metrics,
    read_run,
)
from recast.types import RecastError

LINES = [
    {"step": 0, "stage": "ReCast", "time_s": 0.1, "valid/ndcg@10": 0.1, "time/valid_s": 9.0},
    {
        **{"step": 1, "stage": "ReCast", "time_s": 0.2, "group/all_zero_frac": 0.5},
        **{"time/update_s": 2.0, "tokens/update": 5.0, "memory/update_gb": 3.0},
    },
    {
        **{"step": 2, "stage": "ReCast", "time_s": 0.3, "group/all_zero_frac": 1.0},
        **{"time/update_s": 3.0, "tokens/update": 7.0, "memory/update_gb": 2.0},
        **{"valid/ndcg@10": 0.2, "memory/peak_gb": 4.0},
    },
]

RETURNED = {"rl/step": 2.0, "valid/ndcg@10": 0.2}


def write(folder: Path, lines: list[dict[str, object]]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(*values: float) -> Run:
    return Run(curve={50 * i: {"valid/ndcg@10": v} for i, v in enumerate(values)}, metrics={})


def test_a_run(tmp_path: Path) -> None:
    found = read_run(write(tmp_path, LINES), RETURNED)
    assert found.curve == {0: {"valid/ndcg@10": 0.1}, 2: {"valid/ndcg@10": 0.2}}
    assert found.metrics["group/all_zero_frac"] == 0.75
    assert found.metrics["time/update_s"] == 5.0
    assert found.metrics["memory/peak_gb"] == 4.0
    assert found.metrics["memory/update_gb"] == 3.0
    assert found.metrics["tokens/update"] == 12.0
    assert "time/valid_s" not in found.metrics  # step 0 is the start's
    assert mean_metrics([found, Run(curve={}, metrics={"time/update_s": 1.0})]) == {
        "time/update_s": 3.0
    }


def test_curves_of_seeds_say_how_many_are_there() -> None:
    points = joined_curve([run(0.1, 0.2), run(0.1, 0.4), run(0.1)])
    assert points[0] == Point(step=0, mean=points[0].mean, spread=0.0, seeds=3)
    assert points[1].mean == pytest.approx(0.3)
    assert points[1].spread == pytest.approx(0.02**0.5)
    assert (points[1].step, points[1].seeds) == (50, 2)
    assert joined_curve([run(0.1)])[0].spread is None


def test_the_budget_ratio_is_a_mean_over_those_that_got_there() -> None:
    """Seed 0 reaches .3 at step 50 of 100, seed 1 never: .5, of 1 seed."""
    others = [run(0.1, 0.2, 0.3), run(0.1, 0.2, 0.3)]
    assert budget([run(0.1, 0.3, 0.2), run(0.1, 0.2, 0.29)], others) == Budget(
        ratio=0.5, reached=1, seeds=2
    )
    assert budget([run(0.1, 0.2)], others[:1]) == Budget(ratio=None, reached=0, seeds=1)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([LINES[0] | {"valid/ndcg@10": float("nan")}], "valid/ndcg@10 at step 0 is nan"),
        ([LINES[0] | {"actor/kl": "high"}], "actor/kl at step 0 is 'high'"),
        ([LINES[1]], "it has no valid/ndcg@10"),
        (LINES[:1], "step ends with 0, the run with 2.0"),
        ([LINES[0], LINES[2]], "its steps are not one line each, in turn"),
        ([*LINES[:2], LINES[2] | {"valid/ndcg@10": 7.5}], "ends with 7.5, the run with 0.2"),
    ],
)
def test_a_damaged_run(tmp_path: Path, lines: list[dict[str, object]], said: str) -> None:
    with pytest.raises(RecastError, match=said):
        read_run(write(tmp_path, lines), RETURNED)
