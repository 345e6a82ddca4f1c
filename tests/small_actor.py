"""An actor of a tiny policy, and a signal of every kind of row, for tests of the update."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import tiny
import torch

from recast.losses import ppo_clip
from recast.policy.load import Policy
from recast.rollout.sample import sample
from recast.train.actor import Actor
from recast.train.reference import frozen_reference
from recast.types import Draw, Prompts, Signal

GROUP = 5


def some_prompts(policy: Policy) -> Prompts:
    """Row 3 carries no weight, row 1 only likelihood and three targets, row 4 two."""
    histories = [[1, 2, 3, 4, 5, 6], [7], [], [8, 9, 10], [11, 12]]
    return tiny.make_prompts(policy.catalog, histories, [[20], [21, 26, 27], [22], [23], [24, 25]])


def some_signal(policy: Policy) -> Signal:
    draw = torch.Generator().manual_seed(2)
    groups = sample(policy, some_prompts(policy), GROUP, Draw(seed=1))
    keep = torch.tensor(
        [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    ).bool()
    advantages = torch.randn(5, GROUP, 1, generator=draw)
    advantages[0, 2] = 0  # kept with advantage 0: counts in the denominator and in the KL
    weight = torch.tensor([0.0, 1.5, 0.5, 0.0, 1.0])
    return Signal(groups=groups, advantages=advantages, keep=keep, nll_weight=weight, metrics={})


def make_actor(policy: Policy, **settings: Any) -> Actor:
    """Gradient descent whose gradient can be read off the parameters afterwards."""
    defaults: dict[str, Any] = {
        "policy": policy,
        "reference": None,
        "optimizer": torch.optim.SGD(policy.model.parameters(), lr=0.1),
        "loss": ppo_clip,
        "kl_coef": 0.0,
        "kl_rollouts": "kept",
        "max_grad_norm": 1e9,
        "space": "full",
        "micro_batch_tokens": 10**6,
        "updates_per_rollout": 1,
    }
    chosen = defaults | settings
    if isinstance(chosen["reference"], Policy):
        chosen["reference"] = frozen_reference(chosen["reference"], chosen["space"])
    return Actor(**chosen)


def other_policy(policy: Policy) -> Policy:
    """A reference whose weights differ from the policy's."""
    model = copy.deepcopy(policy.model)
    with torch.no_grad():
        for parameter in model.parameters():
            wave = torch.cos(torch.arange(parameter.numel())).view_as(parameter)
            parameter.add_(wave, alpha=0.01)
    return replace(policy, model=model)
