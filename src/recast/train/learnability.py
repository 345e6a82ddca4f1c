"""Learnability first: what part of the groups can teach anything (ReCast, Tables 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from recast.evaluation.thoughts import thought_metrics, thought_sums
from recast.groups import is_new, select
from recast.policy.tasks import Task
from recast.rewards.hit import first_hit
from recast.types import Metrics, RolloutGroups, Signal


def group_metrics(
    drawn: Sequence[tuple[RolloutGroups, Float[Tensor, "_B _G"]]], signal: Signal
) -> Metrics:
    """Shares of all groups drawn for a step, the filtered-out ones included, with their rewards.

    Groups are taken as the policy wrote them, before `add_gt` or a repair puts a target in.
    `group/natural_frac` counts the groups that hold both a hit and a miss,
    `group/trainable_frac` those to which the signal gave a non-zero advantage,
    `group/distinct_frac` is the share of rollouts that repeat none before them (the diversity of
    MiniOneRec, arXiv 2510.24431, section 3.4.1).
    """
    if not drawn[0][0].items.numel():
        return signal.metrics
    existing = torch.cat([groups.exists for groups, _ in drawn])
    hits = torch.cat([first_hit(groups) * groups.exists for groups, _ in drawn]).sum(1)
    rewards = torch.cat([rewards for _, rewards in drawn])[existing]
    items = torch.cat([groups.items for groups, _ in drawn])[existing]
    distinct = torch.cat([is_new(groups) for groups, _ in drawn])[existing]
    trainable = ((signal.advantages != 0) & signal.keep[..., None]).flatten(1).any(1)
    targets = torch.cat([_target_logprobs(groups) for groups, _ in drawn])
    known = {"group/target_logprob": float(targets.mean())} if len(targets) else {}
    fill = {"group/rollout_batches": float(len(drawn))} if len(drawn) > 1 else {}
    thoughts = [thought_sums(groups.thoughts) for groups, _ in drawn if groups.thoughts]
    return {
        "group/all_zero_frac": float((hits == 0).float().mean()),
        "group/single_hit_frac": float((hits == 1).float().mean()),
        "group/trainable_frac": float(trainable.sum()) / len(hits),
        "group/repaired_frac": 0.0,
        **_server_gap([groups for groups, _ in drawn]),
        "group/natural_frac": float(((hits > 0) & (hits < existing.sum(1))).float().mean()),
        "group/distinct_frac": float(distinct.sum()) / max(len(distinct), 1),
        "group/invalid_frac": float((items < 0).sum()) / max(len(items), 1),
        "reward/mean": float(rewards.sum()) / max(len(rewards), 1),
        "reward/zero_frac": float((rewards == 0).sum()) / max(len(rewards), 1),
    } | (known | fill | thought_metrics(thoughts) | signal.metrics)


def metrics_by_task(
    task: Task, drawn: Sequence[tuple[RolloutGroups, Float[Tensor, "_B _G"]]], signal: Signal
) -> Metrics:
    """`group_metrics` of each task's rows, under `TASK/`; nothing where there is one task."""
    if len(task.tasks) == 1:
        return {}
    metrics: Metrics = {}
    given = task.task_of(signal.groups.prompts.row_ids.cpu()).to(signal.keep.device)
    for place, name in enumerate(task.tasks):
        own = []
        for groups, rewards in drawn:
            number = task.task_of(groups.prompts.row_ids.cpu()).to(rewards.device)
            inside = (number == place).nonzero()[:, 0]
            if len(inside):
                own.append((select(groups, inside), rewards[inside]))
        if not own:
            continue
        inside = (given == place).nonzero()[:, 0]
        part = replace(
            signal,
            groups=select(signal.groups, inside),
            advantages=signal.advantages[inside],
            keep=signal.keep[inside],
            nll_weight=signal.nll_weight[inside],
            metrics={},
        )
        found = group_metrics(own, part)
        found.pop("group/repaired_frac", None)  # the signal says it of the whole batch alone
        metrics |= {f"{name}/{key}": value for key, value in found.items()}
    return metrics


def _target_logprobs(groups: RolloutGroups) -> Float[Tensor, " _targets"]:
    """Of every target that there is, summed over its tokens; what pads a row's targets is none."""
    tokens = torch.where(groups.prompts.target_mask, groups.target_logprobs, 0.0)
    return tokens.sum(-1)[groups.prompts.target_mask.any(-1)]


def _server_gap(drawn: Sequence[RolloutGroups]) -> Metrics:
    """Of thoughts that a server wrote."""
    gaps = [groups.thoughts.server_gap for groups in drawn if groups.thoughts is not None]
    known = [gap for gap in gaps if gap is not None]
    return {"thought/server_gap": float(torch.cat(known).mean())} if known else {}
