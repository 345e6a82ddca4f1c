"""A rank that leads: work of the first one in; what it gives out, on all of them.

Meanwhile the others do what it hands them, together with it, and wait for that as long as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

from recast.run.launched import SAID, join
from recast.run.world import LostRankError, agreed, is_first, stand_in, waiting, world

_LOOK = timedelta(seconds=1)
"""After which one that waits answers a signal."""
_numbers = count()
"""Of what was told, alike on all ranks."""

Result = TypeVar("Result")


def led(work: Callable[[], Result], follow: Callable[[Any], object]) -> Result:
    """What the first rank's `work` gives, for all; the others call `follow` with every task that it
    hands them by `handed`. Alone, and inside of such work, it is `work()`."""
    join()
    ranks = world()
    if ranks.size == 1:
        return work()
    if is_first():
        stand_in(replace(ranks, size=1, led=ranks))
        try:
            result = work()
        finally:
            stand_in(ranks)
        _tell(True, result)
        return result
    while True:
        is_over, told = _hear()
        if is_over:
            given: Result = told
            return given
        follow(told)


@contextmanager
def handed(task: Any) -> Iterator[None]:
    """Around what the ranks that this one leads do together with it, by their `follow(task)`."""
    before = world()
    if before.led is None:
        yield
        return
    stand_in(before.led)
    try:
        _tell(False, task)
        yield
    finally:
        stand_in(before)


def _tell(is_over: bool, value: Any) -> None:
    with waiting():
        world().store.set(f"led/{next(_numbers)}", "")
    agreed((is_over, value))


def _hear() -> tuple[bool, Any]:
    """What the first rank tells, whenever that is: a collective waits for half an hour at most, and
    a signal as long."""
    from torch.distributed import DistStoreError

    name, store = f"led/{next(_numbers)}", world().store
    with waiting():
        while not store.check([name]):
            with suppress(DistStoreError):  # not yet
                store.wait([name], _LOOK)
            if store.check([SAID]):
                raise LostRankError("another rank has ended, and said why")
    return agreed((False, None))
