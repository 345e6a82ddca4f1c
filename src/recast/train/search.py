"""The search of a step: rows of the `rl` slice in, rewarded groups of rollouts out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config import RLConfig
from recast.draws import uniforms
from recast.groups import join, select
from recast.methods.assembly import sampler_of
from recast.methods.guard import blame, guard_groups, guard_rewards
from recast.methods.parts import Part
from recast.methods.table import Method
from recast.policy.load import Policy
from recast.policy.prompts import build_prompts, by_length
from recast.rollout.add_gt import add_gt
from recast.rollout.fill import Drawn, fill_batch
from recast.types import Interactions, Prompts, RecastError, RolloutGroups


def prompt_batches(
    interactions: Interactions, config: RLConfig, method: Method
) -> Int[Tensor, "batches B"]:
    """Row ids of the prompts of every step, seeded; a row comes again only in a later pass.

    A method that fills its batches gets further ones behind those of the steps. A pass leaves out
    the rows that do not fill a batch, other ones each time.
    """
    rows, size = interactions.rows("rl"), config.prompts_per_step
    if len(rows) < size:
        raise RecastError(
            f"prompts_per_step is {size}: {config.data} has {len(rows)} rows in the rl slice; "
            "give fewer, or prepare more events for it"
        )
    wanted = config.steps * (config.max_rollout_batches if method.fill_batch else 1)
    per_pass = len(rows) // size
    passes = [
        rows[uniforms(config.seed, epoch, rows, "prompts", 1)[:, 0].argsort()[: per_pass * size]]
        for epoch in range(-(-wanted // per_pass))
    ]
    return torch.cat(passes).view(-1, size)[:wanted]


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Prompts in, rewarded rollouts out."""

    method: Method
    policy: Policy
    interactions: Interactions
    config: RLConfig
    max_tokens: int
    """Tokens per call of the sampler; prompts of like length go together."""

    def batch(
        self, step: int, rows: Int[Tensor, " B"], further: Iterator[Int[Tensor, " B"]]
    ) -> tuple[Drawn, list[Drawn]]:
        """The groups of a step, and all that were drawn for it."""
        if not self.method.fill_batch:
            drawn = self.draw(step, rows)
            return drawn, [drawn]
        limit = self.config.max_rollout_batches
        more = chain([rows], islice(further, limit - 1))
        return fill_batch(partial(self.draw, step), more, self.build, limit)

    def build(self, rows: Int[Tensor, " B"]) -> Prompts:
        return build_prompts(self.interactions, self.policy.catalog, rows, self.policy.window)

    def draw(self, step: int, rows: Int[Tensor, " B"]) -> Drawn:
        groups = self.roll_out(step, self.build(rows))
        if self.method.add_gt:
            groups = add_gt(groups)
        with blame("reward", self.method.reward):
            rewards = self.method.reward(groups)
        guard_rewards(self.method.reward, groups, rewards, self.config.output)
        return groups, rewards

    def roll_out(self, step: int, prompts: Prompts) -> RolloutGroups:
        """The method's rollouts, or empty groups for a method without a sampler."""
        if self.method.sampler is None:
            return _empty_groups(prompts, self.config.seed, step)
        num_targets = prompts.targets.shape[1]
        width = branch_tokens(self.config, self.method, self.policy, num_targets)
        widths = torch.full_like(prompts.lengths, width)
        batches = list(by_length(prompts.lengths, widths, self.max_tokens))
        sampler = sampler_of(self.method, self.config, self.method.sampler)
        if len(batches) == 1:
            return self._sample(sampler, step, prompts)
        order = torch.cat(batches)
        found = [self._sample(sampler, step, select(prompts, index)) for index in batches]
        return select(join(found, select(prompts, order)), order.argsort())

    def _sample(self, sampler: Part, step: int, prompts: Prompts) -> RolloutGroups:
        with blame("sampler", sampler):
            groups: RolloutGroups = sampler(
                self.policy,
                prompts,
                self.config.group_size,
                space=self.method.space,
                seed=self.config.seed,
                step=step,
                policy_version=step,
            )
        guard_groups(sampler, groups, len(prompts))
        return groups


def branch_tokens(config: RLConfig, method: Method, policy: Policy, num_targets: int) -> int:
    """Tokens that the branches of one prompt have at most."""
    rollouts = config.group_size * method.list_length
    return (rollouts + num_targets) * (policy.catalog.num_levels - 1)


def _empty_groups(prompts: Prompts, seed: int, step: int) -> RolloutGroups:
    empty = prompts.targets.new_empty(len(prompts), 0, prompts.targets.shape[2])
    return RolloutGroups(
        prompts=prompts,
        tokens=empty,
        items=empty[..., 0],
        rollout_logprobs=empty.float(),
        target_logprobs=torch.full_like(prompts.targets, torch.nan, dtype=torch.float32),
        loss_mask=empty.bool(),
        policy_version=step,
        seed=seed,
        step=step,
    )
