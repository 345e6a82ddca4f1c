"""Made-up groups and resources: what a reward, a signal or a loss is tried on before training.

The catalogue is a full tree whose last SID no item has, the policy a random one over it, seeded.
Every kind of group that a sampler can return is there: `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.items.catalog import Catalog, build_catalog, build_token_catalog
from recast.policy.prompts import make_prompts
from recast.types import Prompts, RecastError, RolloutGroups, require

KINDS = (
    "one hit",
    "all zero",
    "all hit",
    "several targets",
    "repeats",
    "some outside the catalogue",
    "all outside the catalogue",
    "short",
    "no rollout",
)


def probe_groups(
    group_size: int,
    num_levels: int = 3,
    *,
    kinds: Sequence[str] = KINDS,
    list_length: int = 1,
    weighted: bool = False,
    as_texts: bool = False,
    seed: int = 0,
) -> RolloutGroups:
    """One group per kind: hits, near misses of every level, misses, most probable first.

    With a `list_length` of N the rows are G / N lists of N items in the order of the lists;
    `weighted` sets importance weights; `as_texts` the items write texts of unequal lengths, whose
    forced tokens have probability 1. Rollouts are distinct in the kinds "one hit", "all zero" and
    "several targets"; with G <= L the first two tie in no score either.
    """
    remedy = "made-up groups need a positive multiple of list_length"
    require(group_size > 0 and group_size % list_length == 0, "group_size", group_size, remedy)
    draw = torch.Generator().manual_seed(seed)
    base = 3
    while base**num_levels < group_size + 2:
        base += 1
    outside = base**num_levels - 1
    place = torch.arange(group_size)
    exists = torch.ones(len(kinds), group_size, dtype=torch.bool)
    rollouts = torch.empty(len(kinds), group_size, dtype=torch.long)
    targets = torch.full((len(kinds), max(2, list_length)), -1)
    tables = _random_policy(len(kinds), base, num_levels, draw)
    for index, kind in enumerate(kinds):
        nearest = _by_distance(base, num_levels, draw)
        num_targets = {"several targets": max(2, list_length), "all hit": list_length}.get(kind, 1)
        targets[index, :num_targets] = nearest[:num_targets]
        leaf = _leaves_of(kind, nearest, outside, group_size, list_length)
        if list_length == 1:
            leaf = leaf[
                _logprobs(tables, leaf, index).sum(-1).argsort(descending=True, stable=True)
            ]
        rollouts[index] = leaf
        if kind == "short":  # of a group the last half, of lists the last half of each
            length = list_length if list_length > 1 else group_size
            exists[index] = place % length < (length + 1) // 2
        exists[index] &= kind != "no rollout"
    logprobs = torch.stack([_logprobs(tables, leaf, i) for i, leaf in enumerate(rollouts)])
    is_target = targets >= 0
    wanted = torch.stack(
        [_logprobs(tables, leaf, i) for i, leaf in enumerate(targets.clamp(min=0))]
    )
    probability = logprobs.sum(-1).exp()
    catalog, places, nowhere = _writing(base, num_levels, as_texts)
    items = rollouts.masked_fill(~exists | (rollouts == outside), -1)
    is_outside = (exists & (rollouts == outside))[..., None]
    tokens = torch.where(is_outside, nowhere, catalog.tokens_of(items))
    named = catalog.sids_of(tokens).masked_fill(~exists[..., None], -1)

    def by_token(values: Float[Tensor, "*n D"], leaves: Int[Tensor, "*n"]) -> Float[Tensor, "*n L"]:
        whole = values.new_zeros(*leaves.shape, len(nowhere))
        return whole.scatter(-1, places[leaves], values)

    included = -torch.expm1(group_size * torch.log1p(-probability))
    return RolloutGroups(
        prompts=_prompts(targets, catalog, draw),
        tokens=tokens,
        items=items,
        predictions=named[:, :, None],
        rollout_logprobs=by_token(logprobs, rollouts) * exists[..., None],
        target_logprobs=by_token(wanted, targets.clamp(min=0)) * is_target[..., None],
        loss_mask=catalog.mask_of(items) | (is_outside & (nowhere != catalog.pad_token)),
        seed=seed,
        step=0,
        weights=probability / included * exists if weighted else None,
    )


def probe_resources(groups: RolloutGroups, *, list_length: int = 1) -> dict[str, Any]:
    """A made-up value for every resource that a part can ask for, by its name."""
    prompts = groups.prompts
    num_items = 1 + max(int(x.max()) for x in (groups.items, prompts.target_items, prompts.history))
    item = torch.arange(max(num_items, 1))[:, None]
    embeddings = torch.sin(1.7 * (item + 1) * torch.arange(1, 9))
    embeddings = embeddings / embeddings.norm(dim=1, keepdim=True)
    return {
        "ranker": _ranker,
        "embeddings": embeddings * (item % 7 != 6),
        "fan_out": lambda of: (1 + of.tokens % 3) * of.loss_mask,
        "natural_frac": 0.1,
        "list_length": list_length,
    }


def loss_inputs() -> dict[str, Tensor]:
    """What a loss can ask for, of five prompts with three rollouts of three tokens each.

    In turn: a positive, a negative and one without advantage; a positive and two padded rows; only
    padded rows, as of a prompt that has nothing but a likelihood; no positive; no negative.
    """
    draw = torch.Generator().manual_seed(0)
    advantages = torch.tensor([[1.0, -1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]])
    kept = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]).bool()
    shape = (*kept.shape, 3)
    names = ("logprobs", "old_logprobs", "ref_logprobs")
    return {name: -torch.rand(shape, generator=draw) for name in names} | {
        "advantages": advantages[..., None].expand(shape).clone(),
        "loss_mask": kept[..., None].expand(shape).clone(),
    }


def probe_loss(loss: Callable[..., Tensor], inputs: dict[str, Tensor] | None = None) -> Tensor:
    """The loss of `loss_inputs()`, or of others like them."""
    given = loss_inputs() if inputs is None else inputs
    asked = signature(loss).parameters
    return loss(**{name: value for name, value in given.items() if name in asked})


def _leaves_of(
    kind: str, nearest: Int[Tensor, " N"], outside: int, group_size: int, list_length: int
) -> Int[Tensor, " G"]:
    """The leaves that a group of this kind holds, from those by distance to the target."""
    place = torch.arange(group_size)
    first = -(-group_size // list_length // 2) * list_length  # the rows of half of the lists
    return {
        "all zero": nearest[1 : group_size + 1],
        "all hit": nearest[place % list_length],
        "repeats": nearest[place % first],
        "some outside the catalogue": nearest[:group_size].masked_fill(place % 2 == 1, outside),
        "all outside the catalogue": torch.full_like(place, outside),
    }.get(kind, nearest[:group_size])


def _by_distance(base: int, num_levels: int, draw: torch.Generator) -> Int[Tensor, " N"]:
    """Leaves of the tree: a target, a near miss of every level (nearest first), all the others.

    The last leaf is left out: no target ends in 0 and neither do its near misses in `base - 1`.
    """
    target = base * int(torch.randint(base ** (num_levels - 1), (1,), generator=draw))
    first = [target]
    for level in reversed(range(num_levels)):
        size = base ** (num_levels - 1 - level)
        digit = target // size % base
        first.append(target + ((digit + 1) % base - digit) * size)
    others = torch.randperm(base**num_levels - 1, generator=draw)
    return torch.cat([torch.tensor(first), others[~torch.isin(others, torch.tensor(first))]])


def _random_policy(
    num_prompts: int, base: int, num_levels: int, draw: torch.Generator
) -> list[Float[Tensor, "B _nodes"]]:
    """Log-probability of every node given its parent, level by level."""
    sizes = [(num_prompts, base**level, base) for level in range(num_levels)]
    return [torch.randn(size, generator=draw).log_softmax(-1).flatten(1) for size in sizes]


def _logprobs(
    tables: list[Float[Tensor, "B _nodes"]], leaves: Int[Tensor, " N"], row: int
) -> Float[Tensor, "N L"]:
    num_leaves = tables[-1].shape[1]
    return torch.stack([x[row, leaves // (num_leaves // x.shape[1])] for x in tables], dim=-1)


class Writing(NamedTuple):
    """What the leaves of the tree write: semantic IDs, or texts in which every code has a token and
    up to two forced ones behind it."""

    catalog: Catalog
    """Of all leaves but the last, which no item has."""
    places: Int[Tensor, "N D"]
    """Of every leaf the tokens that decide."""
    nowhere: Int[Tensor, " L"]
    """What is no item."""


@cache
def _writing(base: int, num_levels: int, as_texts: bool) -> Writing:
    codes = torch.cartesian_prod(*[torch.arange(base)] * num_levels).view(-1, num_levels)
    if not as_texts:
        places = torch.arange(num_levels).expand(codes.shape)
        catalog = build_catalog(codes[:-1], (base,) * num_levels)
        last = [catalog.level_tokens(level)[1] - 1 for level in range(num_levels)]
        return Writing(catalog, places, torch.tensor(last))
    end, forced, first = 2, 3, 4
    sizes = 1 + (codes + torch.arange(num_levels)) % 3
    places, lengths = sizes.cumsum(1) - sizes, sizes.sum(1) + 1
    tokens = torch.full((len(codes), int(lengths.max())), forced)
    tokens.scatter_(1, places, first + base * torch.arange(num_levels) + codes)
    tokens.scatter_(1, lengths[:, None] - 1, end)
    catalog = build_token_catalog(tokens[:-1], lengths[:-1])
    nowhere = catalog.tokens[0].long()
    nowhere[places[0, -1]] = first + base * num_levels
    return Writing(catalog, places.clamp(max=catalog.max_length - 1), nowhere)


def _prompts(targets: Int[Tensor, "B T"], catalog: Catalog, draw: torch.Generator) -> Prompts:
    history = torch.randint(catalog.num_items, (len(targets), 3), generator=draw)
    history[1::2, 2:] = -1
    rows = torch.arange(len(targets)) + 10
    return make_prompts(catalog, history=history, targets=targets, row_ids=rows)


def _ranker(prompts: Prompts, items: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    if bool((items < 0).any()):
        raise RecastError("the ranker was asked for item -1: clamp the items and mask the result")
    return torch.sin(12.9898 * items + 78.233 * prompts.row_ids[:, None])
