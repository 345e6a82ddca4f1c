"""What a part may return, written once: the guard of every step and `recast.testing` ask here.

Every function returns None, or the first fault: what was given and what to return instead, with the
prompt it was found in.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from recast.config.user_code import is_dense, short
from recast.items.catalog import Catalog
from recast.methods.fault import Fault, forbidden, shape_fault, size_fault, some, tensor_fault
from recast.types import Draw, Prompts, RolloutGroups, Signal

OURS = (
    "group/all_zero_frac",
    "group/single_hit_frac",
    "group/trainable_frac",
    "group/natural_frac",
    "group/distinct_frac",
    "group/invalid_frac",
    "group/target_logprob",
    "group/rollout_batches",
    "reward/mean",
    "reward/zero_frac",
)
"""Metrics of the loop, which a signal may not replace."""

_LARGEST_REWARD, _LARGEST_WEIGHT = 1e12, 1e15
"""What a signal makes of the one is below the other, and sums of its square fit into float32."""

_MOST_METRICS = 1000
"""Far beyond what anyone reads of a step; every one is a file's line and a curve."""

_METRIC = re.compile(r"[a-z][a-z0-9_]*(/[a-z0-9_@]+)+")


def sampler_fault(
    returned: Any, prompts: Prompts, num_rollouts: int, num_tokens: int, num_items: int
) -> Fault | None:
    """So many rollouts of these very prompts, of tokens and items that there are, finite."""
    count = len(prompts)
    is_groups = isinstance(returned, RolloutGroups)
    given = getattr(returned, "prompts", None)
    if not is_groups or (isinstance(given, Prompts) and len(given) != count):
        kind = type(returned).__name__
        return Fault(f"a {kind}: return RolloutGroups of its {count} prompts")
    if lost := _lost(returned):
        return lost
    if returned.prompts is not prompts:
        return Fault("groups of other prompts: return those it was given, `prompts=prompts`")
    if returned.injected is not None:
        return Fault("groups with `injected` set: leave that to `add_gt`")
    whole = (count, num_rollouts, prompts.targets.shape[2])
    of_targets, weights, like = tuple(prompts.targets.shape), returned.weights, prompts.tokens
    return (
        tensor_fault("tokens", returned.tokens, [whole], like, torch.int64)
        or tensor_fault("items", returned.items, [whole[:2]], like, torch.int64)
        or _named_fault(returned.predictions, whole[:2], prompts)
        or tensor_fault("loss_mask", returned.loss_mask, [whole], like, torch.bool)
        or tensor_fault("rollout_logprobs", returned.rollout_logprobs, [whole], like)
        or tensor_fault("target_logprobs", returned.target_logprobs, [of_targets], like)
        or (None if weights is None else _weights_fault(weights, whole[:2], like))
        or _range_fault(returned, num_tokens, num_items)
        or _logprobs_fault("rollout_logprobs", returned.rollout_logprobs)
        or _logprobs_fault("target_logprobs", returned.target_logprobs)
        or forbidden(
            "items of rollouts that do not exist (loss_mask all False): give -1",
            (returned.items >= 0) & ~returned.exists,
        )
    )


def meaning_fault(groups: RolloutGroups, catalog: Catalog, draw: Draw | None) -> Fault | None:
    """Tokens, items and predictions that say the same, under the draws that were asked for."""
    if draw is not None and (groups.seed, groups.step) != (draw.seed, draw.step):
        said = f"seed {short(groups.seed)} and step {short(groups.step)}"
        return Fault(f"groups of {said}: give `draw`'s own, seed {draw.seed} and step {draw.step}")
    items, exists = groups.items, groups.exists
    is_item, written = exists & (items >= 0), catalog.tokens_of(items)
    other = ((groups.tokens != written) & catalog.mask_of(items)).any(-1)
    padding = groups.loss_mask & ~catalog.mask_of(items)
    # A rollout of an item that is no candidate may be called a miss.
    spelled = catalog.items_of(groups.tokens, domains=groups.prompts.domains)
    spelled = spelled.masked_fill(items >= 0, -1)
    is_seen = (spelled[..., None] == groups.prompts.seen[:, None]).any(-1)
    named = groups.predictions
    names = named[:, :, 0] != catalog.sids_of(written)
    whole = catalog.sids_of(named) if catalog.codebook_sizes else named
    return (
        forbidden(
            "tokens that do not write their item: use policy.catalog.tokens_of(items)",
            is_item & other,
        )
        or forbidden(
            "a loss_mask that counts padding: use policy.catalog.mask_of(items)",
            is_item & padding.any(-1),
        )
        or forbidden(
            "items of -1 where the tokens write one: use policy.catalog.items_of(tokens)",
            exists & (spelled >= 0) & ~is_seen,
        )
        or forbidden(
            "predictions that do not name their item: use policy.catalog.sids_of(tokens)",
            is_item & names.any(-1),
        )
        or forbidden(
            "predictions that are no semantic IDs, a token of every level: "
            "use policy.catalog.sids_of(tokens)",
            (named != whole).any(-1),
        )
    )


def reward_fault(returned: Any, groups: RolloutGroups) -> Fault | None:
    """Finite numbers [B, G], 0 where there is no rollout."""
    ghosts = "rewards on rollouts that do not exist (loss_mask all False): give them 0"
    shape = tuple(groups.items.shape)
    return (
        tensor_fault("rewards", returned, [shape], groups.items)
        or size_fault("rewards", returned, _LARGEST_REWARD)
        or forbidden(ghosts, (returned != 0) & ~groups.exists)
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
    if lost := _lost(returned):
        return lost
    fault = _groups_fault(returned.groups, groups) or _range_fault(
        returned.groups, num_tokens, num_items
    )
    if fault:
        return fault
    batch, size, length = returned.groups.tokens.shape
    shapes: list[tuple[int, ...]] = [(batch, size, length), (batch, size, 1)]
    ghosts = "keep on rollouts that do not exist (loss_mask all False): leave them out"
    return (
        tensor_fault("advantages", returned.advantages, shapes, groups.items)
        or tensor_fault("keep", returned.keep, [(batch, size)], groups.items, torch.bool)
        or tensor_fault("nll_weight", returned.nll_weight, [(batch,)], groups.items)
        or size_fault("advantages", returned.advantages, _LARGEST_WEIGHT)
        or size_fault("nll_weight", returned.nll_weight, _LARGEST_WEIGHT)
        or forbidden("nll_weight below 0: give 0 or more", returned.nll_weight[:, None] < 0)
        or forbidden(ghosts, returned.keep & ~returned.groups.exists)
        or _metrics_fault(returned.metrics)
    )


def loss_fault(returned: Any, loss_mask: Tensor) -> Fault | None:
    """Floats per token, per rollout or per group of a mask [B, K, L], finite where it counts."""
    shape = tuple(loss_mask.shape)
    if isinstance(returned, Tensor) and not is_dense(returned):
        return Fault(f"a sparse, nested or quantized tensor: return a plain {list(shape)}")
    if not isinstance(returned, Tensor) or not returned.is_floating_point():
        kind = returned.dtype if isinstance(returned, Tensor) else type(returned).__name__
        return Fault(f"a {kind}: return a tensor of floats computed from `logprobs`")
    if tuple(returned.shape) not in (shape, shape[:2], shape[:1]):
        return Fault(
            f"the shape {list(returned.shape)}: return {list(shape)} (per token), "
            f"{list(shape[:2])} (per rollout) or {list(shape[:1])} (per group)"
        )
    fault = shape_fault("values", returned, [tuple(returned.shape)], loss_mask, None)
    if fault:
        return fault
    counted = units(returned, loss_mask)
    wrong = (counted & ~returned.isfinite()).reshape(len(returned), -1).any(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        return Fault(f"values that are not finite: {some(returned[row].detach())}", row)
    return None


def units(values: Tensor, loss_mask: Tensor) -> Tensor:
    """The tokens, rollouts or groups that count, by the shape of a loss."""
    while loss_mask.ndim > values.ndim:
        loss_mask = loss_mask.any(-1)
    return loss_mask


def _range_fault(
    groups: RolloutGroups, num_tokens: int | None, num_items: int | None
) -> Fault | None:
    tokens, items = groups.tokens, groups.items
    most = torch.iinfo(torch.int64).max
    return forbidden(
        f"tokens outside the vocabulary of {num_tokens}: give 0 or more, below that",
        (tokens < 0) | (tokens >= (num_tokens or most)),
    ) or forbidden(
        f"items that are none: give -1, or one below {num_items}",
        (items < -1) | (items >= (num_items or most)),
    )


def _named_fault(named: Any, groups: tuple[int, ...], prompts: Prompts) -> Fault | None:
    """Any number of items per rollout, each with as many decisions as a target."""
    several = named.shape[2] if isinstance(named, Tensor) and named.ndim == 4 else 1
    shape = (*groups, several, prompts.target_sids.shape[2])
    return tensor_fault("predictions", named, [shape], prompts.tokens, torch.int64)


def _weights_fault(weights: Any, shape: tuple[int, ...], like: Tensor) -> Fault | None:
    return tensor_fault("weights", weights, [shape], like) or forbidden(
        "weights below 0: give 0 or more", weights < 0
    )


def _logprobs_fault(name: str, values: Tensor) -> Fault | None:
    # As much above 0 as rounding takes a logarithm of 1 in 16 bits.
    return forbidden(f"{name} above 0: give logarithms of probabilities", values > 1e-2)


def _groups_fault(returned: Any, given: RolloutGroups) -> Fault | None:
    if not isinstance(returned, RolloutGroups) or returned.prompts is not given.prompts:
        return Fault(
            "groups of other prompts: return `groups`, or `dataclasses.replace(groups, ...)`"
        )
    if lost := _lost(returned):
        return lost
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
        fault = shape_fault(f"groups.{name}", value, [shape], before, before.dtype)
        if fault is None and name in ("rollout_logprobs", "weights"):
            fault = forbidden(f"groups.{name} that are not finite", ~value.isfinite())
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
    return forbidden(
        "a loss_mask that counts tokens which its input's leaves out: keep that one", grown
    )


def _tensors(groups: RolloutGroups) -> Iterator[tuple[str, Tensor]]:
    for field in fields(groups):
        value = getattr(groups, field.name)
        if isinstance(value, Tensor):
            yield field.name, value


def _lost(returned: RolloutGroups | Signal) -> Fault | None:
    lost = [field.name for field in fields(returned) if not hasattr(returned, field.name)]
    kind = type(returned).__name__
    return Fault(f"a {kind} without {lost[0]}: make a whole one") if lost else None


def _metrics_fault(metrics: Any) -> Fault | None:
    if not isinstance(metrics, dict) or len(metrics) > _MOST_METRICS:
        number = f"{len(metrics)} " if isinstance(metrics, dict) else ""
        remedy = f"return a dict of at most {_MOST_METRICS} floats"
        return Fault(f"{number}metrics of type {type(metrics).__name__}: {remedy}")
    for name, value in metrics.items():
        said = f"the metric {short(name)!r} = {short(value)}"
        if not isinstance(name, str) or not _METRIC.fullmatch(name) or len(name) > 100:
            remedy = "give it a short slash name of small letters, such as signal/mean"
            return Fault(f"{said}: {remedy}")
        if name in OURS or name.startswith(
            ("actor/", "alarm/", "memory/", "thought/", "time/", "valid/")
        ):
            return Fault(f"{said}: the loop logs that name, give another")
        if type(value) not in (int, float):
            return Fault(f"{said}, a {type(value).__name__}: give a number")
        if not abs(value) <= sys.float_info.max:
            return Fault(f"{said}: give a finite number")
    return None
