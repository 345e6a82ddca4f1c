"""DAPO's dynamic sampling (arXiv 2503.14476): roll out until the batch is full of mixed groups.

A group counts when its rewards differ; one that is all miss or all hit teaches GRPO nothing. With
`add_gt` the rewards are those that the signal is given, the target's included: that is what it
learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.groups import is_mixed, join, select
from recast.types import Prompts, RolloutGroups


class Rewarded(NamedTuple):
    """Groups and their rewards."""

    groups: RolloutGroups
    rewards: Float[Tensor, "B G"]


class Drawn(NamedTuple):
    """The groups of a batch twice; both are the same unless `add_gt` wrote the target in."""

    drawn: Rewarded
    """As the policy wrote them: what is measured and written down."""
    given: Rewarded
    """As the signal is given them."""


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
        kept.append(is_mixed(*drawn[-1].given).nonzero()[:, 0])
        count += len(kept[-1])
        if count >= size or len(drawn) == max_batches:
            break
    if not count:
        return drawn[0], drawn
    chosen, row_ids = [], []
    for batch, index in zip(drawn, kept, strict=True):
        chosen.append(index[:size])
        row_ids.append(batch.drawn.groups.prompts.row_ids[chosen[-1]])
        size -= len(chosen[-1])
    prompts = build(torch.cat(row_ids).cpu())
    as_drawn = _joined([batch.drawn for batch in drawn], chosen, prompts)
    as_given = _joined([batch.given for batch in drawn], chosen, prompts)
    return Drawn(as_drawn, as_given), drawn


def _joined(parts: list[Rewarded], chosen: list[Tensor], prompts: Prompts) -> Rewarded:
    """The chosen rows of every part, as groups of `prompts`."""
    pairs = list(zip(parts, chosen, strict=True))
    groups = join([select(part.groups, index) for part, index in pairs], prompts)
    return Rewarded(groups, torch.cat([part.rewards[index] for part, index in pairs]))
