"""The parts of a method by name: ours or `module:function`, with parameters and resources bound.

A part is a plain function. Its keyword-only arguments with a default are its *parameters*, set by
`--signal_args.NAME VALUE` and the like; those without one are *resources* (a ranker, embeddings),
which the loop supplies by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any

from recast import losses, rewards, rollout, signals
from recast.config.plugin import load_function
from recast.config.user_code import place_of, require_call, short
from recast.methods.names import nearest, require_ours
from recast.types import RecastError, Traits

Part = Callable[..., Any]

KINDS: dict[str, dict[str, Part]] = {
    "sampler": dict(rollout.SAMPLERS),
    "reward": dict(rewards.REWARDS),
    "signal": dict(signals.SIGNALS),
    "loss": dict(losses.LOSSES),
}
# By identity: a user's object need not be hashable.
_NAMES = {id(part): name for parts in KINDS.values() for name, part in parts.items()}
_GIVEN: dict[int, tuple[str, Part]] = {}
"""The names that users' parts were found by."""
_TRAITS: dict[int, Traits] = {
    id(KINDS[kind][name]): traits
    for kind, room in (
        ("sampler", rollout),
        ("reward", rewards),
        ("signal", signals),
        ("loss", losses),
    )
    for name, traits in room.TRAITS.items()
}

INPUTS = {
    "sampler": ("policy", "prompts", "group_size", "draw"),
    "reward": ("groups",),
    "signal": ("groups", "rewards"),
}
"""What a part is called with; a loss is given those of `LOSS_INPUTS` that it names."""
LOSS_INPUTS = ("logprobs", "old_logprobs", "ref_logprobs", "advantages", "loss_mask")

REMEDIES = {
    "ranker": "give --ranker item_knn, another of `recast baselines`, the folder of a policy of "
    "one-level semantic IDs (`recast tokenize --num_levels 1`, then `recast sft`), or "
    "module:function",
    "embeddings": "give --embeddings the folder of `recast tokenize` that holds text embeddings",
}
"""How to supply a resource that is missing."""


def find_part(kind: str, name: str) -> Part:
    """The sampler, reward, signal or loss of that name, or a user's `module:function`.

    Raises `RecastError` with the nearest name.
    """
    if ":" in name:
        part = load_function(kind, name)
        _GIVEN[id(part)] = (name, part)
        require_fit(f"{kind} is {name!r}, which", kind, part)
        return part
    require_ours(kind, name, KINDS[kind])
    return KINDS[kind][name]


def require_fit(owner: str, kind: str, part: Part) -> None:
    """Raise `RecastError` unless a part can be called as its kind is."""
    if kind != "loss":
        require_call(owner, part, INPUTS[kind])
        return
    require_call(owner, part, None)
    asked = signature(part).parameters
    required = {
        name
        for name, p in asked.items()
        if p.kind is not Parameter.KEYWORD_ONLY and p.default is Parameter.empty
    }
    if "logprobs" not in asked or required - set(LOSS_INPUTS):
        raise RecastError(
            f"{owner} takes ({', '.join(asked)}): a loss names logprobs and what else it needs of "
            f"{', '.join(LOSS_INPUTS[1:])}; its own parameters are keyword-only"
        )


def parameters(part: Part) -> dict[str, Any]:
    """Name -> default of what a user may set."""
    return {
        name: p.default
        for name, p in signature(part).parameters.items()
        if p.kind is Parameter.KEYWORD_ONLY and p.default is not Parameter.empty
    }


def resources(part: Part) -> set[str]:
    """Names of what the loop must supply."""
    return {
        name
        for name, p in signature(part).parameters.items()
        if p.kind is Parameter.KEYWORD_ONLY and p.default is Parameter.empty
    }


def needs(loss: Part, name: str) -> bool:
    """Whether the loss asks for the input of that name.

    >>> from recast.losses import ppo_clip
    >>> needs(ppo_clip, "old_logprobs"), needs(ppo_clip, "ref_logprobs")
    (True, False)
    """
    return name in signature(loss).parameters


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
    words = ", ".join(f"{key}={short(value)}" for key, value in settings.items() if key in known)
    name = _NAMES.get(id(part), getattr(part, "__name__", type(part).__name__))
    return f"{name}({words})" if words else name


def unbound(part: Part) -> Part:
    """The function under all that is bound to it."""
    while isinstance(part, partial):
        part = part.func
    return part


def traits_of(part: Part) -> Traits:
    """What others must know of a part; a user's has no traits."""
    return _TRAITS.get(id(unbound(part)), Traits())


def is_users(part: Part) -> bool:
    """Whether the part comes from outside the package."""
    return id(unbound(part)) not in _NAMES


def owner(kind: str, part: Part, *, has_place: bool = True) -> str:
    """A part in a message: ours by its name, a user's by the one it was given and where it stands;
    with what is set."""
    if not is_users(part):
        return f"{kind} {name_of(part)}"
    _, settings, rest = name_of(part).partition("(")
    place = place_of(unbound(part)) if has_place else ""
    return f"{kind} {spell(part)[0]}{settings}{rest}{place}"


def named(kind: str, part: Part, error: RecastError) -> RecastError:
    """What a user's part refuses by itself, under its name."""
    is_named = not is_users(part) or owner(kind, part, has_place=False) in str(error)
    return error if is_named else RecastError(f"{owner(kind, part)}: {short(error)}")


def spell(part: Part) -> tuple[str, dict[str, Any]]:
    """The name that finds the part again, and all its parameters as they are set."""
    function = unbound(part)
    module = getattr(function, "__module__", None) or type(function).__module__
    where = f"{module}:{getattr(function, '__qualname__', type(function).__name__)}"
    outer = part
    while id(outer) not in _GIVEN and isinstance(outer, partial):
        outer = outer.func
    where, _ = _GIVEN.get(id(outer), (where, None))
    settable = parameters(function)  # of what is bound, resources are no setting
    values = {name: _written(x) for name, x in parameters(part).items() if name in settable}
    return _NAMES.get(id(function), where), values


def _written(value: Any) -> Any:
    """A parameter as a settings file holds it."""
    if isinstance(value, list | tuple):
        return [_written(entry) for entry in value]
    if isinstance(value, dict):
        return {short(key): _written(entry) for key, entry in value.items()}
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return value if value is None or type(value) in (bool, int, float, str) else short(value)
