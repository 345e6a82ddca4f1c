"""What a part may return, written once: the guard of every step and `recast.testing` ask here.

Every function returns None, or the first fault: what was given and what to return instead, with the
prompt it was found in.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recast.types import Prompts, RolloutGroups, Signal

OURS = (
    "group/all_zero_frac",
    "group/single_hit_frac",
    "group/trainable_frac",
    "group/natural_frac",
    "group/distinct_frac",
    "group/target_logprob",
    "group/rollout_batches",
    "reward/mean",
    "reward/zero_frac",
)
"""Metrics of the loop, which a signal may not replace."""

_LARGEST_REWARD, _LARGEST_WEIGHT = 1e12, 1e15
"""What a signal makes of the one is below the other, and sums of its square fit into float32."""

_METRIC = re.compile(r"[a-z][a-z0-9_]*(/[a-z0-9_@]+)+")


class Fault(NamedTuple):
    """What is wrong and what to do, and in which prompt (None: in no single one)."""

    what: str
    row: int | None = None


def sampler_fault(
    returned: Any, prompts: Prompts, num_rollouts: int, num_tokens: int, num_items: int
) -> Fault | None:
    """So many rollouts of these very prompts, of tokens and items that there are, finite."""
    count = len(prompts)
    is_groups = isinstance(returned, RolloutGroups)
    if not is_groups or (isinstance(returned.prompts, Prompts) and len(returned.prompts) != count):
        kind = type(returned).__name__
        return Fault(f"a {kind}: return RolloutGroups of its {count} prompts")
    if returned.prompts is not prompts:
        return Fault("groups of other prompts: return those it was given, `prompts=prompts`")
    if returned.injected is not None:
        return Fault("groups with `injected` set: leave that to `add_gt`")
    whole = (count, num_rollouts, prompts.targets.shape[2])
    of_targets, weights = tuple(prompts.targets.shape), returned.weights
    return (
        _tensor_fault("tokens", returned.tokens, [whole], torch.int64)
        or _tensor_fault("items", returned.items, [whole[:2]], torch.int64)
        or _named_fault(returned.predictions, whole[:2], prompts)
        or _tensor_fault("loss_mask", returned.loss_mask, [whole], torch.bool)
        or _tensor_fault("rollout_logprobs", returned.rollout_logprobs, [whole])
        or _tensor_fault("target_logprobs", returned.target_logprobs, [of_targets])
        or (None if weights is None else _tensor_fault("weights", weights, [whole[:2]]))
        or _range_fault(returned, num_tokens, num_items)
        or _forbidden(
            "items of rollouts that do not exist (loss_mask all False): give -1",
            (returned.items >= 0) & ~returned.exists,
        )
    )


def reward_fault(returned: Any, groups: RolloutGroups) -> Fault | None:
    """Finite numbers [B, G], 0 where there is no rollout."""
    ghosts = "rewards on rollouts that do not exist (loss_mask all False): give them 0"
    return (
        _tensor_fault("rewards", returned, [tuple(groups.items.shape)])
        or _size_fault("rewards", returned, _LARGEST_REWARD)
        or _forbidden(ghosts, (returned != 0) & ~groups.exists)
    )


def signal_fault(
    returned: Any,
    groups: RolloutGroups,
    num_tokens: int | None = None,
    num_items: int | None = None,
) -> Fault | None:
    """A `Signal` on the same prompts, its tensors of the shapes of its groups, detached, finite.

    How many tokens and items there are is known in a run, not of made-up groups.
    """
    if not isinstance(returned, Signal):
        return Fault(f"a {type(returned).__name__}: return a Signal")
    fault = _groups_fault(returned.groups, groups) or _range_fault(
        returned.groups, num_tokens, num_items
    )
    if fault:
        return fault
    batch, size, length = returned.groups.tokens.shape
    ghosts = "keep on rollouts that do not exist (loss_mask all False): leave them out"
    return (
        _tensor_fault("advantages", returned.advantages, [(batch, size, length), (batch, size, 1)])
        or _tensor_fault("keep", returned.keep, [(batch, size)], torch.bool)
        or _tensor_fault("nll_weight", returned.nll_weight, [(batch,)])
        or _size_fault("advantages", returned.advantages, _LARGEST_WEIGHT)
        or _size_fault("nll_weight", returned.nll_weight, _LARGEST_WEIGHT)
        or _forbidden("nll_weight below 0: give 0 or more", returned.nll_weight[:, None] < 0)
        or _forbidden(ghosts, returned.keep & ~returned.groups.exists)
        or _metrics_fault(returned.metrics)
    )


def loss_fault(returned: Any, shape: tuple[int, ...]) -> Fault | None:
    """Floats per token, per rollout or per group of `shape` [B, K, L]."""
    if not isinstance(returned, Tensor) or not returned.is_floating_point():
        kind = returned.dtype if isinstance(returned, Tensor) else type(returned).__name__
        return Fault(f"a {kind}: return a tensor of floats computed from `logprobs`")
    if tuple(returned.shape) not in (shape, shape[:2], shape[:1]):
        return Fault(
            f"the shape {list(returned.shape)}: return {list(shape)} (per token), "
            f"{list(shape[:2])} (per rollout) or {list(shape[:1])} (per group)"
        )
    return None


def _range_fault(
    groups: RolloutGroups, num_tokens: int | None, num_items: int | None
) -> Fault | None:
    tokens, items = groups.tokens, groups.items
    most = torch.iinfo(torch.int64).max
    return _forbidden(
        f"tokens outside the vocabulary of {num_tokens}: give 0 or more, below that",
        (tokens < 0) | (tokens >= (num_tokens or most)),
    ) or _forbidden(
        f"items that are none: give -1, or one below {num_items}",
        (items < -1) | (items >= (num_items or most)),
    )


def _named_fault(named: Any, groups: tuple[int, ...], prompts: Prompts) -> Fault | None:
    """Any number of items per rollout, each with as many decisions as a target."""
    several = named.shape[2] if isinstance(named, Tensor) and named.ndim == 4 else 1
    shape = (*groups, several, prompts.target_sids.shape[2])
    return _tensor_fault("predictions", named, [shape], torch.int64)


def _groups_fault(returned: Any, given: RolloutGroups) -> Fault | None:
    if not isinstance(returned, RolloutGroups) or returned.prompts is not given.prompts:
        return Fault(
            "groups of other prompts: return `groups`, or `dataclasses.replace(groups, ...)`"
        )
    if returned.weights is not None and given.weights is None:
        return Fault("groups with weights that its input does not have: leave them None")
    if not isinstance(returned.tokens, Tensor) or returned.tokens.ndim != 3:
        return Fault("groups whose tokens are no tensor [B, G, L]: keep those it was given")
    size = returned.tokens.shape[1:2]
    for name, before in _tensors(given):
        value = getattr(returned, name)
        if name == "weights" and value is None:
            continue
        rows = size if name != "target_logprobs" else before.shape[1:2]
        shape = (*before.shape[:1], *rows, *before.shape[2:])
        fault = _shape_fault(f"groups.{name}", value, [shape], before.dtype)
        if fault:
            return fault
    return _rows_fault(returned, given)


def _rows_fault(returned: RolloutGroups, given: RolloutGroups) -> Fault | None:
    """Rollouts may be replaced and added, none may go, and what was masked out stays so."""
    size, before = returned.tokens.shape[1], given.tokens.shape[1]
    if size < before:
        return Fault(f"groups of {size} rollouts: keep all, `keep` takes them out of the update")
    if size > before:
        return None
    replaced = (returned.tokens != given.tokens).any(-1)
    grown = returned.loss_mask & ~given.loss_mask & ~replaced[..., None]
    return _forbidden(
        "a loss_mask that counts tokens which its input's leaves out: keep that one", grown
    )


def _tensors(groups: RolloutGroups) -> Iterator[tuple[str, Tensor]]:
    for field in fields(groups):
        value = getattr(groups, field.name)
        if isinstance(value, Tensor):
            yield field.name, value


def _metrics_fault(metrics: Any) -> Fault | None:
    if not isinstance(metrics, dict):
        return Fault(f"metrics of type {type(metrics).__name__}: return a dict of floats")
    for name, value in metrics.items():
        said = f"the metric {name!r} = {value!r}"
        if not isinstance(name, str) or not _METRIC.fullmatch(name):
            return Fault(f"{said}: give it a slash name, such as signal/{name}")
        if name in OURS or name.startswith(("actor/", "memory/", "time/", "valid/")):
            return Fault(f"{said}: the loop logs that name, give another")
        if type(value) not in (int, float):
            return Fault(f"{said}, a {type(value).__name__}: give a number")
        if not abs(value) <= sys.float_info.max:
            return Fault(f"{said}: give a finite number")
    return None


def _tensor_fault(
    name: str, value: Any, shapes: list[tuple[int, ...]], dtype: torch.dtype | None = None
) -> Fault | None:
    fault = _shape_fault(name, value, shapes, dtype)
    if fault:
        return fault
    if value.requires_grad:
        return Fault(f"{name} with a gradient: detach what comes from log-probabilities")
    finite = value.isfinite().reshape(len(value), -1).all(1)
    if bool(finite.all()):
        return None
    row = int((~finite).nonzero()[0])
    return Fault(f"{name} that are not finite: {_some(value[row])}", row)


def _size_fault(name: str, value: Tensor, limit: float) -> Fault | None:
    size = value.abs()
    if not bool((size > limit).any()):
        return None
    what = f"{name} of {float(size.max()):g} in size: scale them to {limit:g} at most"
    return _forbidden(what, size > limit)


def _shape_fault(
    name: str, value: Any, shapes: list[tuple[int, ...]], dtype: torch.dtype | None
) -> Fault | None:
    choices = " or ".join(str(list(shape)) for shape in shapes)
    if not isinstance(value, Tensor):
        return Fault(f"{name} of type {type(value).__name__}: return a tensor {choices}")
    if tuple(value.shape) not in shapes:
        return Fault(f"{name} of the shape {list(value.shape)}: return {choices}")
    if value.dtype != dtype if dtype else not value.is_floating_point():
        return Fault(f"{name} of {value.dtype}: return {dtype or 'floats'}")
    return None


def _forbidden(what: str, where: Tensor) -> Fault | None:
    rows = where.reshape(len(where), -1).any(1)
    return Fault(what, int(rows.nonzero()[0])) if bool(rows.any()) else None


def _some(values: Tensor, most: int = 16) -> str:
    shown = [round(float(value), 4) for value in values.flatten()[:most]]
    return f"{shown}{' ...' * (values.numel() > most)}"
