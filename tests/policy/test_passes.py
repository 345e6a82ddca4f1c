"""Batches by length: the cheapest of all partitions, and what a pass costs."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.policy.passes import MOST_PASS_TOKENS, by_length, measure_pass_tokens


def cost_of(
    parts: list[list[int]], lengths: list[int], branches: list[int], pass_tokens: int
) -> int:
    widths = [max(lengths[i] for i in part) + max(branches[i] for i in part) for part in parts]
    return sum(pass_tokens + len(p) * w for p, w in zip(parts, widths, strict=True))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6)), max_size=8),
    limit=st.sampled_from([1, 20, 60, 1000]),
    pass_tokens=st.sampled_from([1, 10, 40, MOST_PASS_TOKENS]),
)
def test_no_partition_of_the_sorted_prompts_costs_less(
    prompts: list[tuple[int, int]], limit: int, pass_tokens: int
) -> None:
    lengths, branches = [p[0] for p in prompts], [p[1] for p in prompts]
    found = [
        batch.tolist()
        for batch in by_length(
            torch.tensor(lengths, dtype=torch.long),
            torch.tensor(branches, dtype=torch.long),
            limit,
            pass_tokens,
        )
    ]
    order = sorted(range(len(prompts)), key=lambda i: lengths[i])
    assert [i for part in found for i in part] == order
    possible = []
    for cuts in itertools.product([False, True], repeat=max(len(order) - 1, 0)):
        parts: list[list[int]] = [[order[0]]] if order else []
        for cut, i in zip(cuts, order[1:], strict=True):
            if cut:
                parts.append([i])
            else:
                parts[-1].append(i)
        sizes = [cost_of([part], lengths, branches, 0) for part in parts]
        if all(len(p) == 1 or size <= limit for p, size in zip(parts, sizes, strict=True)):
            possible.append(cost_of(parts, lengths, branches, pass_tokens))
    assert cost_of(found, lengths, branches, pass_tokens) == min(possible, default=0)


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.parametrize("cost", [16, 256])
def test_the_cost_of_a_pass_is_measured(cost: int) -> None:
    """A pass of n tokens takes as long as cost + n tokens of 20 microseconds."""

    def work(rows: int) -> int:
        busy((cost + 100 * rows) * 2e-5)
        return 100 * rows

    assert measure_pass_tokens(work, 8, "cpu") in (cost // 2, cost, 2 * cost)
    assert measure_pass_tokens(work, 1, "cpu") == MOST_PASS_TOKENS


def test_a_pass_that_never_takes_longer_is_never_split() -> None:
    def work(rows: int) -> int:
        busy(0.002 / rows)
        return rows

    assert measure_pass_tokens(work, 8, "cpu") == MOST_PASS_TOKENS
