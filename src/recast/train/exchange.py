"""Groups and signals between ranks: those that one rank made in, the same on all ranks out.

Prompts are never sent: every rank knows those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from recast.groups import map_tensors, select
from recast.run.world import gathered, once, world
from recast.types import Prompts, RolloutGroups, Signal

Placed = tuple[Tensor, RolloutGroups]
"""Groups, and the positions of their prompts in the batch."""


def groups_of_all(own: list[Placed], prompts: Prompts) -> list[Placed]:
    """The groups that all ranks made of these prompts, in whatever order."""
    if world().size == 1:
        return own
    device = prompts.lengths.device
    sent = [(index.cpu(), _without_prompts(part)) for index, part in own]
    return [
        (index.to(device), map_tensors(part, lambda value: value.to(device)))
        for of_rank in gathered(sent)
        for index, part in of_rank
    ]


def signal_of_first(work: Callable[[], Signal], prompts: Prompts) -> Signal:
    """The signal that the first rank makes, for all."""
    if world().size == 1:
        return work()

    def sent() -> Signal:
        made = work()
        return replace(
            made,
            groups=_without_prompts(made.groups),
            advantages=made.advantages.cpu(),
            keep=made.keep.cpu(),
            nll_weight=made.nll_weight.cpu(),
        )

    device, signal = prompts.lengths.device, once(sent)
    groups = map_tensors(signal.groups, lambda value: value.to(device))
    return replace(
        signal,
        groups=replace(groups, prompts=prompts),
        advantages=signal.advantages.to(device),
        keep=signal.keep.to(device),
        nll_weight=signal.nll_weight.to(device),
    )


def _without_prompts(groups: RolloutGroups) -> RolloutGroups:
    none = select(groups.prompts, torch.zeros(0, dtype=torch.long, device=groups.items.device))
    return map_tensors(replace(groups, prompts=none), lambda value: value.cpu())
