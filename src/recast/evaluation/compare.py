"""Paired comparison: the ranks of several methods on the same rows in, `results.json` out.

Schema, all numbers unrounded:

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
                    "optimizer_steps": 150}}}}

`low` and `high` bound the 95 % bootstrap interval over users; `p` is two-sided and paired by user
(`recast.evaluation.resample`). They cover the choice of users, not the training seed. `extras`
holds those of the four that apply to the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from recast.evaluation.metrics import PRIMARY, Ranks, row_metrics
from recast.evaluation.resample import DRAWS, user_intervals, user_p_values
from recast.types import RecastError

EXTRAS = ("rollouts", "cpu_s", "invalid_frac", "optimizer_steps")


def compare(
    methods: Mapping[str, Ranks],
    against: Sequence[str],
    *,
    split: str,
    split_name: str,
    training_seeds: Sequence[int],
    extras: Mapping[str, Mapping[str, float]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric with its interval, and its difference from each of the methods `against`.

    Raises `RecastError` when methods ranked different rows or a name is not among `methods`.
    """
    extras = extras or {}
    _check(methods, against, extras)
    first = next(iter(methods.values()))
    users = first.users.numpy()
    per_row = {name: row_metrics(ranks) for name, ranks in methods.items()}
    keys = list(next(iter(per_row.values())))
    table = {
        name: torch.stack([values[key] for key in keys], 1).numpy()
        for name, values in per_row.items()
    }
    single = user_intervals(np.hstack(list(table.values())), users, draws, seed)
    metrics: dict[str, dict[str, Any]] = {
        name: {
            key: {"value": value, "low": low, "high": high, "against": {}}
            for key, value, low, high in zip(keys, *columns, strict=True)
        }
        for name, columns in zip(methods, _split(single, len(methods)), strict=True)
    }
    pairs = [(name, other) for name in methods for other in against if name != other]
    if pairs:
        a, b = (np.hstack([table[pair[side]] for pair in pairs]) for side in (0, 1))
        for (name, other), columns in zip(
            pairs, _split(_paired(a, b, users, draws, seed), len(pairs)), strict=True
        ):
            for key, *numbers in zip(keys, *columns, strict=True):
                versus = dict(zip(("difference", "low", "high", "p"), numbers, strict=True))
                metrics[name][key]["against"][other] = versus
    return {
        "split": split,
        "split_name": split_name,
        "rows": len(users),
        "users": len(np.unique(users)),
        "resampled": "users",
        "draws": draws,
        "seed": seed,
        "training_seeds": list(training_seeds),
        "primary": PRIMARY,
        "against": list(against),
        "sid_equals_item": all(map(_is_equal_by_sid, per_row.values())),
        "methods": {
            name: {"metrics": metrics[name], "extras": dict(extras.get(name, {}))}
            for name in methods
        },
    }


def _paired(
    a: np.ndarray, b: np.ndarray, users: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, ...]:
    """Difference, both ends of its interval and its p-value, column by column."""
    intervals = user_intervals(a - b, users, draws, seed)
    return (*intervals, user_p_values(a, b, users, draws, seed))


def _is_equal_by_sid(values: Mapping[str, torch.Tensor]) -> bool:
    names = [key.removeprefix("item/") for key in values if key.startswith("item/")]
    return all(torch.equal(values[f"item/{name}"], values[f"sid/{name}"]) for name in names)


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
    for name in (*against, *extras):
        if name not in methods:
            raise RecastError(f"method {name!r} has no ranks: choose from {', '.join(methods)}")
    for name, values in extras.items():
        for key in values:
            if key not in EXTRAS:
                raise RecastError(f"extra {key!r} of {name}: choose from {', '.join(EXTRAS)}")
    reference, *others = methods.items()
    for name, ranks in others:
        if not torch.equal(ranks.row_ids, reference[1].row_ids):
            raise RecastError(
                f"{name} and {reference[0]} ranked different rows: rank the same rows in the same "
                "order to compare them"
            )
