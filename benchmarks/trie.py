"""The prefix tree of 10 M items: how long it takes, what it keeps, what a decoding step costs."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from itertools import pairwise
from statistics import median
from typing import Any
from unittest.mock import patch

from torch import Tensor

from benchmarks.harness import (
    Row,
    cpu_seconds,
    main,
    peak_bytes,
    random_catalog,
    random_prompts,
    tiny_policy,
)
from recast.items.trie import Trie, build_trie
from recast.policy.load import Policy
from recast.rollout.beam import beam_search
from recast.rollout.tree import Choices, TreeDecoder
from recast.types import Prompts


def kept_bytes(trie: Trie) -> int:
    """Bytes of all arrays of the trie."""
    values = [getattr(trie, field.name) for field in fields(trie)]
    arrays = [x for value in values for x in (value if isinstance(value, tuple) else [value])]
    return sum(array.nbytes for array in arrays if isinstance(array, Tensor))


def decode(policy: Policy, prompts: Prompts, width: int) -> list[float]:
    """CPU seconds of one beam search: the prefill, then each level's step, model and trie."""
    marks = [time.process_time()]
    prefill, choices = TreeDecoder.__init__, TreeDecoder.choices

    def mark_behind(self: TreeDecoder, *args: Any, **kwargs: Any) -> None:
        prefill(self, *args, **kwargs)
        marks.append(time.process_time())

    def mark_before(self: TreeDecoder) -> Choices:
        if self.level:
            marks.append(time.process_time())
        return choices(self)

    with (
        patch.object(TreeDecoder, "__init__", mark_behind),
        patch.object(TreeDecoder, "choices", mark_before),
    ):
        beam_search(policy, prompts, width)
    marks.append(time.process_time())
    return [end - start for start, end in pairwise(marks)]


def run(smoke: bool) -> list[Row]:
    """Three rows: seconds to build, megabytes kept, a step of 10 M items against one of 10 k."""
    many, few, size, width, length = (
        (2000, 100, 32, 4, 16) if smoke else (10_000_000, 10_000, 8192, 32, 256)
    )
    large, small = random_catalog(many, size), random_catalog(few, size)
    work = f"{many:,} items, 3 levels of {size:,}"
    codes = large.codes
    seconds = cpu_seconds(lambda: build_trie(codes), repeats=1 if smoke else 3, warmups=0)
    peak = peak_bytes(lambda: build_trie(codes)) / 1e6
    nodes = [len(codes) for codes in large.trie.codes]

    policy = tiny_policy(large)
    sides = []
    for catalog in (large, small):
        prompts = random_prompts(catalog, 2 if smoke else 8, length)
        # Every item of the history is excluded: the trie's full work.
        sides.append((replace(policy, catalog=catalog), replace(prompts, seen=prompts.history)))
    times: list[list[list[float]]] = [[], []]
    for repeat in range(1 if smoke else 16):
        for side, found in zip(sides, times, strict=True):
            parts = decode(*side, width)
            if smoke or repeat:  # the first is the warm-up
                found.append(parts)
    (prefill, *ours), (_, *theirs) = (
        [median(x) for x in zip(*side, strict=True)] for side in times
    )
    levels = ", ".join(
        f"level {level} {a * 1e3:.1f} and {b * 1e3:.1f} ms"
        for level, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1)
    )
    after, whole = (
        median(sum(x[first:]) for x in times[0]) / median(sum(x[first:]) for x in times[1])
        for first in (1, 0)
    )
    return [
        Row(
            name="trie_build_seconds",
            what=f"trie: build {work}, CPU seconds",
            against="-",
            value=seconds,
            bar=60,
            at_least=False,
            unit="s",
            details=f"{seconds:.1f} s, at most {peak:.0f} MB held while building",
        ),
        Row(
            name="trie_kept_megabytes",
            what=f"trie: kept for {work}",
            against="-",
            value=kept_bytes(large.trie) / 1e6,
            bar=200,
            at_least=False,
            unit="MB",
            details=f"{' + '.join(f'{count:,}' for count in nodes)} nodes, the catalogue's own "
            "codes not counted",
        ),
        Row(
            name="decode_step_10m",
            what=f"decoding step with the widest fan-out (level 2, model and trie), "
            f"P {len(sides[0][1])}, G {width}, prompt {length}, {many:,} items",
            against=f"the same with {few:,} items",
            value=ours[1] / theirs[1],
            bar=1.5,
            at_least=False,
            details=f"{levels}; all steps {after:.2f}x, with the prefill ({prefill * 1e3:.0f} ms) "
            f"{whole:.2f}x; {len(times[0])} repeats",
        ),
    ]


if __name__ == "__main__":
    main(run)
