"""How many torch threads: measured, because more is often slower for small models on busy cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import torch


def choose_threads(work: Callable[[], object], wanted: int | None, repeats: int = 3) -> int:
    """Set torch's threads to `wanted`, or to the count whose median wall time of `work` is least.

    Counts tried: 1 and every core this process may use. All cores must save a third of the time to
    be chosen: threads that wait for each other spin, and as soon as another process wants a core a
    step can take ten times as long. Returns the count.
    """
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted is None:
        seconds = {}
        for count in sorted({1, most}):
            torch.set_num_threads(count)
            work()  # warm-up: the first call starts the threads
            seconds[count] = median(_timed(work) for _ in range(repeats))
        wanted = most if seconds[most] < 2 / 3 * seconds[1] else 1
    torch.set_num_threads(wanted)
    return wanted


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
