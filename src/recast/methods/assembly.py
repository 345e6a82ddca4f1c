"""A config in, a method with all its parts bound out; whatever does not fit is refused here.

Nothing is loaded before the names, the parameters and the settings fit each other: reward and
signal are tried once on made-up groups, so that a parameter out of range never costs a rollout.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recast.config import RLConfig
from recast.groups import select
from recast.items.embed import load_embeddings
from recast.items.fan_out import fan_out
from recast.methods.parts import (
    READ_REWARDS,
    SAMPLERS,
    SIGNALS,
    Part,
    find_part,
    is_users,
    name_of,
    require_resources,
    resources,
    spell,
    supply,
    with_parameters,
)
from recast.methods.probe import probe_groups, probe_loss, probe_resources
from recast.methods.table import Method, find_method
from recast.policy.load import Policy
from recast.policy.ranker import load_ranker
from recast.types import RecastError, require

_UNWEIGHTED = ("sample", "beam", "dynamic", "lists")
_SWAPS = ("reward", "signal", "loss")
STEP_RESOURCES = ("natural_frac",)
"""What the loop knows anew at every step."""


def resolve(config: RLConfig) -> Method:
    """The method of that name with what the config overrides, its parameters checked.

    Raises `RecastError` naming the setting and the remedy.
    """
    method = find_method(config.method)
    if config.sampler and not method.samplers:
        raise RecastError(
            f"sampler is {config.sampler!r}: method {config.method!r} makes no rollouts, "
            "leave it out"
        )
    if sampler := config.sampler or method.sampler:
        sampler_of(method, config, sampler)
        if sampler in SAMPLERS and sampler not in method.samplers:
            raise RecastError(
                f"sampler is {sampler!r}, which cannot serve method {config.method!r}: "
                f"use {' or '.join(method.samplers)}"
            )
        method = replace(method, samplers=(sampler,))
    changes: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("lr", "kl_coef", "nll_coef", "add_gt", "list_length")
        if getattr(config, name) is not None
    }
    for kind in _SWAPS:
        name = getattr(config, kind)
        part = find_part(kind, name) if name else getattr(method, kind)
        changes[kind] = with_parameters(kind, part, getattr(config, f"{kind}_args"))
    swapped = [
        f"{kind} {getattr(config, kind)}"
        for kind in _SWAPS
        if spell(changes[kind])[0] != spell(getattr(method, kind))[0]
    ]
    if swapped:
        changes["label"] = f"{method.label} with {', '.join(swapped)}"
    method = replace(method, **changes)
    if swapped and not method.samplers:
        raise RecastError(
            f"method {config.method!r} makes no rollouts that {' and '.join(swapped)} could read: "
            "choose another method"
        )
    loss, signal = spell(method.loss)[0], spell(method.signal)[0]
    if loss in READ_REWARDS and signal in SIGNALS and signal != "identity":
        raise RecastError(
            f"loss is {loss!r}, which reads rewards where signal {signal!r} gives advantages: "
            "add --signal identity"
        )
    if method.add_gt and method.sampler in (None, "lists", "gumbel"):
        what = f"its sampler {method.sampler}" if method.sampler else "without rollouts it"
        raise RecastError(
            f"add_gt is True: method {config.method!r} has no last rollout to overwrite, {what} "
            "leaves no room for the target; leave it out"
        )
    least = method.min_group_size
    need = f"method {config.method!r} needs {least} rollouts or more per prompt"
    require(config.group_size >= least, "group_size", config.group_size, need)
    space = config.logprob_space or method.space
    need = f"method {config.method!r} is defined over the allowed children, leave it out"
    require(method.space in ("full", space), "logprob_space", space, need)
    method = replace(method, space=space)
    need = f"method {config.method!r} takes no KL here, leave it out or raise kl_coef"
    require(config.kl_rollouts == "kept" or method.kl_coef > 0, "kl_rollouts", "weighted", need)
    _probe(method, config)
    return method


def sampler_of(method: Method, config: RLConfig, name: str) -> Part:
    """The sampler of that name with its parameters and the length of its lists."""
    part = with_parameters("sampler", find_part("sampler", name), config.sampler_args)
    return supply(part, {"list_length": method.list_length})


def _probe(method: Method, config: RLConfig) -> None:
    """Refuse a resource that nobody supplies, then run the parts once on made-up groups."""
    parts = (method.reward, method.signal, method.loss)
    given = {name for name in ("ranker", "embeddings") if getattr(config, name)}
    available = {"fan_out", "list_length", *STEP_RESOURCES} | given
    require_resources(f"method {config.method!r}", parts, available)
    _refuse_idle(method, config, parts)
    size, length = max(config.group_size, 1) * method.list_length, method.list_length
    groups = probe_groups(size, list_length=length, weighted=method.sampler not in _UNWEIGHTED)
    groups = select(groups, torch.arange(min(len(groups.prompts), config.prompts_per_step)))
    made_up = probe_resources(groups, list_length=length)
    rewards = _try(method.reward, supply(method.reward, made_up), groups)
    fits = isinstance(rewards, Tensor) and rewards.shape == groups.items.shape
    if not (fits and rewards.is_floating_point()):
        rewards = torch.zeros(groups.items.shape)  # the first step says what is wrong with them
    _try(method.signal, supply(method.signal, made_up), groups, rewards)
    _try(method.loss, probe_loss, method.loss)


def _refuse_idle(method: Method, config: RLConfig, parts: tuple[Part, ...]) -> None:
    """A setting that nothing would read is a mistake."""
    sampler = find_part("sampler", method.sampler) if method.sampler else method.signal
    if method.list_length > 1 and "list_length" not in resources(sampler):
        raise RecastError(
            f"sampler {method.sampler!r} draws no lists for signal {name_of(method.signal)}: "
            "start from method rank_grpo or sage, or leave list_length out"
        )
    asked = set[str]().union(*(resources(part) for part in (*parts, sampler)))
    for name in ("ranker", "embeddings"):
        value = getattr(config, name)
        if value is not None and name not in asked:
            raise RecastError(
                f"{name} is {value!r}: method {config.method!r} uses none, leave it out"
            )


def _try(part: Part, call: Part, *inputs: Any) -> Any:
    """What the call returns; nothing where a user's part fails, which the first step will say.

    Made-up groups need not suit a user's part: they have three levels and items of their own.
    """
    try:
        return call(*inputs)
    except RecastError:
        raise
    except (Exception, SystemExit):
        if not is_users(part):
            raise
        return None


def equip(method: Method, config: RLConfig, policy: Policy) -> Method:
    """The method with its ranker, embeddings and trie bound; only what it asks for is loaded."""
    available: dict[str, Any] = {
        "fan_out": partial(fan_out, policy.catalog),
        "list_length": method.list_length,
    }
    if config.ranker:
        available["ranker"] = load_ranker(config.ranker, policy.catalog)
    if config.embeddings:
        embeddings = load_embeddings(config.embeddings, policy.catalog)
        available["embeddings"] = embeddings.to(policy.catalog.device)
    return replace(
        method, reward=supply(method.reward, available), signal=supply(method.signal, available)
    )
