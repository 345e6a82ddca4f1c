"""Groups by hand, from nested lists: for examples and tests of rewards and signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.types import Prompts, RecastError, RolloutGroups, in_short, require

LOGPROB = -1.0
"""Of a token for which none is given."""


def make_groups(
    tokens: Sequence[Any],
    targets: Sequence[Any],
    *,
    items: Sequence[Any] | None = None,
    target_items: Sequence[Any] | None = None,
    logprobs: Sequence[Any] | None = None,
    target_logprobs: Sequence[Any] | None = None,
    exists: Sequence[Any] | None = None,
    weights: Sequence[Any] | None = None,
    seed: int = 0,
) -> RolloutGroups:
    """Groups of the rollouts `tokens` [B, G, L] for `targets` [B, T, L], all as nested lists.

    - `targets`: a prompt may have fewer than others, or none; what it lacks is padded.
    - `items` [B, G], `target_items` [B, T]: by default the SIDs numbered in sorted order, so that
      equal SIDs are the same item and a rollout of a target's SID has the target's item.
    - `logprobs`, `target_logprobs`: one per token, or one per SID, which its tokens share equally.
      By default -1 per token, and for a target that was rolled out those of the rollout.
    - `exists` [B, G]: False for a rollout that is missing; its item is -1.
    - `weights` [B, G]: importance weights.

    Rows keep their order: give the most probable first. Prompts are the rows 0, 1, .. and have no
    history. Raises `RecastError` for lists that do not fit together.

    >>> groups = make_groups([[[3, 8], [2, 8], [4, 1]]], [[[3, 8]]], exists=[[True, True, False]])
    >>> groups.items, groups.prompts.target_items
    (tensor([[ 1,  0, -1]]), tensor([[1]]))
    >>> groups.rollout_logprobs.sum(-1), groups.exists
    (tensor([[-2., -2.,  0.]]), tensor([[ True,  True, False]]))
    """
    targets = _listed(targets)
    rollouts = _tensor("tokens", tokens, least=0)
    whole = rollouts.ndim == 3 and rollouts.numel() > 0
    require(whole, "tokens", tokens, "give B lists of G SIDs of L tokens, none of them empty")
    num_prompts, group_size, num_levels = rollouts.shape
    drawn = torch.ones(num_prompts, group_size, dtype=torch.bool)
    if exists is not None:
        drawn = _tensor("exists", exists, drawn.shape, least=0, most=1).bool()
    is_target = _present(targets, num_prompts)
    wanted = _filled("targets", targets, is_target, num_levels, least=0).long()
    require(type(seed) is int and seed >= 0, "seed", seed, "give a whole number of 0 or more")

    known, known_targets = _items(items, target_items, rollouts, wanted, drawn, is_target)
    scores = torch.full(rollouts.shape, LOGPROB)
    if logprobs is not None:
        rows = _per_token(logprobs, num_levels)
        scores = _tensor("logprobs", rows, rollouts.shape, is_whole=False)
    target_scores = _copied(scores, rollouts, drawn, wanted)
    if target_logprobs is not None:
        rows = _per_token(target_logprobs, num_levels)
        target_scores = _filled("target_logprobs", rows, is_target, num_levels, is_whole=False)
    return RolloutGroups(
        prompts=_prompts(wanted, known_targets),
        tokens=rollouts,
        items=known,
        predictions=rollouts.masked_fill(~drawn[..., None], -1)[:, :, None],
        rollout_logprobs=scores.float() * drawn[..., None],
        target_logprobs=target_scores.float() * is_target[..., None],
        loss_mask=drawn[..., None].repeat(1, 1, num_levels),
        seed=seed,
        step=0,
        weights=None
        if weights is None
        else _tensor("weights", weights, drawn.shape, is_whole=False, least=0).float(),
    )


def _present(targets: Sequence[Any], num_prompts: int) -> Bool[Tensor, "B T"]:
    """Where a prompt has a target."""
    counts = _lengths("targets", targets)
    remedy = f"give {num_prompts} lists, one per prompt, an empty one for no target"
    require(len(counts) == num_prompts, "targets", targets, remedy)
    return torch.arange(max(1, *counts)) < torch.tensor(counts)[:, None]


def _items(
    items: Sequence[Any] | None,
    target_items: Sequence[Any] | None,
    rollouts: Int[Tensor, "B G L"],
    targets: Int[Tensor, "B T L"],
    drawn: Bool[Tensor, "B G"],
    is_target: Bool[Tensor, "B T"],
) -> tuple[Int[Tensor, "B G"], Int[Tensor, "B T"]]:
    """The item of every rollout and target: the given ones, else by the SIDs."""
    known, known_targets = torch.full(drawn.shape, -1), torch.full(is_target.shape, -1)
    if items is not None:
        known = _tensor("items", items, drawn.shape, least=-1)
    if target_items is not None:
        known_targets = _filled("target_items", target_items, is_target, least=0).long()
    sids = torch.cat([rollouts[drawn], targets[is_target]])
    number = _numbers(sids, torch.cat([known[drawn], known_targets[is_target]]))
    if items is None:
        known[drawn] = number[: int(drawn.sum())]
    if target_items is None:
        known_targets[is_target] = number[int(drawn.sum()) :]
    return known.masked_fill(~drawn, -1), known_targets.masked_fill(~is_target, -1)


def _prompts(targets: Int[Tensor, "B T L"], target_items: Int[Tensor, "B T"]) -> Prompts:
    """Rows 0, 1, .. without a history."""
    ones = torch.ones(len(targets), 1, dtype=torch.long)
    return Prompts(
        tokens=ones,
        lengths=ones[:, 0],
        targets=targets,
        target_items=target_items,
        target_mask=(target_items >= 0)[..., None].expand(targets.shape),
        target_sids=targets.masked_fill((target_items < 0)[..., None], -1),
        history=ones[:, :0],
        seen=ones[:, :0],
        row_ids=torch.arange(len(targets)),
        domains=torch.zeros(len(targets), dtype=torch.long),
    )


def _numbers(sids: Int[Tensor, "N L"], known: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The item of every SID: one that an equal SID is known to have, else the next free number."""
    distinct, index = sids.unique(dim=0, return_inverse=True)
    item = torch.full((len(distinct),), -1).scatter_reduce(0, index, known, "amax")
    free = item < 0
    item[free] = torch.arange(int(free.sum())) + max(known.tolist(), default=-1) + 1
    return item[index]


def _copied(
    logprobs: Float[Tensor, "B G L"],
    rollouts: Int[Tensor, "B G L"],
    drawn: Bool[Tensor, "B G"],
    targets: Int[Tensor, "B T L"],
) -> Float[Tensor, "B T L"]:
    """Log-probabilities of the targets: those of a rollout of the same SID, or `LOGPROB`."""
    same = (rollouts[:, None] == targets[:, :, None]).all(-1) & drawn[:, None]
    copied = logprobs[torch.arange(len(rollouts))[:, None], same.int().argmax(-1)]
    return torch.where(same.any(-1, keepdim=True), copied, LOGPROB)


def _per_token(rows: Any, num_levels: int) -> list[Any]:
    """A number for a SID as a list of equal shares, one per token."""
    return [
        [[x / num_levels] * num_levels if isinstance(x, (int, float)) else x for x in row]
        if isinstance(row, Sequence)
        else row
        for row in _listed(rows)
    ]


def _filled(name: str, rows: Any, valid: Bool[Tensor, "B T"], *entry: int, **kind: Any) -> Tensor:
    """Lists of as many entries as the prompt has targets, with zeros behind them."""
    counts = valid.sum(1).tolist()
    remedy = f"give one entry per target, {counts} for the prompts in turn"
    require(_lengths(name, rows) == counts, name, rows, remedy)
    flat = [value for row in rows for value in row]
    size = (len(flat), *entry)
    values = _tensor(name, flat, size, **kind) if flat else torch.zeros(0, *entry)
    filled = values.new_zeros(*valid.shape, *entry)
    filled[valid] = values
    return filled


def _tensor(
    name: str,
    rows: Any,
    shape: tuple[int, ...] | None = None,
    *,
    is_whole: bool = True,
    least: float = -math.inf,
    most: float = math.inf,
) -> Tensor:
    """Nested lists as a tensor, of this shape, of finite numbers from `least` to `most`."""
    rows = _listed(rows)
    try:
        tensor = torch.tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecastError(
            f"{name} is {in_short(rows)}: give nested lists of equal lengths"
        ) from error
    if shape is not None:
        remedy = f"give nested lists of shape {list(shape)}, so that they go with tokens"
        require(tensor.shape == shape, name, rows, remedy)
    if is_whole:
        fits = not tensor.is_floating_point() or tensor.numel() == 0
        require(fits, name, rows, "give whole numbers alone")
    fits = bool((tensor.isfinite() & (tensor >= least) & (tensor <= most)).all())
    bounds = f" from {least:g} on" * (least > -math.inf) + f", up to {most:g}" * (most < math.inf)
    require(fits, name, rows, f"give finite numbers{bounds}")
    return tensor


def _listed(values: Any) -> Any:
    """Tensors and arrays, nested ones too, as lists."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return [_listed(value) for value in values] if isinstance(values, list | tuple) else values


def _lengths(name: str, rows: Any) -> list[int]:
    """Length of every list."""
    try:
        return [len(row) for row in rows]
    except TypeError as error:
        raise RecastError(f"{name} is {rows!r}: give one list per prompt") from error
