"""Alarms of an RL run: the metrics of a step in; which alarms stand, and lines for new ones, out.

An alarm begins when what it measures passes its limit, is said once, and ends a tenth below. One
whose metrics are not measured is silent. What was seen is plain numbers: a run that goes on raises
the same alarms at the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, variance
from typing import NamedTuple, TypedDict

from recast.types import Metrics

WINDOW = 25
"""Steps of a running mean: at the quickstart's 32 prompts a step, 86 % of them without a hit, its
standard error is 1.2 %, so that 90 % is three of them away."""

MOST_ALL_ZERO = 0.9
"""Share of the groups: beyond it nine tenths of the rollouts are made for nothing."""

MOST_KL = 0.5
"""Nats per token: an item of three tokens is 4.5 times as likely as under the reference. Runs of
the quickstart stay below 0.02."""

MOST_ENTROPY_FACTOR = 1.5
"""Up or down from the entropy of the first `EARLY` steps: the quickstart moves it by 4 %, a rate a
hundred times its own by 1.6 while NDCG@10 falls to a quarter."""

EARLY = 5
"""Steps before a rate that is far too high shows; a step of the quickstart has a spread of 2 %."""

MOST_REWARD_RISE = 3.0
"""Standard errors of the difference: every step has other prompts, and less is chance."""

MOST_CHANGE = 0.05
"""Of a validation, relative; or one standard error of a share of so many rows, if that is more.
Public runs that narrowed lost 9 to 18 % of HR@50 and won 9 to 12 % of HR@1 (MiniOneRec issue 35 and
repetitions of it); the quickstart loses up to 4 % of NDCG@10."""

LEAST_WIDE = 20
"""Places of the shortest list that says whether a policy narrows."""

_ENDS = 0.9  # of the limit

_READ = ("group/all_zero_frac", "actor/kl", "actor/entropy", "reward/mean", "valid/")


class Watched(TypedDict):
    """What the alarms have seen, as JSON holds it."""

    first: dict[str, list[float]]
    """The first `WINDOW` values of each metric that is read."""
    latest: dict[str, list[float]]
    """The latest ones."""
    raised: dict[str, bool]
    """Whether an alarm stands, for those that are measured."""


def nothing_watched() -> Watched:
    return {"first": {}, "latest": {}, "raised": {}}


class Found(NamedTuple):
    """What an alarm measures, in parts of its limit, and how to say it."""

    severity: float
    text: str


def watch(
    watched: Watched, step: int, metrics: Metrics, valid_rows: int, *, is_free: bool = False
) -> tuple[Metrics, list[str]]:
    """Take in the metrics of a step (0: the start's validation, of `valid_rows` rows).

    Returns `alarm/NAME`, 1 while it stands, for all that are measured, and a line for each that
    begins now. With `is_free` rollouts may name no item.
    """
    for name, value in metrics.items():
        if name.startswith(_READ):
            first = watched["first"].setdefault(name, [])
            watched["latest"][name] = [*watched["latest"].get(name, []), value][-WINDOW:]
            if len(first) < WINDOW:
                first.append(value)
    lines = []
    for name, find in _ALARMS.items():
        found = find(watched, metrics, valid_rows)
        if found is None or (name == "invalid" and is_free):
            continue
        stood = watched["raised"].get(name, False)
        watched["raised"][name] = stands = found.severity > (_ENDS if stood else 1.0)
        if stands and not stood:
            lines.append(f"alarm {name} at step {step}: {found.text}")
    raised = {name: stands for name, stands in watched["raised"].items() if name in _ALARMS}
    return {f"alarm/{name}": float(stands) for name, stands in raised.items()}, lines


def watch_tasks(
    watched: Watched, step: int, metrics: Metrics, valid_rows: dict[str, int], *, is_free: bool
) -> tuple[Metrics, list[str]]:
    """`watch` of the whole, whose name is empty, and of each task by what stands under `TASK/`."""
    alarms, lines = Metrics(), list[str]()
    for name, count in valid_rows.items():
        prefix = f"{name}/" if name else ""
        view = nothing_watched()
        for kind, values in watched.items():
            view[kind] = {  # type: ignore[literal-required]
                key.removeprefix(prefix): value
                for key, value in values.items()  # type: ignore[attr-defined]
                if key.startswith(prefix)
            }
        own = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
        raised, begun = watch(view, step, own, count, is_free=is_free)
        for kind, values in view.items():
            watched[kind].update(  # type: ignore[literal-required]
                {prefix + key: value for key, value in values.items()}  # type: ignore[attr-defined]
            )
        alarms |= {prefix + key: value for key, value in raised.items()}
        lines += [f"{name}: {line}" if name else line for line in begun]
    return alarms, lines


def _invalid(watched: Watched, metrics: Metrics, valid_rows: int) -> Found | None:
    if (frac := metrics.get("group/invalid_frac")) is None:
        return None
    text = f"group/invalid_frac {frac:.3g} is above 0: rollouts name no item of the catalogue; "
    return Found(2.0 * (frac > 0), text + "mend the sampler if it is yours, report it if not")


def _all_zero(watched: Watched, metrics: Metrics, valid_rows: int) -> Found | None:
    if (means := _means(watched, metrics, "group/all_zero_frac")) is None:
        return None
    text = (
        f"group/all_zero_frac {means.now:.3f} (mean of {WINDOW} steps) is above {MOST_ALL_ZERO}: "
        "hardly a rollout teaches; raise group_size, train SFT longer or repair (method recast)"
    )
    return Found(means.now / MOST_ALL_ZERO, text)


def _kl(watched: Watched, metrics: Metrics, valid_rows: int) -> Found | None:
    if (means := _means(watched, metrics, "actor/kl")) is None:
        return None
    text = (
        f"actor/kl {means.now:.3g} (mean of {WINDOW} steps) is above {MOST_KL}: the policy runs "
        "away from its reference; lower lr or raise kl_coef"
    )
    return Found(means.now / MOST_KL, text)


def _entropy(watched: Watched, metrics: Metrics, valid_rows: int) -> Found | None:
    if (means := _means(watched, metrics, "actor/entropy")) is None:
        return None
    start = fmean(watched["first"]["actor/entropy"][:EARLY])
    factor = max(means.now, 1e-6) / max(start, 1e-6)  # one that is certain has none to lose
    side, why = "above", "the policy forgets what it knew"
    if factor < 1:
        factor, side, why = 1 / factor, "below", "its rollouts become all alike"
    text = (
        f"actor/entropy {means.now:.3g} (mean of {WINDOW} steps) is {side} that of the start, "
        f"{start:.3g}, by a factor of more than {MOST_ENTROPY_FACTOR:g}: {why}; lower lr or "
        "raise kl_coef"
    )
    return Found(factor / MOST_ENTROPY_FACTOR, text)


def _overfit(watched: Watched, metrics: Metrics, valid_rows: int) -> Found | None:
    first, latest, now = watched["first"], watched["latest"], metrics.get("valid/ndcg@10")
    if (means := _means(watched, metrics, "reward/mean")) is None or now is None:
        return None
    if math.isnan(means.now):
        return Found(0.0, "")
    best = max(first["valid/ndcg@10"] + latest["valid/ndcg@10"])
    spread = variance(first["reward/mean"]) + variance(latest["reward/mean"])
    rise = (means.now - means.start) / max(math.sqrt(spread / WINDOW), 1e-12)
    fall, most = best - now, _margin(best, valid_rows)
    text = (
        f"reward/mean rises, {means.now:.3g} (mean of {WINDOW} steps) from {means.start:.3g}, by "
        f"{rise:.1f} standard errors (limit {MOST_REWARD_RISE:g}), while valid/ndcg@10 falls, "
        f"{now:.4f} from {best:.4f} (limit {most:.4f}): more reward is not what you want; lower "
        "lr, take another reward, or stop by --patience with --keep best"
    )
    return Found(min(rise / MOST_REWARD_RISE, fall / most), text)


def _narrow(watched: Watched, metrics: Metrics, valid_rows: int) -> Found | None:
    cuts = [int(name[9:]) for name in metrics if name.startswith("valid/hr@")]
    if 1 not in cuts or max(cuts) < LEAST_WIDE:
        return None
    sharp, wide = "valid/hr@1", f"valid/hr@{max(cuts)}"
    (was_sharp, is_sharp), (was_wide, is_wide) = (
        (watched["first"][name][0], metrics[name]) for name in (sharp, wide)
    )
    rise, fall = _margin(was_sharp, valid_rows), _margin(was_wide, valid_rows)
    text = (
        f"{wide} falls, {is_wide:.4f} from {was_wide:.4f} (limit {fall:.4f}), while {sharp} rises, "
        f"{is_sharp:.4f} from {was_sharp:.4f} (limit {rise:.4f}): the policy narrows to what it "
        "is sure of; raise kl_coef, lower lr or make fewer steps"
    )
    return Found(min((is_sharp - was_sharp) / rise, (was_wide - is_wide) / fall), text)


_ALARMS: dict[str, Callable[[Watched, Metrics, int], Found | None]] = {
    "all_zero": _all_zero,
    "kl": _kl,
    "entropy": _entropy,
    "overfit": _overfit,
    "narrow": _narrow,
    "invalid": _invalid,
}


class _Means(NamedTuple):
    start: float
    now: float


def _means(watched: Watched, metrics: Metrics, name: str) -> _Means | None:
    """Of the first and the latest values: NaN, which is beyond no limit, until the window is full;
    None where this step has none."""
    if name not in metrics:
        return None
    if len(watched["latest"][name]) < WINDOW:
        return _Means(math.nan, math.nan)
    return _Means(fmean(watched["first"][name]), fmean(watched["latest"][name]))


def _margin(share: float, rows: int) -> float:
    """What a share of so many rows must move to count.

    >>> round(_margin(0.2, 10_000), 4), round(_margin(0.2, 100), 4)
    (0.01, 0.04)
    """
    return max(MOST_CHANGE * share, math.sqrt(share * (1 - share) / rows), 1 / rows)
