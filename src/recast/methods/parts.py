"""The parts of a method by name: ours or `module:function`, with parameters and resources bound.

A part is a plain function. Its keyword-only arguments with a default are its *parameters*, set by
`--signal_args.NAME VALUE` and the like; those without one are *resources* (a ranker, embeddings),
which the loop supplies by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from inspect import Parameter, signature
from typing import Any

from recast import losses
from recast.config.plugin import load_function
from recast.rewards.collaborative import collaborative
from recast.rewards.gflow import gflow
from recast.rewards.hit import any_hit, first_hit, set_ratio
from recast.rewards.partial import partial_hit
from recast.rewards.ranking import ranking
from recast.rewards.semantic import semantic
from recast.rewards.think_format import think_format
from recast.rollout.beam import beam_search
from recast.rollout.dynamic import dynamic
from recast.rollout.gumbel import gumbel
from recast.rollout.lists import sample_lists
from recast.rollout.sample import sample
from recast.signals.adagrpo import adagrpo
from recast.signals.adaptive import recast_adaptive
from recast.signals.dr_grpo import dr_grpo
from recast.signals.gates import fixed_mix, random_gate
from recast.signals.grpo import grpo
from recast.signals.gumbel import gumbel_pg
from recast.signals.identity import identity
from recast.signals.levels import recast_levels
from recast.signals.likelihood import likelihood
from recast.signals.nll_on_all_zero import nll_on_all_zero
from recast.signals.rank_grpo import rank_grpo
from recast.signals.recast import boundary_only, recast, repair_only
from recast.signals.riser import riser
from recast.signals.sage import sage
from recast.signals.vstar import vstar
from recast.types import RecastError

Part = Callable[..., Any]

SAMPLERS: dict[str, Part] = {
    "sample": sample,
    "beam": beam_search,
    "dynamic": dynamic,
    "gumbel": gumbel,
    "lists": sample_lists,
}
REWARDS: dict[str, Part] = {
    "first_hit": first_hit,
    "any_hit": any_hit,
    "set_ratio": set_ratio,
    "partial": partial_hit,
    "format": think_format,
    "ranking": ranking,
    "semantic": semantic,
    "collaborative": collaborative,
    "gflow": gflow,
}
SIGNALS: dict[str, Part] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "recast": recast,
    "repair_only": repair_only,
    "boundary_only": boundary_only,
    "recast_levels": recast_levels,
    "recast_adaptive": recast_adaptive,
    "adagrpo": adagrpo,
    "random_gate": random_gate,
    "fixed_mix": fixed_mix,
    "likelihood": likelihood,
    "nll_on_all_zero": nll_on_all_zero,
    "identity": identity,
    "riser": riser,
    "vstar": vstar,
    "sage": sage,
    "rank_grpo": rank_grpo,
    "gumbel_pg": gumbel_pg,
}
LOSSES: dict[str, Part] = {
    "ppo_clip": losses.ppo_clip,
    "reinforce": losses.reinforce,
    "dr_grpo": losses.dr_grpo,
    "gspo": losses.gspo,
    "ecpo": losses.ecpo,
    "gbpo": losses.gbpo,
    "sage_clip": losses.sage_clip,
    "dpo": losses.dpo,
    "s_dpo": losses.s_dpo,
    "trajectory_balance": losses.trajectory_balance,
}
KINDS = {"sampler": SAMPLERS, "reward": REWARDS, "signal": SIGNALS, "loss": LOSSES}
_NAMES: dict[Any, str] = {part: name for parts in KINDS.values() for name, part in parts.items()}

READ_REWARDS = ("trajectory_balance",)
"""Losses that read the advantages as rewards: of our signals only `identity` passes these on."""

REMEDIES = {
    "ranker": "give --ranker the folder of a policy of one-level semantic IDs (`recast tokenize "
    "--num_levels 1`, then `recast sft`), or module:function",
    "embeddings": "give --embeddings the folder of `recast tokenize` that holds text embeddings",
    "texts": "rollouts are semantic IDs without text: choose another reward, such as first_hit",
}
"""How to supply a resource that is missing."""

_OF_THE_LOOP = {"space", "seed", "step", "policy_version", "guide", "alpha"}


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` for the closest known name, or nothing."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"did you mean {near[0]!r}? " if near else ""


def find_part(kind: str, name: str) -> Part:
    """The sampler, reward, signal or loss of that name, or a user's `module:function`.

    Raises `RecastError` with the nearest name.
    """
    if ":" in name:
        part = load_function(kind, name)
        try:
            signature(part)
        except (TypeError, ValueError) as error:
            raise RecastError(
                f"{kind} is {name!r}, which tells nothing of its arguments: wrap it in a function"
            ) from error
        return part
    known = KINDS[kind]
    if name not in known:
        raise RecastError(
            f"{kind} is {name!r}: {nearest(name, known)}choose one of {', '.join(known)}, "
            "or module:function"
        )
    return known[name]


def parameters(part: Part) -> dict[str, Any]:
    """Name -> default of what a user may set."""
    return {
        name: p.default
        for name, p in signature(part).parameters.items()
        if p.kind is Parameter.KEYWORD_ONLY
        and p.default is not Parameter.empty
        and name not in _OF_THE_LOOP
    }


def resources(part: Part) -> set[str]:
    """Names of what the loop must supply."""
    return {
        name
        for name, p in signature(part).parameters.items()
        if p.kind is Parameter.KEYWORD_ONLY and p.default is Parameter.empty
    }


def with_parameters(kind: str, part: Part, values: Mapping[str, Any]) -> Part:
    """The part with these parameters set.

    Raises `RecastError` for a name it does not have or a value of another type than the default's.
    """
    known = parameters(part)
    for name, value in values.items():
        if not isinstance(name, str) or name not in known:
            choices = f"choose from {', '.join(known)}" if known else "it has none"
            raise RecastError(
                f"{kind}_args has {name!r}, which is no parameter of {name_of(part)}: "
                f"{nearest(str(name), known)}{choices}"
            )
        default = known[name]
        wanted = (int, float) if isinstance(default, float) else type(default)
        fits = isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool)
        if default is not None and not fits:
            raise RecastError(
                f"{kind}_args.{name} is {value!r}: give a {type(default).__name__}, "
                f"such as {default!r}"
            )
    return partial(part, **values) if values else part


def supply(part: Part, available: Mapping[str, Any]) -> Part:
    """The part with the resources it asks for among those available."""
    asked = {name: available[name] for name in resources(part) & set(available)}
    return partial(part, **asked) if asked else part


def require_resources(owner: str, parts: Iterable[Part], available: Iterable[str]) -> None:
    """Raise `RecastError` naming the first resource that `parts` need and nobody supplies."""
    known = set(available)
    for part in parts:
        for name in sorted(resources(part) - known):
            remedy = REMEDIES.get(name, "give it a default, or bind it with functools.partial")
            raise RecastError(f"{owner} needs {name} ({name_of(part)}): {remedy}")


def name_of(part: Part) -> str:
    """Name of a part with the parameters that are set, e.g. `recast(w=0.5)`."""
    settings: dict[str, Any] = {}
    while isinstance(part, partial):
        settings = part.keywords | settings
        part = part.func
    known = parameters(part)
    words = ", ".join(f"{key}={value}" for key, value in settings.items() if key in known)
    name = _NAMES.get(part, getattr(part, "__name__", type(part).__name__))
    return f"{name}({words})" if words else name


def is_users(part: Part) -> bool:
    """Whether the part comes from outside the package."""
    name = spell(part)[0]
    return ":" in name and not name.startswith("recast.")


def spell(part: Part) -> tuple[str, dict[str, Any]]:
    """The name that finds the part again, and all its parameters as they are set."""
    function = part
    while isinstance(function, partial):
        function = function.func
    where = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    settable = parameters(function)  # of what is bound, resources are no setting
    values = {name: value for name, value in parameters(part).items() if name in settable}
    return _NAMES.get(function, where), values
