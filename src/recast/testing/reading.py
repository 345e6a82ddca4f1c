"""What a function returned, read against the contract: types, shapes, finite values, no ghosts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from recast.methods.contract import reward_fault, signal_fault
from recast.methods.fault import Fault
from recast.testing.examples import Example
from recast.types import Prompts, RolloutGroups

Result = dict[str, Tensor]
"""Every number that a function gave, by name; a metric has no dimension."""


class BrokenError(Exception):
    """A property that does not hold, and the first group for which it does not."""

    def __init__(self, what: str, row: int | None = None) -> None:
        super().__init__(what)
        self.what, self.row = what, row


def must(holds: bool | Tensor, what: str, values: Tensor | None = None) -> None:
    """Raise `BrokenError` unless it holds, for all or group by group; `values` are shown."""
    if isinstance(holds, Tensor) and not bool(holds.all()):
        row = int((~holds).int().argmax())
        shown = "" if values is None else f": {_short(values[row].double().flatten())},"
        raise BrokenError(what + shown, row)
    if isinstance(holds, bool) and not holds:
        raise BrokenError(what)


def must_equal(found: Result, wanted: Result, what: str, tolerance: float) -> None:
    """Raise `BrokenError` for the first number that differs by more than the tolerance."""
    must(
        found.keys() == wanted.keys(), f"{what}: {sorted(found.keys() ^ wanted.keys())} come or go"
    )
    for name, value in wanted.items():
        must(found[name].shape == value.shape, f"{what}: {name} has another shape")
        one, other = (x.double().view(len(x) if x.ndim else 1, -1) for x in (found[name], value))
        same = torch.isclose(one, other, rtol=tolerance, atol=tolerance / 100).all(1)
        row = int((~same).int().argmax())
        text = f"{what}: {name} is {_short(one[row])}, not {_short(other[row])},"
        must(same if value.ndim else bool(same), text)


def by_content(result: Result, example: Example) -> Result:
    """Prompts by their id, the rollouts of each by their tokens: only the sets are left."""
    by_id = example.groups.prompts.row_ids.argsort()
    ordered = {name: value[by_id] if value.ndim else value for name, value in result.items()}
    rows = {name: value for name, value in ordered.items() if value.ndim > 1}
    index = []
    for prompt in range(len(by_id)):
        contents = list(zip(*(value[prompt].tolist() for value in rows.values()), strict=True))
        index.append(sorted(range(len(contents)), key=contents.__getitem__))
    prompts = torch.arange(len(by_id))[:, None]
    return ordered | {name: value[prompts, torch.tensor(index)] for name, value in rows.items()}


def read_reward(result: Any, example: Example) -> Result:
    """Rewards `[B, G]`, 0 where there is no rollout."""
    _must_keep(reward_fault(result, example.groups))
    return {"tokens": example.groups.tokens, "rewards": result}


def read_signal(result: Any, example: Example) -> Result:
    """A `Signal` on the same prompts; advantages of rows that are not kept count as 0."""
    _must_keep(signal_fault(result, example.groups))
    levels, keep = result.groups.tokens.shape[2], result.keep
    advantages = torch.where(keep[..., None], result.advantages, 0.0).expand(-1, -1, levels)
    numbers = {"advantages": advantages, "keep": keep, "nll_weight": result.nll_weight}
    rollouts = {name: x for name, x in _fields(result.groups).items() if name != "target_logprobs"}
    metrics = {name: torch.tensor(float(value)) for name, value in result.metrics.items()}
    return rollouts | numbers | metrics


def tensors(example: Example) -> Result:
    """Every tensor that goes into a function."""
    prompts = _fields(example.groups.prompts)  # their `tokens` are not those of the rollouts
    own = {"rewards": example.rewards} | _fields(example.groups)
    return own | {f"prompts.{name}": value for name, value in prompts.items()}


def _fields(of: RolloutGroups | Prompts) -> Result:
    values = {field.name: getattr(of, field.name) for field in fields(of)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _must_keep(fault: Fault | None) -> None:
    """What the guard of every step refuses is refused here."""
    if fault:
        raise BrokenError(f"gives {fault.what}", fault.row)


def _short(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
