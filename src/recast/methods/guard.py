"""What a reward or a signal returned, checked at every step; the group at fault goes to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recast.methods.contract import Fault, reward_fault, sampler_fault, signal_fault
from recast.methods.parts import Part, is_users, name_of
from recast.policy.load import Policy
from recast.types import Prompts, RecastError, RolloutGroups

FILE = "failed_group.json"


@contextmanager
def blame(kind: str, part: Part) -> Iterator[None]:
    """An exception inside a user's part is a line about that part, not a bug of recast."""
    try:
        yield
    except RecastError:
        raise
    except (Exception, SystemExit) as error:
        if not is_users(part):
            raise
        raise RecastError(
            f"{kind} {name_of(part)} failed ({type(error).__name__}: {error}): "
            "mend it, --debug shows the trace"
        ) from error


def guard_groups(
    sampler: Part, groups: Any, prompts: Prompts, policy: Policy, num_rollouts: int
) -> None:
    """Raise `RecastError` unless a sampler returned so many rollouts of these prompts."""
    fault = sampler_fault(groups, prompts, num_rollouts, *_sizes(policy))
    if fault:
        raise RecastError(f"sampler {name_of(sampler)} gave {fault.what}")
    catalog = policy.catalog
    names = catalog.sids_of(catalog.tokens_of(groups.items))
    named = groups.predictions
    if catalog.codebook_sizes and not torch.equal(catalog.sids_of(named), named):
        raise RecastError(
            f"sampler {name_of(sampler)} gave predictions that are no semantic IDs, a token of "
            "every level: fill them by policy.catalog.sids_of(tokens)"
        )
    wrong = (groups.items >= 0) & (named[:, :, 0] != names).any(-1)
    if bool(wrong.any()):
        row, rollout = wrong.nonzero()[0].tolist()
        raise RecastError(
            f"sampler {name_of(sampler)} gave predictions that do not name item "
            f"{int(groups.items[row, rollout])} in rollout {rollout}: fill them by "
            "policy.catalog.sids_of(tokens)"
        )


def guard_rewards(reward: Part, groups: RolloutGroups, rewards: Any, folder: str) -> None:
    """Raise `RecastError` unless `rewards` are finite numbers `[B, G]`."""
    fault = reward_fault(rewards, groups)
    if fault:
        raise _failure(f"reward {name_of(reward)}", fault, groups, folder)


def guard_signal(
    signal: Part, groups: RolloutGroups, result: Any, folder: str, policy: Policy | None = None
) -> None:
    """Raise `RecastError` unless the signal's tensors have the shapes of its groups, finite."""
    fault = signal_fault(result, groups, *(_sizes(policy) if policy else ()))
    if fault:
        raise _failure(f"signal {name_of(signal)}", fault, groups, folder)


def versions(groups: RolloutGroups, rewards: Tensor) -> dict[str, int]:
    """How often each input was written to; torch counts that."""
    inputs = {"rewards": rewards}
    inputs |= {f.name: getattr(groups, f.name) for f in fields(groups)}
    inputs |= {f"prompts.{f.name}": getattr(groups.prompts, f.name) for f in fields(groups.prompts)}
    return {name: x._version for name, x in inputs.items() if isinstance(x, Tensor)}


def guard_inputs(signal: Part, before: dict[str, int], after: dict[str, int]) -> None:
    """Raise `RecastError` if the signal wrote into what it was given."""
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise RecastError(
            f"signal {name_of(signal)} changed its input {changed[0]} in place: clone it first"
        )


def _sizes(policy: Policy) -> tuple[int, int]:
    """How many tokens and items there are."""
    return policy.model.get_input_embeddings().weight.shape[0], policy.catalog.num_items


def _failure(owner: str, fault: Fault, groups: RolloutGroups, folder: str) -> RecastError:
    file, row = Path(folder) / FILE, fault.row or 0
    prompts = groups.prompts
    content = {
        "step": groups.step + 1,
        "row_id": int(prompts.row_ids[row]),
        "history": prompts.history[row].tolist(),
        "target_items": prompts.target_items[row].tolist(),
        "targets": prompts.targets[row].tolist(),
        "tokens": groups.tokens[row].tolist(),
        "items": groups.items[row].tolist(),
        "exists": groups.exists[row].tolist(),
        "rollout_logprobs": groups.rollout_logprobs[row].tolist(),
        "target_logprobs": groups.target_logprobs[row].tolist(),
    }
    file.write_text(json.dumps(content, indent=2) + "\n")
    return RecastError(f"{owner} gave {fault.what}; the group is in {file}")
