"""What a reward or a signal returned, checked at every step; the group at fault goes to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recast.methods.parts import Part, is_users, name_of
from recast.types import RecastError, RolloutGroups, Signal

FILE = "failed_group.json"
OURS = (
    "group/all_zero_frac",
    "group/single_hit_frac",
    "group/trainable_frac",
    "group/natural_frac",
    "group/distinct_frac",
    "group/target_logprob",
    "reward/mean",
    "reward/zero_frac",
)
"""Metrics of the loop, which a signal may not replace."""


@contextmanager
def blame(kind: str, part: Part) -> Iterator[None]:
    """An exception inside a user's part is a line about that part, not a bug of recast."""
    try:
        yield
    except RecastError:
        raise
    except (Exception, SystemExit) as error:
        if not is_users(part):
            raise
        raise RecastError(
            f"{kind} {name_of(part)} failed ({type(error).__name__}: {error}): "
            "mend it, --debug shows the trace"
        ) from error


def guard_groups(sampler: Part, groups: Any, num_prompts: int) -> None:
    """Raise `RecastError` unless a sampler returned groups of these prompts."""
    if not isinstance(groups, RolloutGroups) or len(groups.tokens) != num_prompts:
        raise RecastError(
            f"sampler {name_of(sampler)} gave a {type(groups).__name__}: return RolloutGroups of "
            f"its {num_prompts} prompts"
        )


def guard_rewards(reward: Part, groups: RolloutGroups, rewards: Any, folder: str) -> None:
    """Raise `RecastError` unless `rewards` are finite numbers `[B, G]`."""
    found = _fault("rewards", rewards, [tuple(groups.items.shape)])
    if found:
        raise _failure(f"reward {name_of(reward)}", *found, groups, folder)


def guard_signal(signal: Part, groups: RolloutGroups, result: Any, folder: str) -> None:
    """Raise `RecastError` unless the signal's tensors have the shapes of its groups, finite."""
    owner = f"signal {name_of(signal)}"
    if not isinstance(result, Signal):
        raise _failure(owner, f"a {type(result).__name__}: return a Signal", 0, groups, folder)
    if not isinstance(result.groups, RolloutGroups) or result.groups.prompts is not groups.prompts:
        what = "groups of other prompts: return `groups`, or `dataclasses.replace(groups, ...)`"
        raise _failure(owner, what, 0, groups, folder)
    batch, size, levels = result.groups.tokens.shape
    found = (
        _fault("groups.loss_mask", result.groups.loss_mask, [(batch, size, levels)], torch.bool)
        or _fault("advantages", result.advantages, [(batch, size, levels), (batch, size, 1)])
        or _fault("keep", result.keep, [(batch, size)], torch.bool)
        or _fault("nll_weight", result.nll_weight, [(len(groups.items),)])
        or _forbidden("nll_weight below 0", result.nll_weight < 0)
        or _forbidden("keep on rollouts that do not exist", result.keep & ~result.groups.exists)
        or _bad_metrics(result.metrics)
    )
    if found:
        raise _failure(owner, *found, groups, folder)


def versions(groups: RolloutGroups, rewards: Tensor) -> dict[str, int]:
    """How often each input was written to; torch counts that."""
    inputs = {"rewards": rewards}
    inputs |= {f.name: getattr(groups, f.name) for f in fields(groups)}
    inputs |= {f"prompts.{f.name}": getattr(groups.prompts, f.name) for f in fields(groups.prompts)}
    return {name: x._version for name, x in inputs.items() if isinstance(x, Tensor)}


def guard_inputs(signal: Part, before: dict[str, int], after: dict[str, int]) -> None:
    """Raise `RecastError` if the signal wrote into what it was given."""
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise RecastError(
            f"signal {name_of(signal)} changed its input {changed[0]} in place: clone it first"
        )


def _forbidden(what: str, where: Tensor) -> tuple[str, int] | None:
    rows = where.reshape(len(where), -1).any(1)
    return (f"{what}: not allowed", int(rows.nonzero()[0])) if bool(rows.any()) else None


def _bad_metrics(metrics: Any) -> tuple[str, int] | None:
    if not isinstance(metrics, dict):
        return f"metrics of type {type(metrics).__name__}: return a dict of floats", 0
    for name, value in metrics.items():
        if name in OURS or not isinstance(name, str) or type(value) not in (int, float):
            return f"the metric {name!r} = {value!r}: give a float under a name of its own", 0
        if not isfinite(value):
            return f"the metric {name!r} = {value!r}: give a finite number", 0
    return None


def _fault(
    name: str, value: Any, shapes: list[tuple[int, ...]], dtype: torch.dtype | None = None
) -> tuple[str, int] | None:
    """What is wrong with a tensor and in which prompt, or nothing."""
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    if not isinstance(value, Tensor):
        return f"{name} of type {type(value).__name__}: return a tensor {wanted}", 0
    if tuple(value.shape) not in shapes:
        return f"{name} of the shape {list(value.shape)}: return {wanted}", 0
    if value.dtype != dtype if dtype else not value.is_floating_point():
        return f"{name} of {value.dtype}: return {dtype or 'floats'}", 0
    if value.requires_grad:
        return f"{name} that carry a gradient: return them detached", 0
    finite = value.isfinite().reshape(len(value), -1).all(1)
    if bool(finite.all()):
        return None
    row = int((~finite).nonzero()[0])
    return f"{name} that are not finite: {value[row].flatten().tolist()}", row


def _failure(owner: str, what: str, row: int, groups: RolloutGroups, folder: str) -> RecastError:
    file = Path(folder) / FILE
    prompts = groups.prompts
    content = {
        "step": groups.step + 1,
        "row_id": int(prompts.row_ids[row]),
        "history": prompts.history[row].tolist(),
        "target_items": prompts.target_items[row].tolist(),
        "targets": prompts.targets[row].tolist(),
        "tokens": groups.tokens[row].tolist(),
        "items": groups.items[row].tolist(),
        "exists": groups.exists[row].tolist(),
        "rollout_logprobs": groups.rollout_logprobs[row].tolist(),
        "target_logprobs": groups.target_logprobs[row].tolist(),
    }
    file.write_text(json.dumps(content, indent=2) + "\n")
    return RecastError(f"{owner} gave {what}; the group is in {file}")
