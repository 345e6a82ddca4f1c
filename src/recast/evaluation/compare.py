"""Paired comparison: the ranks of several methods on the same rows in, `Results` out.

`low` and `high` bound the 95 % bootstrap interval over users; `p` is two-sided and paired by user
(`recast.evaluation.resample`). They cover the choice of users, not the training seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from recast.config import Level
from recast.evaluation.facts import refuse_to_mix
from recast.evaluation.metrics import LEVELS, PRIMARY, row_metrics
from recast.evaluation.ranks import Ranks
from recast.evaluation.resample import DRAWS, user_intervals, user_p_values
from recast.evaluation.results import Difference, Measured, MethodResults, Results
from recast.types import RecastError, require, require_range

EXTRAS = ("rollouts", "cpu_s", "invalid_frac", "optimizer_steps")
"""What a caller may add; `coverage` is read from the ranks."""


def compare(
    methods: Mapping[str, Ranks],
    against: Sequence[str],
    *,
    training_seeds: Sequence[int],
    extras: Mapping[str, Mapping[str, float]] | None = None,
    at: Sequence[int] = (),
    levels: Sequence[Level] = LEVELS,
    draws: int = DRAWS,
    seed: int = 0,
) -> Results:
    """Every metric with its interval, and its difference from each of the methods `against`.

    `at` and `levels` are those of `row_metrics`. Raises `RecastError` when methods ranked different
    rows or targets, when a fact that they must share differs (`recast.evaluation.facts.AGREE`),
    when a name is not among `methods` and when the primary metric is not among the metrics.
    """
    extras = extras or {}
    against = (against,) if isinstance(against, str) else tuple(against)
    _check(methods, against, extras)
    users = next(iter(methods.values())).users.numpy()
    per_row = {name: row_metrics(ranks, at, levels) for name, ranks in methods.items()}
    # A method that ranks the whole catalogue has cuts beyond the lists of the others.
    first, *others = per_row.values()
    keys = [key for key in first if all(key in values for values in others)]
    if PRIMARY not in keys:
        raise RecastError(
            f"at is {list(at)}, levels is {list(levels)}: the primary metric {PRIMARY} is not "
            "among them, add its level and cut"
        )
    table = {
        name: torch.stack([values[key] for key in keys], 1).numpy()
        for name, values in per_row.items()
    }
    single = user_intervals(np.hstack(list(table.values())), users, draws, seed)
    differences: dict[tuple[str, str], dict[str, Difference]] = {
        (n, k): {} for n in methods for k in keys
    }
    pairs = [(name, other) for name in methods for other in against if name != other]
    if pairs:
        a, b = (np.hstack([table[pair[side]] for pair in pairs]) for side in (0, 1))
        for (name, other), columns in zip(
            pairs, _split(_paired(a, b, users, draws, seed), len(pairs)), strict=True
        ):
            for key, *numbers in zip(keys, *columns, strict=True):
                versus = dict(zip(("difference", "low", "high", "p"), numbers, strict=True))
                differences[name, key][other] = Difference(**versus)
    measured = {
        name: {
            key: Measured(value=value, low=low, high=high, against=differences[name, key])
            for key, value, low, high in zip(keys, *columns, strict=True)
        }
        for name, columns in zip(methods, _split(single, len(methods)), strict=True)
    }
    return Results(
        split=_shared(methods, "split"),
        split_name=_shared(methods, "split_name"),
        rows=len(users),
        users=len(np.unique(users)),
        draws=draws,
        seed=seed,
        training_seeds=tuple(training_seeds),
        primary=PRIMARY,
        against=tuple(against),
        sid_equals_item=all(map(_is_equal_by_sid, per_row.values())),
        methods={
            name: MethodResults(
                metrics=measured[name],
                extras=dict(extras.get(name, {})) | _coverage(ranks),
                facts=ranks.facts,
            )
            for name, ranks in methods.items()
        },
    )


def _coverage(ranks: Ranks) -> dict[str, float]:
    shown, every = ranks.num_shown, ranks.facts.num_candidates
    return {"coverage": shown / every} if shown and every else {}


def _shared(methods: Mapping[str, Ranks], fact: str) -> str | None:
    values = [getattr(ranks.facts, fact) for ranks in methods.values()]
    return next((value for value in values if value is not None), None)


def _paired(
    a: np.ndarray, b: np.ndarray, users: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, ...]:
    """Difference, both ends of its interval and its p-value, column by column."""
    intervals = user_intervals(a - b, users, draws, seed)
    return (*intervals, user_p_values(a, b, users, draws, seed))


def _is_equal_by_sid(values: Mapping[str, torch.Tensor]) -> bool:
    names = [key.removeprefix("item/") for key in values if key.startswith("item/")]
    pairs = [(values[f"item/{name}"], values.get(f"sid/{name}")) for name in names]
    return all(sid is not None and torch.equal(item, sid) for item, sid in pairs)


def _split(statistics: Sequence[np.ndarray], parts: int) -> list[list[list[float]]]:
    """Stacked columns back into one list per statistic, part by part."""
    chopped = [np.split(statistic, parts) for statistic in statistics]
    return [[piece.tolist() for piece in part] for part in zip(*chopped, strict=True)]


def _check(
    methods: Mapping[str, Ranks],
    against: Sequence[str],
    extras: Mapping[str, Mapping[str, float]],
) -> None:
    if not methods:
        raise RecastError("there is no method to compare: give the ranks of at least one")
    for name, ranks in methods.items():
        require(isinstance(ranks, Ranks), f"method {name}", ranks, "give its ranks")
    for name in (*against, *extras):
        if name not in methods:
            raise RecastError(f"method {name!r} has no ranks: choose from {', '.join(methods)}")
    for name, values in extras.items():
        for key, value in values.items():
            if key not in EXTRAS:
                raise RecastError(f"extra {key!r} of {name}: choose from {', '.join(EXTRAS)}")
            require_range(f"extra {key} of {name}", value, 0, 1e15)
    refuse_other_rows(methods)


def refuse_other_rows(methods: Mapping[str, Ranks]) -> None:
    """Raise `RecastError` unless all ranked the same rows, users and targets, and share the facts
    that ranks hang on."""
    reference, *others = methods.items()
    for name, ranks in others:
        if not torch.equal(ranks.row_ids, reference[1].row_ids):
            raise RecastError(
                f"{name} and {reference[0]} ranked different rows: rank the same rows in the same "
                "order to compare them"
            )
        if not torch.equal(ranks.users, reference[1].users):
            raise RecastError(
                f"{name} and {reference[0]} ranked rows of different users: rank both on one data "
                "folder to compare them"
            )
        if not torch.equal(ranks.item_mask.sum(-1), reference[1].item_mask.sum(-1)):
            raise RecastError(
                f"{name} and {reference[0]} ranked different targets: give both the same targets "
                "to compare them"
            )
    refuse_to_mix({name: ranks.facts for name, ranks in methods.items()})
