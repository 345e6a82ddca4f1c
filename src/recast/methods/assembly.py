"""A config in, a method with all its parts bound out; whatever does not fit is refused here.

Nothing is loaded before the names, the parameters and the settings fit each other: reward and
signal are tried once on made-up groups, so that a parameter out of range never costs a rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from recast.config import StepConfig
from recast.config.user_code import undisturbed
from recast.groups import reorder, select
from recast.items.embed import load_embeddings
from recast.items.fan_out import fan_out
from recast.methods.contract import reward_fault, signal_fault
from recast.methods.parts import (
    KINDS,
    Part,
    find_part,
    is_users,
    name_of,
    named,
    require_fit,
    require_resources,
    resources,
    spell,
    supply,
    traits_of,
    with_parameters,
)
from recast.methods.probe import probe_groups, probe_loss, probe_resources
from recast.methods.table import Method, find_method, require_group
from recast.policy.load import Policy
from recast.policy.logprobs import require_levels
from recast.policy.ranker import load_ranker
from recast.types import LogprobSpace, RecastError, RolloutGroups, require

_SWAPS = ("reward", "signal", "loss")
STEP_RESOURCES = ("natural_frac",)
"""What the loop knows anew at every step."""


def resolve(config: StepConfig, method: Method | None = None) -> Method:
    """The method, by default the one that the config names, with what the config overrides, its
    parameters checked.

    Raises `RecastError` naming the setting and the remedy.
    """
    named = config.method == StepConfig.method or method is None
    require(named, "method", config.method, "a method was given as a value too: leave one out")
    is_method = method is None or isinstance(method, Method)
    remedy = "give a recast.Method, or a name as RLConfig(method=...)"
    require(is_method, "method", method, remedy)
    name = config.method if method is None else method.label
    method = find_method(config.method) if method is None else method
    changes_agg = config.loss_agg not in (None, method.loss_agg)
    method = _with_settings(_with_sampler(method, config, name), config)
    method = _with_parts(method, config, name)
    _refuse_misfits(method, config, name)
    values = _probe(method, config, name)
    _refuse_misfit_units(method, config, values, changes_agg=changes_agg)
    return method


def _with_sampler(method: Method, config: StepConfig, name: str) -> Method:
    """The method with the one sampler that it will use."""
    if config.sampler and not method.samplers:
        raise RecastError(
            f"sampler is {config.sampler!r}: method {name!r} makes no rollouts, leave it out"
        )
    sampler = config.sampler or method.sampler
    if sampler is None:
        return method
    sampler_of(method, sampler, config.sampler_args)
    if sampler in KINDS["sampler"] and sampler not in method.samplers:
        raise RecastError(
            f"sampler is {sampler!r}, which cannot serve method {name!r}: "
            f"use {' or '.join(method.samplers)}"
        )
    return replace(method, samplers=(sampler,))


def _with_settings(method: Method, config: StepConfig) -> Method:
    names = ("lr", "kl_coef", "loss_agg", "nll_coef", "add_gt", "list_length")
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return replace(method, **given)


def _with_parts(method: Method, config: StepConfig, name: str) -> Method:
    """The method with the parts that the config swaps in, and all parameters."""
    changes: dict[str, Any] = {}
    for kind in _SWAPS:
        swap = getattr(config, kind)
        part = find_part(kind, swap) if swap else getattr(method, kind)
        require_fit(f"{kind} {name_of(part)}", kind, part)
        changes[kind] = with_parameters(kind, part, getattr(config, f"{kind}_args"))
    swapped = [
        f"{kind} {getattr(config, kind)}"
        for kind in _SWAPS
        if spell(changes[kind])[0] != spell(getattr(method, kind))[0]
    ]
    if swapped and not method.samplers:
        raise RecastError(
            f"method {name!r} makes no rollouts that {' and '.join(swapped)} could read: "
            "choose another method"
        )
    if swapped:
        changes["label"] = f"{method.label} with {', '.join(swapped)}"
    space = config.logprob_space or method.space
    need = f"method {name!r} is defined over the allowed children, leave it out"
    require(method.space in ("full", space), "logprob_space", space, need)
    return replace(method, space=space, **changes)


def _refuse_misfits(method: Method, config: StepConfig, name: str) -> None:
    """Parts and settings that cannot go together."""
    gives_rewards = traits_of(method.signal).has_rewards or is_users(method.signal)
    if traits_of(method.loss).has_rewards and not gives_rewards:
        raise RecastError(
            f"loss is {spell(method.loss)[0]!r}, which reads rewards where signal "
            f"{spell(method.signal)[0]!r} gives advantages: add --signal identity"
        )
    sampler = find_part("sampler", method.sampler) if method.sampler else None
    if method.add_gt and (sampler is None or traits_of(sampler).has_fixed_rows):
        what = f"its sampler {method.sampler}" if method.sampler else "without rollouts it"
        raise RecastError(
            f"add_gt is True: method {name!r} has no last rollout to overwrite, {what} "
            "leaves no room for the target; leave it out"
        )
    thinks = sampler is not None and traits_of(sampler).thinks
    need = f"it is of thoughts, and sampler {method.sampler} writes none: add --sampler think"
    require(thinks or not traits_of(method.reward).thinks, "reward", name_of(method.reward), need)
    if thinks:
        need = f"behind the thoughts of sampler {method.sampler} a target has no likelihood, give 0"
        require(not method.nll_coef, "nll_coef", method.nll_coef, need)
    _refuse_free(method, config, f"method {name!r}")
    require_group(method, config.group_size, name)
    need = f"method {name!r} takes no KL here, leave it out or raise kl_coef"
    for setting in ("kl_rollouts", "kl_estimator"):
        value = getattr(config, setting)
        is_read = value == getattr(StepConfig, setting) or method.kl_coef > 0
        require(is_read, setting, value, need)
    rows, most = config.mini_batch_rows, config.prompts_per_step * config.group_size
    most *= method.list_length
    need = f"method {name!r} makes no rollouts, leave it out"
    require(rows is None or method.samplers != (), "mini_batch_rows", rows, need)
    need = f"a step has {most} rollouts, give fewer or leave it out"
    require(rows is None or rows <= most, "mini_batch_rows", rows, need)


def in_space_of(method: Method, config: StepConfig, policy: Policy) -> Method:
    """The method in the policy's own space, where neither the config nor its formula names one.

    Raises `RecastError` for a space wider than the policy was trained over: there its
    probabilities mean nothing.
    """
    spaces = get_args(LogprobSpace)  # the widest first
    if config.logprob_space is None and method.space == "full":
        method = replace(method, space=policy.logprob_space)
        _refuse_free(method, config, "the policy")
    if method.space == "level":
        require_levels(policy.catalog)
    own = policy.logprob_space
    need = f"{config.policy} was trained over {own} and knows no other tokens, leave it out"
    is_known = spaces.index(method.space) >= spaces.index(own)
    require(is_known, "logprob_space", method.space, need)
    return method


def _refuse_free(method: Method, config: StepConfig, whose: str) -> None:
    free = config.sampler_args.get("constrained") is False and method.space == "trie"
    need = f"{whose} is over the allowed children, which free beams leave; leave it out"
    require(not free, "sampler_args.constrained", False, need)


def sampler_of(method: Method, name: str, args: Mapping[str, Any]) -> Part:
    """The sampler of that name with its parameters and the length of its lists."""
    part = with_parameters("sampler", find_part("sampler", name), args)
    return supply(part, {"list_length": method.list_length})


def _probe(method: Method, config: StepConfig, name: str) -> Any:
    """Refuse a resource that nobody supplies, then run the parts once on made-up groups; what the
    loss gave."""
    parts = (method.reward, method.signal, method.loss)
    given = {name for name in ("ranker", "embeddings") if getattr(config, name)}
    available = {"fan_out", "list_length", *STEP_RESOURCES} | given
    require_resources(f"method {name!r}", parts, available)
    _refuse_idle(method, config, parts, name)
    size, length = max(config.group_size, 1) * method.list_length, method.list_length
    sampler = find_part("sampler", method.sampler) if method.sampler else method.signal
    may_weigh = traits_of(sampler).is_weighted or is_users(sampler)
    groups = probe_groups(size, list_length=length, weighted=may_weigh)
    groups = select(groups, torch.arange(min(len(groups.prompts), config.prompts_per_step)))
    made_up = probe_resources(groups, list_length=length)
    # A copy: what a reward writes into it reaches nobody else.
    rewards = _try("reward", method.reward, supply(method.reward, made_up), deepcopy(groups))
    if reward_fault(rewards, groups):
        rewards = torch.zeros(groups.items.shape)  # the rehearsal says what is wrong with them
    signal = supply(method.signal, made_up)
    _try("signal", method.signal, signal, deepcopy(groups), rewards)
    if method.sampler is None:
        _refuse_idle_signal(method, signal, groups, name)
    return _try("loss", method.loss, partial(probe_loss, method.loss))


def _refuse_misfit_units(
    method: Method, config: StepConfig, values: Any, *, changes_agg: bool
) -> None:
    """Settings that a loss per rollout or per group does not go with."""
    unit = values.ndim if isinstance(values, Tensor) else 0
    name, rows = name_of(method.loss), config.mini_batch_rows
    need = f"loss {name} compares the rollouts of a group, which mini-batches part; leave it out"
    require(rows is None or unit != 1, "mini_batch_rows", rows, need)
    need = f"loss {name} is none per token and no KL is taken; leave it out or raise kl_coef"
    is_read = unit not in (1, 2) or method.kl_coef > 0
    require(is_read or not changes_agg, "loss_agg", config.loss_agg, need)


def _refuse_idle(method: Method, config: StepConfig, parts: tuple[Part, ...], name: str) -> None:
    """A setting that nothing would read is a mistake."""
    sampler = find_part("sampler", method.sampler) if method.sampler else method.signal
    if method.list_length > 1 and "list_length" not in resources(sampler):
        raise RecastError(
            f"sampler {method.sampler!r} draws no lists for signal {name_of(method.signal)}: "
            "start from method rank_grpo or sage, or leave list_length out"
        )
    asked = set[str]().union(*(resources(part) for part in (*parts, sampler)))
    for resource in ("ranker", "embeddings"):
        value = getattr(config, resource)
        if value is not None and resource not in asked:
            raise RecastError(f"{resource} is {value!r}: method {name!r} uses none, leave it out")


def _refuse_idle_signal(method: Method, signal: Part, groups: RolloutGroups, name: str) -> None:
    """Without rollouts a signal can weigh the targets' likelihood, or nothing is learned."""
    nothing = reorder(groups, torch.empty(len(groups.prompts), 0, dtype=torch.long))
    try:
        made = _try("signal", method.signal, signal, nothing, torch.zeros(nothing.items.shape))
        # What is wrong with a user's signal the first step says.
        learns = signal_fault(made, nothing) is not None or bool((made.nll_weight != 0).any())
    except (IndexError, RuntimeError):  # it looks for a rollout
        learns = False
    remedy = f"method {name!r} makes no rollouts that it could learn from, give it samplers"
    require(learns or method.nll_coef > 0, "signal", name_of(method.signal), remedy)


def _try(kind: str, part: Part, call: Part, *inputs: Any) -> Any:
    """What the call returns; nothing where a user's part fails, which its rehearsal will say.

    Made-up groups need not suit a user's part: they have three levels and items of their own.
    """
    try:
        with undisturbed():
            return call(*inputs)
    except KeyboardInterrupt:
        raise
    except RecastError as error:
        raise named(kind, part, error) from error
    except BaseException:  # SystemExit among others
        if not is_users(part):
            raise
        return None


def equip(
    method: Method,
    policy: Policy,
    ranker: str | None = None,
    embeddings: str | None = None,
    folder: str = "",
    data: str | None = None,
) -> Method:
    """The method with its ranker, embeddings and trie bound; only what it asks for is loaded.

    What a ranker fails on is written into `folder`. One that is fitted on `data` reads its `train`
    slice alone: the prompts come from `rl`, whose targets it must not have seen.
    """
    available: dict[str, Any] = {
        "fan_out": partial(fan_out, policy.catalog),
        "list_length": method.list_length,
    }
    if ranker:
        available["ranker"] = load_ranker(
            ranker, policy.catalog, folder, data=data, splits=("train",)
        )
    if embeddings:
        vectors = load_embeddings(embeddings, policy.catalog)
        available["embeddings"] = vectors.to(policy.catalog.device)
    return replace(
        method, reward=supply(method.reward, available), signal=supply(method.signal, available)
    )
