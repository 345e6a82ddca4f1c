"""Ranks: where the targets of every row stand, what must hold there and what may be asked of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import METRICS, Level
from recast.config.check import MOST_STEPS
from recast.evaluation.facts import Facts
from recast.types import RecastError, require

_LARGEST = 2**31
"""Of a place where the number of candidates is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Where each row's targets stand, in the order in which the row names them; all metrics follow.

    No target is there twice; rows with fewer than T are padded on the right with zeros.

    Example: a beam lists the SIDs a, b, c; a is shared by 2 items, b and c by 1. A row whose
    targets are the item of b, then one of SID a has
    `sid_rank=[[2, 1]]  items_before=[[2, 0]]  num_sharing=[[1, 2]]  item_mask=[[True, True]]`.
    """

    row_ids: Int[Tensor, " N"]
    users: Int[Tensor, " N"]
    sid_rank: Int[Tensor, "N T"]
    """Place of the target's SID among distinct SIDs, from 1; 0 = not in the list."""
    items_before: Int[Tensor, "N T"]
    """Candidate items listed before the target and those it ties with."""
    num_sharing: Int[Tensor, "N T"]
    """Candidate items the method cannot tell apart from the target, the target included: those
    that share its SID for a policy, 1 for a scorer of items."""
    item_mask: Bool[Tensor, "N T"]
    """False where a row has fewer targets."""
    sid_mask: Bool[Tensor, "N T"]
    """The same less targets whose SID an earlier target of the row has."""
    popular_rank: Int[Tensor, "N T"] | None = None
    """Place of the target where each SID stands for its most popular candidate; 0 = not in the
    list, or another item stands for its SID. None where popularity is not known."""
    num_shown: int | None = None
    """Distinct items among the first ten of any row; None where nobody counted."""
    thoughts: Float[Tensor, " 5"] | None = None
    """Sums over the thoughts that the lists stand behind (`recast.evaluation.thoughts`)."""
    facts: Facts = field(default_factory=Facts)


def refuse_impossible(ranks: Ranks) -> None:
    """Raise `ValueError` for what cannot be, such as a place below 0 or behind the last one."""
    num_rows, num_targets = ranks.row_ids.numel(), max(1, *ranks.item_mask.shape[1:2])
    if not num_rows:
        raise ValueError("there is no row")
    facts = ranks.facts
    most = facts.num_candidates or _LARGEST
    largest = {
        "sid_rank": min(most, facts.beam_width or most),
        "items_before": most - 1,
        "num_sharing": most,
        "popular_rank": most,
    }
    for name in ("row_ids", "users", "item_mask", "sid_mask", *largest):
        values: Tensor | None = getattr(ranks, name)
        if values is None:
            continue
        due = (num_rows,) if name in ("row_ids", "users") else (num_rows, num_targets)
        if tuple(values.shape) != due:
            raise ValueError(f"{name} has the shape {list(values.shape)}, not {list(due)}")
        is_mask = values.dtype == torch.bool
        if values.is_floating_point() or values.is_complex() or is_mask != name.endswith("_mask"):
            raise ValueError(f"{name} holds {values.dtype}")
        if name in largest:
            wrong = ranks.item_mask & ((values < 0) | (values > largest[name]))
            if bool(wrong.any()):
                value, row = int(values[wrong][0]), int(ranks.row_ids[wrong.any(1)][0])
                raise ValueError(f"{name} of row {row} is {value}, outside 0 to {largest[name]}")
    if ranks.num_shown is not None:
        shown = ranks.num_shown
        if not (type(shown) is int and 1 <= shown <= most):
            raise ValueError(f"num_shown is {shown!r}, outside 1 to {most}")
    if len(ranks.row_ids.unique()) < num_rows:
        raise ValueError("a row is there more than once")
    if bool((ranks.sid_mask & ~ranks.item_mask).any()):
        raise ValueError("sid_mask holds a target that item_mask has not")


def check_ranks(ranks: Ranks) -> None:
    """Raise `RecastError` for ranks that cannot be."""
    try:
        refuse_impossible(ranks)
    except ValueError as error:
        raise RecastError(f"ranks that cannot be ({error}): give those of a ranking") from error


def as_cuts(at: Any, beam_width: int | None) -> tuple[int, ...]:
    """Every k of `at`, a sequence of whole numbers or one of them.

    Raises `RecastError` for one below 1, above all use or beyond the lists that were ranked.
    """
    cuts = _several(at)
    for k in cuts:
        is_whole = isinstance(k, Integral) and not isinstance(k, bool)
        fits = is_whole and 1 <= int(k) <= MOST_STEPS
        require(fits, "at", at, f"give whole numbers from 1 to {MOST_STEPS}")
        if beam_width is not None and int(k) > beam_width:
            raise RecastError(
                f"at has {int(k)}, and each row lists {beam_width} SIDs (beam_width): leave it out "
                f"or evaluate again with beam_width {int(k)}"
            )
    return tuple(int(k) for k in cuts)


def as_names(name: str, values: Any, choices: Iterable[str]) -> tuple[Any, ...]:
    """A sequence of names, or one of them; `RecastError` for one that is no choice."""
    names = _several(values)
    for value in names:
        fits = isinstance(value, str) and value in choices
        require(fits, name, values, f"choose from {', '.join(choices)}")
    return names


def as_levels(levels: Any) -> tuple[Level, ...]:
    found = as_names("levels", levels, get_args(Level))
    require(bool(found), "levels", levels, f"give one or more of {', '.join(get_args(Level))}")
    return found


def as_metrics(names: Any) -> tuple[str, ...]:
    return as_names("names", names, METRICS)


def _several(values: Any) -> tuple[Any, ...]:
    if isinstance(values, Tensor):
        values = values.tolist()
    is_one = isinstance(values, str | Integral) or not isinstance(values, Iterable)
    return (values,) if is_one else tuple(values)
