"""Alarms by hand: when each begins, that it is said once, when it ends."""

from __future__ import annotations

import copy
import json

import pytest

from recast.train.alarms import WINDOW, Watched, nothing_watched, watch, watch_tasks
from recast.types import Metrics

ROWS = 10_000
START = {"valid/ndcg@10": 0.1, "valid/hr@1": 0.04, "valid/hr@50": 0.5}


def run(
    *stretches: tuple[int, Metrics], watched: Watched | None = None, step: int = 0
) -> tuple[list[str], Metrics]:
    """The lines of so many steps of each, and the latest `alarm/...`."""
    watched, lines, flags = watched or nothing_watched(), [], {}
    for count, metrics in stretches:
        for _ in range(count):
            step += 1
            flags, begun = watch(watched, step, metrics, ROWS)
            lines += begun
    return lines, flags


@pytest.mark.parametrize(
    ("name", "metric", "start", "limit", "wild", "said"),
    [
        # After k steps at 1 the sum is (25 - k) .8 + k, above 22.5 from 13 on.
        ("all_zero", "group/all_zero_frac", 0.8, 13, 1.0, "0.904 (mean of 25 steps) is above 0.9"),
        # k > 12.5.
        ("kl", "actor/kl", 0.0, 13, 1.0, "0.52 (mean of 25 steps) is above 0.5"),
        # The mean is above 3 where (25 - k) 2 + 5 k > 75, below 4 / 3 where (25 - k) 2 < 33.3.
        ("entropy", "actor/entropy", 2.0, 9, 5.0, "3.08 (mean of 25 steps) is above that of the"),
        ("entropy", "actor/entropy", 2.0, 9, 0.0, "1.28 (mean of 25 steps) is below that of the"),
    ],
)
def test_a_running_mean_beyond_its_limit_is_said_once(
    name: str, metric: str, start: float, limit: int, wild: float, said: str
) -> None:
    before = (WINDOW, {metric: start})
    lines, flags = run(before, (limit - 1, {metric: wild}))
    assert (lines, flags) == ([], {f"alarm/{name}": 0.0})
    lines, flags = run(before, (200, {metric: wild}))
    assert len(lines) == 1
    assert lines[0].startswith(f"alarm {name} at step {WINDOW + limit}: {metric} {said}")
    assert "; " in lines[0]  # and what to do
    assert flags == {f"alarm/{name}": 1.0}
    lines, flags = run(before, (99, {metric: wild}), (99, {metric: start}), (99, {metric: wild}))
    assert len(lines) == 2  # it ended in between
    assert run((WINDOW - 1, {metric: wild}))[0] == []


def test_the_start_of_the_entropy_is_before_the_collapse() -> None:
    """5 steps at 2, then 1.2: the mean is 1.328 after 26, below 2 / 1.5; that of the first 25 steps
    is 1.36."""
    lines, _ = run((5, {"actor/entropy": 2.0}), (99, {"actor/entropy": 1.2}))
    assert [line.partition(":")[0] for line in lines] == ["alarm entropy at step 26"]


def test_an_alarm_ends_a_tenth_below_its_limit() -> None:
    """At .96, .86 and .96: one alarm; .8 is below .81 and ends it."""
    high, near, low = ((99, {"group/all_zero_frac": frac}) for frac in (0.96, 0.86, 0.8))
    assert len(run(high, near, high)[0]) == 1
    assert run(high, near)[1] == {"alarm/all_zero": 1.0}
    assert run(near)[1] == {"alarm/all_zero": 0.0}
    assert len(run(high, low, high)[0]) == 2


def rewarded(odd: float, even: float, **valid: float) -> list[tuple[int, Metrics]]:
    """Rewards that alternate for 51 steps, then a validation at one more, of the first kind."""
    steps = [(1, {"reward/mean": value}) for _ in range(25) for value in (odd, even)]
    named = {f"valid/{name.replace('_', '@')}": value for name, value in valid.items()}
    return [*steps, (1, {"reward/mean": odd} | named)]


def test_more_reward_and_worse_validation() -> None:
    """25 alternating rewards of .1 +- d have a variance of d^2 26 / 25; with d = .01 in both
    windows the standard error is .01 sqrt(2 * 1.04 / 25) (.00288), and .1088 is 3 of them away."""
    start = (1, {"valid/ndcg@10": 0.2})
    for rise, ndcg, raised in ((0.012, 0.18, 1), (0.006, 0.18, 0), (0.012, 0.195, 0)):
        after = rewarded(0.11 + rise, 0.09 + rise, ndcg_10=ndcg)
        lines, flags = run(start, *rewarded(0.11, 0.09), *after)
        assert flags == {"alarm/overfit": float(raised)}
        assert len(lines) == raised
    lines, _ = run(start, *rewarded(0.11, 0.09), *rewarded(0.122, 0.102, ndcg_10=0.18))
    assert "0.1800 from 0.2000 (limit 0.0100)" in lines[0]
    assert "--patience" in lines[0]
    # Rewards that do not vary at all.
    assert len(run(start, *rewarded(0.1, 0.1), *rewarded(0.2, 0.2, ndcg_10=0.18))[0]) == 1
    assert run(start, (9, {"reward/mean": 0.1, "valid/ndcg@10": 0.1}))[0] == []


def test_a_policy_that_narrows() -> None:
    """HR@1 must rise by 5 % of .04 (.002; a standard error is .00196) and HR@50 fall by 5 % of .5
    (.025), or of 100 rows by a standard error, .05."""
    start = (1, START)
    for sharp, wide, raised in ((0.043, 0.47, 1), (0.0415, 0.47, 0), (0.043, 0.48, 0)):
        lines, flags = run(start, (2, START | {"valid/hr@1": sharp, "valid/hr@50": wide}))
        assert len(lines) == raised == flags["alarm/narrow"]
    assert (
        "valid/hr@50 falls, 0.4700 from 0.5000 (limit 0.0250)"
        in run(start, (1, START | {"valid/hr@1": 0.05, "valid/hr@50": 0.47}))[0][0]
    )
    watched = nothing_watched()
    watch(watched, 0, START, 100)
    assert watch(watched, 1, {"valid/hr@1": 0.2, "valid/hr@50": 0.46}, 100)[1] == []
    assert run((1, {"valid/hr@1": 0.04}), (1, {"valid/hr@1": 0.9}))[1] == {}
    only = ({"valid/hr@1": 0.04, "valid/hr@10": 0.9}, {"valid/hr@1": 0.9, "valid/hr@10": 0.1})
    assert run(*((1, metrics) for metrics in only))[1] == {}


def test_a_rollout_that_names_no_item() -> None:
    lines, flags = run((1, {"group/invalid_frac": 0.0}), (3, {"group/invalid_frac": 0.002}))
    assert [line.partition(":")[0] for line in lines] == ["alarm invalid at step 2"]
    assert flags == {"alarm/invalid": 1.0}
    metrics = {"group/invalid_frac": 0.5}
    assert watch(nothing_watched(), 1, metrics, ROWS, is_free=True) == ({}, [])


def test_what_is_not_measured_is_silent() -> None:
    assert run((99, {"sft/loss": 3.0, "time/update_s": 1.0})) == ([], {})


def test_a_run_that_goes_on_raises_the_same_alarms() -> None:
    steps = [(1, {"group/all_zero_frac": 0.8 + step / 300, "actor/kl": 0.1}) for step in range(60)]
    whole, _ = run(*steps)
    assert len(whole) == 1
    for cut in (10, 30, 42, 50):
        watched = nothing_watched()
        first, _ = run(*steps[:cut], watched=watched)
        on_disk = json.loads(json.dumps(watched))
        assert on_disk == watched
        again, _ = run(*steps[cut:], watched=copy.deepcopy(on_disk), step=cut)
        assert first + again == whole


def test_every_task_has_alarms_of_its_own() -> None:
    """`buy` never hits, the whole does in every second group."""
    watched, lines = nothing_watched(), []
    metrics = {"group/all_zero_frac": 0.5, "buy/group/all_zero_frac": 1.0}
    for step in range(1, WINDOW + 2):
        flags, begun = watch_tasks(watched, step, metrics, {"": 20, "buy": 10}, is_free=False)
        lines += begun
    assert flags == {"alarm/all_zero": 0.0, "buy/alarm/all_zero": 1.0}
    assert [line.partition(":")[0] for line in lines] == ["buy"]
    assert lines[0].startswith(f"buy: alarm all_zero at step {WINDOW}: group/all_zero_frac 1.000")
    assert json.loads(json.dumps(watched)) == watched
