"""Methods over seeds: the ranks of every seed in, means with their uncertainty and differences out.

What is said of a difference covers users and seeds alike (`over_both`), users alone where there is
one seed. Differences are paired by user and by seed; a start that all seeds share stands for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from recast.evaluation.compare import refuse_other_rows
from recast.evaluation.metrics import PRIMARY, row_metrics
from recast.evaluation.ranks import Ranks
from recast.evaluation.seeds import SeedStatistics, Uncertain, holm, seed_statistics
from recast.types import RecastError, require

Ends = tuple[float, float] | None
"""Of a 95 % interval; None where nothing can be concluded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds and rows."""

    mean: float
    spread: float | None
    """Standard deviation of the seeds' means; None for one seed."""
    over_users: Ends
    over_seeds: Ends
    over_both: Ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Versus(Estimate):
    """A difference from another row of the table."""

    p: float
    """Two-sided, over both."""
    p_holm: float | None = None
    """The same for the whole family of the primary metric's differences; None for the others."""
    smallest: float | None
    """A difference of this size would be found four times in five."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """The rows of one group, such as those of targets with 3 to 9 events."""

    group: str
    rows: int
    users: int
    metrics: dict[str, Estimate]
    against: dict[str, dict[str, Versus]]
    """Other row -> metric -> difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One row of the table: a method, or the start."""

    seeds: int
    metrics: dict[str, Estimate]
    against: dict[str, dict[str, Versus]]
    """Other row -> metric -> difference."""
    equals: list[str]
    """Other rows that ranked every row alike."""
    slices: dict[str, list[Slice]]
    coverage: float | None
    """Share of the catalogue among the first ten, mean over seeds."""


Groups = Mapping[str, tuple[Sequence[str], Int[np.ndarray, " N"]]]
"""Kind of slice -> names of its groups, and each row's."""


def compare_seeds(
    methods: Mapping[str, Sequence[Ranks]],
    against: Sequence[str],
    groups: Groups | None = None,
) -> dict[str, Compared]:
    """Every metric of every method, its differences from those `against`, and the same by group.

    Raises `RecastError` when two rankings are of different rows, users, targets, candidates, splits
    or evaluators, and for a method that lacks a seed (one of a single ranking is shared by all).
    """
    _check(methods, against)
    users = next(iter(methods.values()))[0].users.numpy()
    keys, values = _values(methods)
    whole = {name: _estimates(keys, array, users) for name, array in values.items()}
    versus = _family(keys, values, users, against)
    slices: dict[str, dict[str, list[Slice]]] = {name: {} for name in methods}
    chosen = [keys.index(key) for key in ("item/hr@10", PRIMARY)]
    shown = [keys[i] for i in chosen]
    for kind, (labels, index) in (groups or {}).items():
        for name in methods:
            slices[name][kind] = []
        for number, label in enumerate(labels):
            inside = index == number
            if not inside.any():
                continue
            part = {name: array[:, inside][..., chosen] for name, array in values.items()}
            gaps = _family(shown, part, users[inside], against[:1])
            for name, array in part.items():
                slices[name][kind].append(
                    Slice(
                        group=label,
                        rows=int(inside.sum()),
                        users=len(np.unique(users[inside])),
                        metrics=_estimates(shown, array, users[inside]),
                        against=gaps[name],
                    )
                )
    return {
        name: Compared(
            seeds=len(ranks),
            metrics=whole[name],
            against=versus[name],
            equals=[o for o in methods if o != name and _is_equal(values[name], values[o])],
            slices=slices[name],
            coverage=_coverage(ranks),
        )
        for name, ranks in methods.items()
    }


def _check(methods: Mapping[str, Sequence[Ranks]], against: Sequence[str]) -> None:
    require(bool(methods), "methods", dict(methods), "give the ranks of one or more")
    most = max(len(ranks) for ranks in methods.values())
    for name in against:
        require(name in methods, "against", name, f"choose from {', '.join(methods)}")
    for name, ranks in methods.items():
        if len(ranks) not in (1, most):
            raise RecastError(
                f"{name} has {len(ranks)} seeds and another method {most}: give every method the "
                "same seeds"
            )
    refuse_other_rows(
        {f"{name}, seed {i}": one for name, ranks in methods.items() for i, one in enumerate(ranks)}
    )


def _values(
    methods: Mapping[str, Sequence[Ranks]],
) -> tuple[list[str], dict[str, Float[np.ndarray, "S N M"]]]:
    """The metrics that all have, and their values by seed and row."""
    every = [one for ranks in methods.values() for one in ranks]
    several = any(bool((one.item_mask.sum(1) > 1).any()) for one in every)
    names = ["hr", "ndcg", *(["recall"] if several else [])]
    found = {
        name: [row_metrics(one, names=names) for one in ranks] for name, ranks in methods.items()
    }
    first, *others = [one for some in found.values() for one in some]
    keys = [key for key in first if all(key in one for one in others)]
    for key in ("item/hr@10", PRIMARY):
        if key not in keys:
            raise RecastError(f"{key} is not among the metrics: evaluate with 10 beams or more")
    return keys, {
        name: np.stack([np.stack([one[key].numpy() for key in keys], 1) for one in some])
        for name, some in found.items()
    }


def _family(
    keys: Sequence[str],
    values: Mapping[str, Float[np.ndarray, "S N M"]],
    users: Int[np.ndarray, " N"],
    against: Sequence[str],
) -> dict[str, dict[str, dict[str, Versus]]]:
    """All differences; those of the primary metric with a p-value of their family."""
    pairs = [(name, other) for name in values for other in against if name != other]
    found = {
        pair: seed_statistics(values[pair[0]] - values[pair[1]], users) for pair in _once(pairs)
    }
    place = keys.index(PRIMARY)
    adjusted = dict(
        zip(found, holm([f.over_both.p_values()[place] for f in found.values()]), strict=True)
    )
    gaps: dict[str, dict[str, dict[str, Versus]]] = {name: {} for name in values}
    for name, other in pairs:
        # Of two rows that are both compared with, each shows the other: one test, seen twice.
        is_turned = (name, other) not in found
        pair = (other, name) if is_turned else (name, other)
        gaps[name][other] = {
            key: _versus(found[pair], i, adjusted[pair] if key == PRIMARY else None, is_turned)
            for i, key in enumerate(keys)
        }
    return gaps


def _once(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [p for i, p in enumerate(pairs) if p[::-1] not in pairs[:i]]


def _versus(found: SeedStatistics, i: int, p_holm: float | None, is_turned: bool) -> Versus:
    sign = -1 if is_turned else 1

    def turned(ends: Ends) -> Ends:
        return (-ends[1], -ends[0]) if ends and is_turned else ends

    return Versus(
        mean=sign * float(found.mean[i]),
        spread=_known(found.spread[i]),
        over_users=turned(_ends(found.over_users, i)),
        over_seeds=turned(_ends(found.over_seeds, i)),
        over_both=turned(_ends(found.over_both, i)),
        p=float(found.over_both.p_values()[i]),
        p_holm=p_holm,
        smallest=_known(found.over_both.smallest_effect()[i]),
    )


def _estimates(
    keys: Sequence[str], values: Float[np.ndarray, "S N M"], users: Int[np.ndarray, " N"]
) -> dict[str, Estimate]:
    found = seed_statistics(values, users)
    return {
        key: Estimate(
            mean=float(found.mean[i]),
            spread=_known(found.spread[i]),
            over_users=_ends(found.over_users, i),
            over_seeds=_ends(found.over_seeds, i),
            over_both=_ends(found.over_both, i),
        )
        for i, key in enumerate(keys)
    }


def _ends(uncertain: Uncertain, i: int) -> Ends:
    low, high = (float(end[i]) for end in uncertain.interval())
    return None if np.isnan(low) or np.isnan(high) else (low, high)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _is_equal(a: Float[np.ndarray, "S N M"], b: Float[np.ndarray, "R N M"]) -> bool:
    return bool((a == b).all())


def _coverage(ranks: Sequence[Ranks]) -> float | None:
    shares = [
        one.num_shown / one.facts.num_candidates
        for one in ranks
        if one.num_shown and one.facts.num_candidates
    ]
    return sum(shares) / len(shares) if len(shares) == len(ranks) else None
