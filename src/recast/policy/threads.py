"""How many torch threads: measured, because more is often slower for small models on busy cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import torch

from recast.run.world import agreed, alone, world


def choose_threads(
    work: Callable[[], object], wanted: int | None, device: str = "cpu", repeats: int = 3
) -> int:
    """Set torch's threads to `wanted`, or to the count whose median wall time of `work` is least.

    Counts tried: 1 and every core this process may use. All cores must save a third of the time to
    be chosen: threads that wait for each other spin, and as soon as another process wants a core a
    step can take ten times as long. Off the CPU they hardly matter and stay as they are.

    Several ranks on one machine share its cores and take the count of the first.

    Returns the count.
    """
    if wanted is None and device != "cpu":
        wanted = torch.get_num_threads()
    if wanted is None:
        with alone():  # a rank that is faster done must not wait for another
            wanted = _faster(work, usable_cores(), repeats)
    wanted = agreed(wanted)
    torch.set_num_threads(wanted)
    return wanted


def _faster(work: Callable[[], object], most: int, repeats: int) -> int:
    if most == 1:
        return 1
    torch.set_num_threads(1)
    work()  # warm-up
    single = median(_timed(work) for _ in range(repeats))
    torch.set_num_threads(most)
    # On busy cores a call can take a hundred times as long. The first one, which also starts the
    # threads, then settles it: more of them would cost the run minutes.
    if _timed(work) > 10 * single:
        return 1
    return most if median(_timed(work) for _ in range(repeats)) < 2 / 3 * single else 1


def usable_cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(cores // world().local_size, 1)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
