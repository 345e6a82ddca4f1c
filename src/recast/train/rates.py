"""How far a step of training goes: a step number in, the learning rate of every row out.

Rows of semantic IDs that a language model was given are random or nearly so, all its other weights
are not. Both may have a rate of their own; a rate of 0 leaves the weights as they are, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recast.config import Schedule
from recast.policy.extend import tables
from recast.policy.load import Policy
from recast.policy.sharded import own_rows

WARMUP_FRAC = 0.05  # of the steps of supervised training


def schedule_factor(schedule: Schedule, step: int, steps: int, warmup: int | None = None) -> float:
    """What the peak rate is multiplied by: linear warm-up over so many steps, by default 5 % of
    them, then `constant` or down to zero, in a straight line or as half a cosine.

    >>> [round(schedule_factor("cosine", step, 100), 3) for step in (0, 4, 5, 99)]
    [0.2, 1.0, 1.0, 0.0]
    >>> [round(schedule_factor("linear", step, 100), 3) for step in (0, 5, 52, 99)]
    [0.2, 1.0, 0.505, 0.011]
    >>> [schedule_factor("constant", step, 100) for step in (0, 5, 99)]
    [0.2, 1.0, 1.0]
    >>> [schedule_factor("linear", step, 10, warmup=2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    if warmup is None:
        warmup = max(round(steps * WARMUP_FRAC), 1)
    if step < warmup:
        return (step + 1) / warmup
    # An epoch may hold a few windows more than the first one, from which `steps` was counted.
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    if schedule == "constant":
        return 1.0
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """The peak rates of a model's weights: of those of the semantic IDs' rows, and of all others.

    Example, rows 40 to 59 of the one table at 1e-3, everything else frozen:
    `lr=0.0  sid_lr=1e-3  tables=(weight,)  first=40  last=60`.
    """

    lr: float
    sid_lr: float
    tables: tuple[torch.nn.Parameter, ...]
    """What holds a row for every token."""
    first: int
    """Of the rows of semantic IDs in each of them."""
    last: int
    """Behind them."""

    def freeze(self, model: torch.nn.Module) -> None:
        """Turn off the gradients that nothing is made of."""
        for parameter in model.parameters():
            held = self.tables if self.sid_lr else ()
            is_table = any(parameter is table for table in held)
            parameter.requires_grad_(bool(self.lr) or is_table)

    def decay(self, weight_decay: float) -> float:
        """Of the weights; none where it would move rows that are frozen."""
        return weight_decay if self.lr else 0.0

    def mask_gradients(self) -> None:
        """Leave those of the rows alone that move."""
        if self.lr:
            return
        for table in self.tables:
            if table.grad is not None:
                rows, begin = own_rows(table.grad)
                rows[: max(self.first - begin, 0)] = 0.0
                rows[max(self.last - begin, 0) :] = 0.0

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, factor: float) -> None:
        """One optimizer step at `factor` of the peak rates.

        AdamW's step is its rate times what does not depend on it, so rows at another rate go as
        many times as far from where they were.
        """
        for group in optimizer.param_groups:
            group["lr"] = (self.lr or self.sid_lr) * factor
        if not self.lr or self.lr == self.sid_lr:
            optimizer.step()
            return
        held = [own_rows(table) for table in self.tables]
        rows: list[Tensor] = [
            part[max(self.first - begin, 0) : max(self.last - begin, 0)] for part, begin in held
        ]
        before = [row.clone() for row in rows]
        optimizer.step()
        for row, start in zip(rows, before, strict=True):
            row.copy_(start + (row - start) * (self.sid_lr / self.lr))


def rates_of(policy: Policy, lr: float, sid_lr: float | None) -> Rates:
    """The rates of a policy's weights; one for all where `sid_lr` is None."""
    first, catalog = policy.catalog.first_token, policy.catalog
    last = catalog.vocab_size if catalog.codebook_sizes else first
    return Rates(
        lr=lr,
        sid_lr=lr if sid_lr is None else sid_lr,
        tables=tuple(tables(policy.model)),
        first=first,
        last=last,
    )
