"""DAPO's dynamic sampling (arXiv 2503.14476): roll out until the batch is full of mixed groups.

A group counts when its rewards differ; one that is all miss or all hit teaches GRPO nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.groups import is_mixed, join, select
from recast.types import Prompts, RolloutGroups

Drawn = tuple[RolloutGroups, Float[Tensor, "_B _G"]]


def fill_batch(
    draw: Callable[[Int[Tensor, " B"]], Drawn],
    batches: Iterator[Int[Tensor, " B"]],
    build: Callable[[Int[Tensor, " B"]], Prompts],
    max_batches: int,
) -> tuple[Drawn, list[Drawn]]:
    """Draw batch after batch until one batch of mixed groups is there, at most `max_batches`.

    Returns that batch, in the order drawn, and everything that was drawn. A batch that stays short
    is returned short; without any mixed group it is the first batch as it was drawn.
    """
    drawn: list[Drawn] = []
    kept: list[Tensor] = []
    count, size = 0, 1
    for rows in batches:
        size = len(rows)
        drawn.append(draw(rows))
        kept.append(is_mixed(*drawn[-1]).nonzero()[:, 0])
        count += len(kept[-1])
        if count >= size or len(drawn) == max_batches:
            break
    if not count:
        return drawn[0], drawn
    parts, chosen, room = [], [], size
    for (groups, rewards), index in zip(drawn, kept, strict=True):
        first = index[:room]
        room -= len(first)
        parts.append(select(groups, first))
        chosen.append(rewards[first])
    rows = torch.cat([part.prompts.row_ids for part in parts])
    return (join(parts, build(rows.cpu())), torch.cat(chosen)), drawn
