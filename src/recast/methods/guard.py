"""What a sampler, a reward, a signal and a loss are asked, and what they answer: checked at every
step.

What a user's part raises, returns or writes into is a line that names it; the group that shows it
goes to a file. Our own are known to leave their inputs alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from recast.config.user_code import undisturbed
from recast.groups import select
from recast.methods.contract import (
    loss_fault,
    meaning_fault,
    reward_fault,
    sampler_fault,
    signal_fault,
)
from recast.methods.fault import Fault
from recast.methods.parts import Part, is_users, named, owner, unbound
from recast.policy.load import Policy
from recast.run import blame as run_blame
from recast.types import Draw, Prompts, RecastError, RolloutGroups, Signal


@contextmanager
def blame(
    kind: str,
    part: Part,
    inputs: tuple[Any, ...] = (),
    folder: str = "",
    more: dict[str, Any] | None = None,
) -> Iterator[None]:
    """An exception inside a user's part is a line about that part, not a bug of recast; the group
    of its inputs that shows it goes into `folder`, with what else is shown of it."""
    if not is_users(part):
        yield
        return
    try:
        with run_blame.blame(owner(kind, part, has_place=False), unbound(part)):
            yield
    except RecastError as error:
        if not inputs or run_blame.FILE in str(error):
            raise
        row = 0
        if kind in ("reward", "signal") and error.__cause__:
            row = _guilty(part, inputs, type(error.__cause__))
        where = run_blame.show(_content(inputs, row, more or {}), folder)
        raise RecastError(f"{named(kind, part, error)}{where}") from error


def ask_sampler(
    sampler: Part,
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    draw: Draw,
    *,
    num_rollouts: int,
    folder: str,
) -> RolloutGroups:
    """The sampler's groups; `num_rollouts` of each prompt are expected.

    Raises `RecastError` for what it may not do; the prompts at fault are in `folder`.
    """
    shown = {"step": draw.step + 1}
    before = _state(policy) if is_users(sampler) else None
    with blame("sampler", sampler, (prompts,), folder, shown):
        groups = _ask("sampler", sampler, (policy, prompts, group_size, draw))
    fault = sampler_fault(groups, prompts, num_rollouts, *_sizes(policy))
    if fault is None and is_users(sampler):
        fault = meaning_fault(groups, policy.catalog, draw)
    raise_fault("sampler", sampler, fault, (prompts, groups), folder, shown)
    if before is not None and _state(policy) != before:
        raise RecastError(
            f"{owner('sampler', sampler)} changed the policy (its weights, what of them is "
            "trained, or its mode): leave it as it is"
        )
    found: RolloutGroups = groups
    return found


def ask_reward(reward: Part, groups: RolloutGroups, folder: str) -> Tensor:
    """The rewards `[B, G]`; raises `RecastError` for what it may not do."""
    with blame("reward", reward, (groups,), folder):
        rewards = _ask("reward", reward, (groups,))
    raise_fault("reward", reward, reward_fault(rewards, groups), (groups,), folder)
    return _as_ours(rewards)


def ask_signal(
    signal: Part, groups: RolloutGroups, rewards: Tensor, folder: str, policy: Policy | None
) -> Signal:
    """The signal on these groups; raises `RecastError` for what it may not do."""
    with blame("signal", signal, (groups, rewards), folder):
        result = _ask("signal", signal, (groups, rewards))
    fault = signal_fault(result, groups, *(_sizes(policy) if policy else ()))
    raise_fault("signal", signal, fault, (groups,), folder, {"rewards": rewards})
    found: Signal = result
    return replace(
        found, advantages=_as_ours(found.advantages), nll_weight=_as_ours(found.nll_weight)
    )


def ask_loss(
    loss: Part, named: dict[str, Tensor | None], mask: Tensor, prompts: Prompts, folder: str
) -> Tensor:
    """The values of a loss of the inputs that it names, part of a graph; raises `RecastError` for
    what it may not do."""
    own = named
    if is_users(loss):  # what is written into a copy counts up, and reaches nobody else
        own = {name: None if value is None else value.clone() for name, value in named.items()}
    with blame("loss", loss, (prompts,), folder, named):
        values = loss(**own)
        for name, value in own.items():
            if own is not named and value is not None and value._version:
                raise _changed("loss", loss, name)
    fault = loss_fault(values, mask)
    # Of a policy that has diverged no loss is finite.
    diverged = fault and fault.row is not None and not bool(_finite(named["logprobs"]))
    if fault is None and not values.requires_grad:
        fault = Fault("a tensor without a gradient: compute it from `logprobs`")
    raise_fault("loss", loss, None if diverged else fault, (prompts,), folder, named)
    found: Tensor = values
    return found


def _finite(values: Tensor | None) -> Tensor:
    return torch.ones(()) if values is None else values.isfinite().all()


def _ask(kind: str, part: Part, inputs: tuple[Any, ...]) -> Any:
    """What a part answers; a user's must leave its inputs as they are."""
    before = _copies(inputs) if is_users(part) else {}
    result = part(*inputs)
    after = _copies(inputs) if before else {}
    for name, value in before.items():
        if name not in after or not _same(value, after[name]):
            raise _changed(kind, part, name)
    return result


def _changed(kind: str, part: Part, name: str) -> RecastError:
    return RecastError(f"{owner(kind, part)} changed its input {name} in place: clone it first")


def _guilty(part: Part, inputs: tuple[Any, ...], kind: type[BaseException]) -> int:
    """The first prompt that fails in the same way alone; 0 where none does."""
    for row in range(len(inputs[0].prompts)):
        one = torch.tensor([row], device=inputs[0].items.device)
        try:
            with undisturbed():
                part(select(inputs[0], one), *(rest[one] for rest in inputs[1:]))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, kind):
                return row
    return 0


def raise_fault(
    kind: str,
    part: Part,
    fault: Fault | None,
    groups: Sequence[Any],
    folder: str,
    more: dict[str, Any] | None = None,
) -> None:
    """Raise `RecastError` for a fault in what a part gave; the group that shows it is in
    `folder`."""
    if fault is None:
        return
    where = run_blame.show(_content(groups, fault.row or 0, more or {}), folder)
    raise RecastError(f"{owner(kind, part)} gave {fault.what}{where}")


def _content(of: Sequence[Any], row: int, more: dict[str, Any]) -> dict[str, Any]:
    """One group of prompts or of what was made of them; not all of it need be what it should."""
    shown: dict[str, Any] = {}
    for value in of:
        if isinstance(value, RolloutGroups) and isinstance(getattr(value, "step", None), int):
            shown["step"] = value.step + 1
        shown |= _tensors(value)
    shown = {name.removeprefix("prompts."): value for name, value in (shown | more).items()}
    shown["row_id"] = shown.pop("row_ids", None)
    return {
        name: x[row] if isinstance(x, Tensor) and x.ndim and row < len(x) else x
        for name, x in shown.items()
    }


def _tensors(of: Any) -> dict[str, Tensor]:
    """Of prompts or groups by their names, those of a group's prompts as `prompts.NAME`."""
    found: dict[str, Tensor] = {}
    if isinstance(of, RolloutGroups | Prompts):
        for field in fields(of):
            value = getattr(of, field.name, None)
            if isinstance(value, Tensor):
                found[field.name] = value
            else:
                found |= {f"prompts.{name}": x for name, x in _tensors(value).items()}
    return found


def _copies(inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """What a part is given, as it is now."""
    copies: dict[str, Tensor] = {}
    for value in inputs:
        copies |= {"rewards": value} if isinstance(value, Tensor) else _tensors(value)
    return {name: value.clone() for name, value in copies.items()}


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num())


def _as_ours(values: Tensor) -> Tensor:
    """The same numbers as a plain tensor of 32 bits or more."""
    values = values.as_subclass(Tensor)
    return values.float() if values.itemsize < 4 else values


def _state(policy: Policy) -> list[Any]:
    """What of a model nobody but the actor may change."""
    weights = list(policy.model.parameters())
    about = [(x.requires_grad, x.dtype, x.data_ptr()) for x in weights]
    norm = get_total_norm([x.detach() for x in weights])
    return [policy.model.training, f"{float(norm)!r}", *about]  # as text, in which NaN equals NaN


def _sizes(policy: Policy) -> tuple[int, int]:
    """How many tokens and items there are."""
    return policy.model.get_input_embeddings().weight.shape[0], policy.catalog.num_items
