"""Learnability first: what part of the groups can teach anything (ReCast, Tables 2 and 3)."""

from __future__ import annotations

import torch

from recast.groups import is_first
from recast.rewards.hit import first_hit
from recast.rollout.fill import Drawn
from recast.types import Metrics, Signal


def group_metrics(drawn: list[Drawn], signal: Signal) -> Metrics:
    """Shares of all groups drawn for a step, the filtered-out ones included.

    `group/natural_frac` counts the groups that hold both a hit and a miss,
    `group/trainable_frac` those to which the signal gave a non-zero advantage,
    `group/distinct_frac` is the share of rollouts that repeat none before them (the diversity of
    MiniOneRec, arXiv 2510.24431, section 3.4.1).
    """
    if not drawn[0][0].items.numel():
        return signal.metrics
    existing = torch.cat([groups.exists for groups, _ in drawn])
    hits = torch.cat([first_hit(groups) for groups, _ in drawn]).sum(1)
    rewards = torch.cat([rewards for _, rewards in drawn])[existing]
    distinct = torch.cat([is_first(groups.predictions.flatten(2)) for groups, _ in drawn])[existing]
    trainable = ((signal.advantages != 0) & signal.keep[..., None]).flatten(1).any(1)
    targets = torch.cat([groups.target_logprobs for groups, _ in drawn])
    fill = {"group/rollout_batches": float(len(drawn))} if len(drawn) > 1 else {}
    return {
        "group/all_zero_frac": float((hits == 0).float().mean()),
        "group/single_hit_frac": float((hits == 1).float().mean()),
        "group/trainable_frac": float(trainable.sum()) / len(hits),
        "group/repaired_frac": 0.0,
        "group/natural_frac": float(((hits > 0) & (hits < existing.sum(1))).float().mean()),
        "group/distinct_frac": float(distinct.sum()) / max(len(distinct), 1),
        "reward/mean": float(rewards.sum()) / max(len(rewards), 1),
        "reward/zero_frac": float((rewards == 0).sum()) / max(len(rewards), 1),
        "group/target_logprob": float(targets.sum(-1).mean()),
    } | (fill | signal.metrics)
