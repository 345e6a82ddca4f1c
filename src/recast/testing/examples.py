"""What the contract is checked on: made-up groups with rewards, and the same in another order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from recast.groups import reorder, select
from recast.methods.probe import KINDS, probe_groups
from recast.rewards.hit import first_hit
from recast.types import RolloutGroups

CONSTANTS = (0.0, 1.0, 1 / 3)
LARGEST = 7
"""Rollouts, or lists, per prompt in the largest groups; the mean of 7 thirds is not 1/3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """Groups, their rewards and what they are called in a message."""

    title: str
    kinds: tuple[str, ...]
    groups: RolloutGroups
    rewards: Float[Tensor, "B G"]
    constant: float | None = None
    """The reward that all rollouts have."""

    def show(self, row: int | None) -> str:
        """The example in words, with group `row` in full."""
        if row is None:
            return self.title
        groups, prompts = self.groups, self.groups.prompts
        shown = {
            "targets": prompts.targets[row],
            "tokens": groups.tokens[row],
            "items": groups.items[row],
            "rewards": self.rewards[row].double().round(decimals=4),
        }
        words = ", ".join(f"{name} {value.tolist()}" for name, value in shown.items())
        return f"{self.title}, group {self.kinds[row]!r}: {words}"

    def with_rows(self, index: Int[Tensor, " G"]) -> Example:
        """The rollouts of every group in another order."""
        groups = reorder(self.groups, index.expand(len(self.kinds), -1))
        return replace(self, groups=groups, rewards=self.rewards[:, index])

    def with_prompts(self, index: Int[Tensor, " B"]) -> Example:
        """The groups in another order."""
        return replace(
            self,
            kinds=tuple(self.kinds[i] for i in index.tolist()),
            groups=select(self.groups, index),
            rewards=self.rewards[index],
        )

    def with_padded_targets(self) -> Example:
        """One more column of padding behind the targets."""
        groups, prompts = self.groups, self.groups.prompts
        prompts = replace(
            prompts,
            targets=F.pad(prompts.targets, (0, 0, 0, 1)),
            target_items=F.pad(prompts.target_items, (0, 1), value=-1),
            target_mask=F.pad(prompts.target_mask, (0, 0, 0, 1)),
            target_sids=F.pad(prompts.target_sids, (0, 0, 0, 1), value=-1),
        )
        logprobs = F.pad(groups.target_logprobs, (0, 0, 0, 1))
        return replace(self, groups=replace(groups, prompts=prompts, target_logprobs=logprobs))

    def with_gradient(self) -> Example:
        """Log-probabilities that are part of a graph."""
        names = ("rollout_logprobs", "target_logprobs")
        leaves = {name: getattr(self.groups, name).clone().requires_grad_() for name in names}
        return replace(self, groups=replace(self.groups, **leaves))


def examples(
    list_length: int = 1,
    sizes: tuple[int, ...] = (1, 2, LARGEST),
    constants: tuple[float, ...] = CONSTANTS,
) -> Iterator[Example]:
    """Every kind of group in every size with every sort of rewards, the smallest first."""
    for num_lists in sizes:
        size = num_lists * list_length
        for weighted in (False, True):
            groups = probe_groups(size, list_length=list_length, weighted=weighted)
            what = f"groups of {size}{' with importance weights' if weighted else ''}"
            exists = groups.exists.float()
            yield _example(f"{what}, rewards of hits", KINDS, groups, first_hit(groups))
            yield _example(f"{what}, dense rewards", KINDS, groups, _dense(groups))
            for constant in constants:
                title = f"{what}, rewards of {constant:.3g}"
                example = _example(title, KINDS, groups, constant * exists)
                yield replace(example, constant=constant)
    yield from of_texts(list_length)


def of_texts(list_length: int = 1) -> Iterator[Example]:
    """The same kinds of groups of items that write texts of unequal lengths."""
    groups = probe_groups(3 * list_length, list_length=list_length, as_texts=True)
    yield _example("groups of texts, rewards of hits", KINDS, groups, first_hit(groups))
    yield _example("groups of texts, dense rewards", KINDS, groups, _dense(groups))


def without_ties(kinds: tuple[str, ...], list_length: int = 1) -> Iterator[Example]:
    """Groups in which no two rollouts are alike in SID, score, log-probability or reward."""
    size = max(2, -(-4 // list_length)) * list_length
    for seed, what in enumerate(("", " with importance weights")):
        groups = probe_groups(
            size, size, kinds=kinds, list_length=list_length, weighted=bool(seed), seed=seed
        )
        yield _example(f"groups of {size}{what} without ties", kinds, groups, _dense(groups))


def orders(size: int, list_length: int = 1) -> Iterator[Int[Tensor, " N"]]:
    """Two other orders of `size` rows, lists kept whole."""
    places = torch.arange(size).view(-1, list_length)
    yield places.flip(0).flatten()
    yield places.roll(1, 0).flatten()


def _example(
    title: str, kinds: tuple[str, ...], groups: RolloutGroups, rewards: Float[Tensor, "B G"]
) -> Example:
    return Example(title=title, kinds=kinds, groups=groups, rewards=rewards)


def _dense(groups: RolloutGroups) -> Float[Tensor, "B G"]:
    """Distinct rewards of both signs, 0 among them and where there is no rollout."""
    draw = torch.Generator().manual_seed(groups.seed)
    size = groups.items.shape[1]
    steps = torch.stack([torch.randperm(size, generator=draw) for _ in groups.items])
    return (steps - size // 2) / size * groups.exists
