"""The split by global time: event times in, one split per event out."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from recast.types import SPLITS, RecastError

SPLIT_NAME = "global time 80/10/10"


class Cuts(NamedTuple):
    """First time of each later part; an event at a cut belongs to the later part."""

    rl: int | float
    valid: int | float
    test: int | float


def split_events(times: np.ndarray, rl_frac: float) -> tuple[np.ndarray, Cuts]:
    """Index into `SPLITS` of every event, in the order given, and the cuts.

    The cuts are the sorted times at positions floor(.8 n) and floor(.9 n), and within the training
    period at floor((1 - rl_frac) n_train). Raises `RecastError` if a part gets no event.

    >>> splits, cuts = split_events(np.arange(10), 0.25)
    >>> splits.tolist(), cuts
    ([0, 0, 0, 0, 0, 0, 1, 1, 2, 3], Cuts(rl=6, valid=8, test=9))
    """
    ordered = np.sort(times)
    num_events = len(ordered)
    valid, test = (ordered[num_events * tenths // 10] for tenths in (8, 9))
    train = ordered[: np.searchsorted(ordered, valid)]
    # A fraction of the decimal digits given: in floats, (1 - 0.9) * 10 is less than 1.
    position = int((1 - Fraction(str(rl_frac))) * len(train))
    rl = train[position] if len(train) else valid
    splits = np.searchsorted(np.array([rl, valid, test]), times, side="right").astype(np.int8)
    counts = np.bincount(splits, minlength=len(SPLITS))
    if not counts.all():
        empty = SPLITS[int(np.argmin(counts))]
        raise RecastError(
            f"the split {empty!r} gets none of the {num_events} events ({SPLIT_NAME}, "
            f"{len(np.unique(ordered))} distinct times): give more events or finer times"
        )
    return splits, Cuts(rl.item(), valid.item(), test.item())
