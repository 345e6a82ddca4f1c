"""Which sequences go through a model together: lengths in, batches out.

A batch is as wide as its longest sequence, so sequences of like length belong together; a pass of
its own costs time too, whatever it holds. Both are weighed in tokens: `pass_tokens` says how many
tokens take as long as one more pass, on this machine and for this model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from recast.run.world import agreed, alone

MOST_MEASURED = 4096
"""Tokens of a pass that is timed: more says the same."""
MOST_PASS_TOKENS = 65536
"""As good as never splitting a batch to save padding."""


def by_length(
    lengths: Int[Tensor, " N"],
    branch_tokens: Int[Tensor, " N"],
    max_tokens: int,
    pass_tokens: int = MOST_PASS_TOKENS,
) -> list[Int[Tensor, " B"]]:
    """Positions of prompts, shortest first, in the batches that cost least.

    A batch of B prompts costs `pass_tokens` + B times its width, which is its longest prompt and
    its most branch tokens; it has at most `max_tokens`, unless a prompt has more on its own. Found
    by dynamic programming over the sorted prompts.

    >>> lengths, branches = torch.tensor([5, 9, 4, 30]), torch.tensor([2, 2, 2, 2])
    >>> [batch.tolist() for batch in by_length(lengths, branches, 16)]
    [[2, 0], [1], [3]]
    >>> [batch.tolist() for batch in by_length(lengths, branches, 200)]
    [[2, 0, 1, 3]]
    >>> [batch.tolist() for batch in by_length(lengths, branches, 200, pass_tokens=40)]
    [[2, 0, 1], [3]]
    """
    order = lengths.argsort(stable=True)
    width, branch = (x[order].cpu().numpy().astype(np.int64) for x in (lengths, branch_tokens))
    count = len(width)
    least, begin = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        most = np.maximum.accumulate(branch[:end][::-1])[::-1]
        tokens = np.arange(end, 0, -1) * (width[end - 1] + most)
        first = min(int((tokens > max_tokens).sum()), end - 1)  # fewer prompts, fewer tokens
        cost = least[first:end] + tokens[first:] + pass_tokens
        begin[end] = first + int(cost.argmin())
        least[end] = cost.min()
    batches = []
    while count:
        batches.append(order[begin[count] : count])
        count = int(begin[count])
    return batches[::-1]


def measure_pass_tokens(
    work: Callable[[int], int], most: int, device: str, repeats: int = 7
) -> int:
    """How many tokens take as long as one more pass: a / b of the time a + b n of n tokens.

    `work(rows)` makes a pass over so many rows, `most` or an eighth of them, and returns its
    tokens. The result is rounded to a power of 2, so that two measurements rarely differ. With one
    row there is nothing to weigh. Several ranks take what the first has measured.
    """
    with alone():
        measured = _measured(work, -(-most // 8), most, device, repeats)
    return agreed(measured)


def _measured(work: Callable[[int], int], few: int, many: int, device: str, repeats: int) -> int:
    if many <= few:
        return MOST_PASS_TOKENS
    times: dict[int, list[float]] = {few: [], many: []}
    tokens = {rows: work(rows) for rows in times}
    for _ in range(repeats):
        for rows, taken in times.items():
            taken.append(_timed(lambda rows=rows: work(rows), device))  # type: ignore[misc]
    short, long = (median(times[rows]) for rows in (few, many))
    per_token = (long - short) / (tokens[many] - tokens[few])
    if per_token <= 0:
        return MOST_PASS_TOKENS
    cost = min(max(short / per_token - tokens[few], 1.0), MOST_PASS_TOKENS)
    return int(2 ** round(math.log2(cost)))


def _timed(work: Callable[[], object], device: str) -> float:
    """CPU seconds, which other processes hardly change; elsewhere those that pass."""
    is_cpu = device.startswith("cpu")
    clock = time.process_time if is_cpu else time.perf_counter
    if not is_cpu:
        torch.accelerator.synchronize()
    start = clock()
    work()
    if not is_cpu:
        torch.accelerator.synchronize()
    return clock() - start
