"""What can be done to groups without tearing one apart: groups in, groups out.

Rows are selected, joined, reordered or replaced with everything that belongs to them: tokens,
items, log-probabilities, mask and weights move together, here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.types import Prompts, RolloutGroups, Thoughts

_Typed = TypeVar("_Typed", Prompts, RolloutGroups, Thoughts)


def select(batch: _Typed, index: Int[Tensor, " N"]) -> _Typed:
    """The prompts `index` of a batch, in that order, with everything that belongs to them."""
    chosen: dict[str, Any] = {}
    for field in fields(batch):
        value: Any = getattr(batch, field.name)
        if type(value) in (Prompts, Thoughts):
            chosen[field.name] = select(value, index)
        else:
            chosen[field.name] = value[index] if isinstance(value, Tensor) else value
    return type(batch)(**chosen)


def map_tensors(batch: _Typed, change: Callable[[Tensor], Tensor]) -> _Typed:
    """The groups with each of their tensors changed, for another device, and their prompts'."""
    changed: dict[str, Any] = {}
    for field in fields(batch):
        value: Any = getattr(batch, field.name)
        if type(value) in (Prompts, Thoughts):
            value = map_tensors(value, change)
        changed[field.name] = change(value) if isinstance(value, Tensor) else value
    return type(batch)(**changed)


def join(parts: Sequence[RolloutGroups], prompts: Prompts) -> RolloutGroups:
    """The groups of `prompts`, which these parts hold in turn; each part's targets are padded as
    its own rows need, the joint ones as all of them."""
    joined: dict[str, Any] = {}
    num_targets = prompts.targets.shape[1]
    for field in fields(RolloutGroups):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "target_logprobs":
            values = [F.pad(x, (0, 0, 0, num_targets - x.shape[1])) for x in values]
        joined[field.name] = torch.cat(values) if isinstance(values[0], Tensor) else values[0]
    thoughts = [part.thoughts for part in parts if part.thoughts is not None]
    joined["thoughts"] = _join_thoughts(thoughts) if thoughts else None
    return RolloutGroups(**joined | {"prompts": prompts})


def _join_thoughts(parts: Sequence[Thoughts]) -> Thoughts:
    width = max(part.tokens.shape[2] for part in parts)
    joined: dict[str, Any] = {}
    for field in fields(Thoughts):
        values = [getattr(part, field.name) for part in parts]
        if field.name in ("tokens", "loss_mask", "logprobs"):
            values = [F.pad(x, (0, width - x.shape[2])) for x in values]
        joined[field.name] = None if values[0] is None else torch.cat(values)
    return Thoughts(**joined)


def counted_tokens(groups: RolloutGroups) -> Bool[Tensor, "B G S"]:
    """Tokens that count of everything that a rollout writes: `loss_mask`, and before it that of the
    thought it follows, once for every rollout."""
    thoughts = groups.thoughts
    if thoughts is None:
        return groups.loss_mask
    index = thoughts.of[..., None].expand(-1, -1, thoughts.tokens.shape[2])
    before = thoughts.loss_mask.gather(1, index) & groups.exists[..., None]
    return torch.cat([before, groups.loss_mask], dim=2)


def reorder(groups: RolloutGroups, index: Int[Tensor, "B N"]) -> RolloutGroups:
    """The rollouts `index` of every group, in that order, with everything that belongs to them."""
    token = index[..., None].expand(-1, -1, groups.tokens.shape[2])
    named = index[..., None, None].expand(-1, -1, *groups.predictions.shape[2:])
    return replace(
        groups,
        tokens=groups.tokens.gather(1, token),
        items=groups.items.gather(1, index),
        predictions=groups.predictions.gather(1, named),
        rollout_logprobs=groups.rollout_logprobs.gather(1, token),
        loss_mask=groups.loss_mask.gather(1, token),
        weights=None if groups.weights is None else groups.weights.gather(1, index),
        injected=None if groups.injected is None else groups.injected.gather(1, index),
        thoughts=_following(groups.thoughts, index),
    )


def _following(thoughts: Thoughts | None, index: Int[Tensor, "B N"]) -> Thoughts | None:
    """The thoughts of the rollouts `index`."""
    return thoughts and replace(thoughts, of=thoughts.of.gather(1, index))


def most_probable_first(groups: RolloutGroups) -> RolloutGroups:
    """Every group by summed log-probability; equals keep their order, the missing come last."""
    total = groups.rollout_logprobs.sum(-1).masked_fill(~groups.exists, -torch.inf)
    return reorder(groups, total.argsort(dim=1, descending=True, stable=True))


def is_first(rows: Int[Tensor, "*batch N L"]) -> Bool[Tensor, "*batch N"]:
    """True where a row repeats no earlier row.

    >>> is_first(torch.tensor([[1, 2], [3, 4], [1, 2]]))
    tensor([ True,  True, False])
    """
    same = (rows.unsqueeze(-2) == rows.unsqueeze(-3)).all(-1)
    return ~same.tril(diagonal=-1).any(-1)


def is_new(groups: RolloutGroups) -> Bool[Tensor, "B G"]:
    """True for a rollout that repeats none before it: by what it names, or, where that is no
    item's, by what it writes."""
    outside = (groups.items < 0)[..., None]
    tokens = groups.tokens.masked_fill(~outside, -1)
    return is_first(torch.cat([groups.predictions.flatten(2), tokens], dim=-1))


def has_hit(groups: RolloutGroups, rewards: Float[Tensor, "B G"]) -> Bool[Tensor, " B"]:
    """True for groups with an existing rollout of positive reward."""
    return (groups.exists & (rewards > 0)).any(1)


def is_mixed(groups: RolloutGroups, rewards: Float[Tensor, "B G"]) -> Bool[Tensor, " B"]:
    """True for groups whose existing rollouts do not all have the same reward."""
    first = rewards.gather(1, groups.exists.int().argmax(1, keepdim=True))
    return ((rewards != first) & groups.exists).any(1)


class Target(NamedTuple):
    """One target per prompt; where `exists` is False there is none and the rest is padding."""

    tokens: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    items: Int[Tensor, " B"]
    sids: Int[Tensor, "B D"]
    logprobs: Float[Tensor, "B L"]
    exists: Bool[Tensor, " B"]


def choose_target(groups: RolloutGroups, name: str = "anchor") -> Target:
    """A seeded uniform choice among the targets of each prompt; `name` is that of its draw."""
    prompts = groups.prompts
    valid = (prompts.target_items >= 0).double()
    draw = groups.uniforms(name, 1) * valid.sum(1, keepdim=True)
    chosen = torch.searchsorted(valid.cumsum(1), draw, right=True)[:, 0]
    chosen = chosen.clamp(max=valid.shape[1] - 1)
    rows = torch.arange(len(valid), device=chosen.device)
    return Target(
        tokens=prompts.targets[rows, chosen],
        mask=prompts.target_mask[rows, chosen],
        items=prompts.target_items[rows, chosen],
        sids=prompts.target_sids[rows, chosen],
        logprobs=groups.target_logprobs[rows, chosen],
        exists=valid.any(1),
    )


def overwrite(
    groups: RolloutGroups, replaced: Bool[Tensor, "B G"], target: Target
) -> RolloutGroups:
    """The groups with these rollouts replaced by their prompt's target, without weights."""
    token = replaced[..., None]
    return replace(
        groups,
        tokens=torch.where(token, target.tokens[:, None], groups.tokens),
        items=torch.where(replaced, target.items[:, None], groups.items),
        predictions=torch.where(token[..., None], _alone(target, groups), groups.predictions),
        rollout_logprobs=torch.where(token, target.logprobs[:, None], groups.rollout_logprobs),
        loss_mask=torch.where(token, target.mask[:, None], groups.loss_mask),
        weights=None,
    )


def _alone(target: Target, groups: RolloutGroups) -> Int[Tensor, "B 1 R D"]:
    """The predictions of a rollout that names the target and nothing else."""
    named = target.sids[:, None, None]
    return F.pad(named, (0, 0, 0, groups.predictions.shape[2] - 1), value=-1)


def append_target(
    groups: RolloutGroups, rewards: Float[Tensor, "B G"]
) -> tuple[RolloutGroups, Float[Tensor, "B G+1"], Bool[Tensor, " B"]]:
    """Row G + 1 of every group: its target, reward 1, where there is no hit; and where.

    Elsewhere the row does not exist. Of several targets it is a seeded choice; of thoughts it
    follows the first. The groups have no
    importance weights any more: the target was not drawn.
    """
    target = choose_target(groups)
    added = ~has_hit(groups, rewards) & target.exists
    row, token = added[:, None], added[:, None, None]

    def join(rows: Tensor, last: Tensor) -> Tensor:
        return torch.cat([rows, last.to(rows.dtype)], dim=1)

    longer = replace(
        groups,
        tokens=join(groups.tokens, target.tokens[:, None]),
        items=join(groups.items, target.items[:, None].masked_fill(~row, -1)),
        predictions=join(
            groups.predictions, _alone(target, groups).masked_fill(~token[..., None], -1)
        ),
        rollout_logprobs=join(
            groups.rollout_logprobs, target.logprobs[:, None].masked_fill(~token, 0.0)
        ),
        loss_mask=join(groups.loss_mask, token & target.mask[:, None]),
        weights=None,
        injected=None if groups.injected is None else F.pad(groups.injected, (0, 1)),
        thoughts=groups.thoughts and replace(groups.thoughts, of=F.pad(groups.thoughts.of, (0, 1))),
    )
    return longer, join(rewards, row), added
