"""The search of a step: rows of the `rl` slice in, rewarded groups of rollouts out.

Each rank rolls out its part of the prompts and is given the groups of all; rewards are the first
rank's, which asks for them as one process would.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from recast.draws import uniforms
from recast.groups import join, select
from recast.methods.guard import ask_reward, ask_sampler, blame
from recast.methods.parts import Part, parameters, traits_of
from recast.methods.table import Method
from recast.policy.load import Policy
from recast.policy.passes import by_length
from recast.policy.tasks import Task
from recast.rollout.add_gt import add_gt
from recast.rollout.fill import Drawn, Rewarded, fill_batch
from recast.run.clock import Clock
from recast.run.world import once, share, world
from recast.train.exchange import groups_of_all
from recast.train.handover import Handover
from recast.types import Draw, Prompts, RecastError, RolloutGroups


def prompt_batches(
    rows: Int[Tensor, " N"], size: int, count: int, seed: int, split: str = "rl"
) -> Int[Tensor, "batches B"]:
    """`count` batches of `size` row ids of a split, seeded; a row comes again only in a later pass.

    A pass leaves out the rows that do not fill a batch, other ones each time. Raises `RecastError`
    for fewer rows than fill one batch.
    """
    if len(rows) < size:
        raise RecastError(
            f"prompts_per_step is {size}: the data has {len(rows)} rows in the {split} slice; "
            "give fewer, or prepare more events for it"
        )
    per_pass = len(rows) // size
    passes = [
        rows[uniforms(seed, epoch, rows, "prompts", 1)[:, 0].argsort()[: per_pass * size]]
        for epoch in range(-(-count // per_pass))
    ]
    return torch.cat(passes).view(-1, size)[:count]


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Row ids in, rewarded rollouts out."""

    policy: Policy
    task: Task
    method: Method
    sampler: Part | None
    """With its parameters bound; None: the method makes no rollouts."""
    group_size: int
    seed: int
    max_batches: int
    """Rollout batches per step, at most, of a method that fills its batch."""
    micro_batch_tokens: int
    """Tokens per call of the sampler, at most; prompts of like length go together."""
    pass_tokens: int
    """Tokens that take as long as one more pass; a call makes one for every token of an item."""
    folder: str
    """Where a group that a part fails on is written."""
    handover: Handover | None = None
    """To the server that writes the thoughts, if one does."""
    clock: Clock = field(default_factory=Clock)

    def batch(
        self, step: int, rows: Int[Tensor, " B"], further: Int[Tensor, "batches B"]
    ) -> tuple[Drawn, list[Drawn]]:
        """The groups of a step, and all that were drawn for it: `rows`, then as many of the
        `further` batches as it takes to fill one."""
        if not self.method.fill_batch:
            drawn = self.draw(step, rows)
            return drawn, [drawn]
        batches = iter([rows, *further[: self.max_batches - 1]])
        return fill_batch(partial(self.draw, step), batches, self.task.prompts, self.max_batches)

    def draw(self, step: int, rows: Int[Tensor, " B"]) -> Drawn:
        """The rollouts of these rows with their rewards, as drawn and as the signal is given them:
        `add_gt` comes in between, so that what is measured is what the policy wrote."""
        with self.clock.measure("rollout"):
            groups = self.roll_out(step, self.task.prompts(rows))
        drawn = self._rewarded(groups)
        return Drawn(drawn, self._rewarded(add_gt(drawn.groups)) if self.method.add_gt else drawn)

    def _rewarded(self, groups: RolloutGroups) -> Rewarded:
        """Scores of rankers and similarities are no products of the policy: all in float32."""
        with self.clock.measure("signal"), self.policy.computing_in("float32"):
            rewards = once(lambda: ask_reward(self.method.reward, groups, self.folder).cpu())
            return Rewarded(groups, rewards.to(groups.items.device))

    def roll_out(self, step: int, prompts: Prompts) -> RolloutGroups:
        """The method's rollouts, or empty groups for a method without a sampler."""
        draw = Draw(logprob_space=self.method.space, seed=self.seed, step=step)
        if self.sampler is None:
            return _empty_groups(prompts, draw)
        if self.handover is not None:
            self.handover.refresh(self.policy, step)
        width = branch_tokens(self.policy, self.num_rollouts, prompts.targets.shape[1])
        width += thought_tokens(self.sampler)
        lengths = prompts.lengths.cpu()
        own = torch.tensor(share((lengths + width).tolist()), dtype=torch.long)
        widths = torch.full_like(own, width)
        cost = self.pass_tokens * self.policy.catalog.max_length
        batches = by_length(lengths[own], widths, self.micro_batch_tokens, cost)
        batches = [own[index].to(prompts.lengths.device) for index in batches]
        if len(batches) == 1 and world().size == 1:
            return self._sample(self.sampler, prompts, draw)
        parts = [self._sample(self.sampler, select(prompts, index), draw) for index in batches]
        found = groups_of_all(list(zip(batches, parts, strict=True)), prompts)
        order = torch.cat([index for index, _ in found])
        with blame("sampler", self.sampler):  # its calls need not go together
            joined = join([part for _, part in found], select(prompts, order))
            return select(joined, order.argsort())

    @property
    def num_rollouts(self) -> int:
        """Of one prompt."""
        return self.group_size * self.method.list_length

    def _sample(self, sampler: Part, prompts: Prompts, draw: Draw) -> RolloutGroups:
        return ask_sampler(
            sampler,
            self.policy,
            prompts,
            self.group_size,
            draw,
            num_rollouts=self.num_rollouts,
            folder=self.folder,
        )


def branch_tokens(policy: Policy, num_rollouts: int, num_targets: int) -> int:
    """Tokens that the branches of one prompt have at most."""
    return (num_rollouts + num_targets) * (policy.catalog.max_length - 1)


def thought_tokens(sampler: Part | None) -> int:
    """Tokens that the thoughts of one prompt have at most, those that are forced behind them left
    out: few, and no thought has them all."""
    if sampler is None or not traits_of(sampler).thinks:
        return 0
    settings = parameters(sampler)
    return int(settings.get("thoughts", 1) * settings["max_thought_tokens"])


def _empty_groups(prompts: Prompts, draw: Draw) -> RolloutGroups:
    empty = prompts.targets.new_empty(len(prompts), 0, prompts.targets.shape[2])
    return RolloutGroups(
        prompts=prompts,
        tokens=empty,
        items=empty[..., 0],
        predictions=prompts.target_sids.new_empty(len(prompts), 0, 1, prompts.target_sids.shape[2]),
        rollout_logprobs=empty.float(),
        target_logprobs=torch.full_like(prompts.targets, torch.nan, dtype=torch.float32),
        loss_mask=empty.bool(),
        seed=draw.seed,
        step=draw.step,
    )
