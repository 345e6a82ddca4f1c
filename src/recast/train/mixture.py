"""Which rows of several tasks a run reads: weights of the tasks in, row ids out.

Without weights every row counts the same. Rows of a task come in passes of their own, each in a
seeded order, so that one is read again only when all of its task were.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from recast.draws import uniforms
from recast.policy.tasks import Task
from recast.train.search import prompt_batches
from recast.types import RecastError, require


def check_weights(
    task: Task, rows: Int[Tensor, " N"], weights: Mapping[str, float], further: str = ""
) -> None:
    """Raise `RecastError` unless the weights are those of the tasks, each with rows to draw;
    `further` says which other names there are."""
    if not weights:
        return
    names = ", ".join(task.tasks)
    for name in weights:
        remedy = f"the data has no such task, only {names}{further}"
        require(name in task.tasks, "task_weights", name, remedy)
    missing = [name for name in task.tasks if name not in weights]
    remedy = f"give {', '.join(missing)} one too, 0 to leave it out"
    require(not missing, "task_weights", dict(weights), remedy)
    count = task.task_of(rows).bincount(minlength=len(task.tasks)).tolist()
    for name, number in zip(task.tasks, count, strict=True):
        require(
            number > 0 or not weights[name],
            f"task_weights.{name}",
            weights[name],
            "the task has no row to train on, give 0",
        )


def mixed_batches(
    task: Task,
    rows: Int[Tensor, " N"],
    weights: Mapping[str, float],
    *,
    size: int,
    count: int,
    seed: int,
    split: str = "rl",
) -> Int[Tensor, "batches B"]:
    """`prompt_batches`, every batch with the same number of rows of each task, by its weight.

    Raises `RecastError` for a task that gets no row of a batch, or more than it has.
    """
    if not weights:
        return prompt_batches(rows, size, count, seed, split)
    number = task.task_of(rows)
    parts = []
    for place, (name, share) in enumerate(
        zip(task.tasks, shares(task, weights, size), strict=True)
    ):
        if not weights[name]:
            continue
        remedy = f"that is less than one of {size} prompts_per_step: raise either"
        require(share > 0, f"task_weights.{name}", weights[name], remedy)
        own = rows[number == place]
        if len(own) < share:
            raise RecastError(
                f"task_weights.{name} is {weights[name]}, {share} of {size} prompts_per_step, and "
                f"the task has {len(own)} rows: lower either"
            )
        parts.append(prompt_batches(own, share, count, seed, split))
    return torch.cat(parts, dim=1)


def mixed_epoch(
    task: Task, rows: Int[Tensor, " N"], weights: Mapping[str, float], *, seed: int, epoch: int
) -> Int[Tensor, " N"]:
    """As many rows as there are, of each task the share that its weight says.

    Raises `RecastError` for a task that gets none.
    """
    if not weights:
        return rows
    number, parts = task.task_of(rows), []
    for place, (name, share) in enumerate(
        zip(task.tasks, shares(task, weights, len(rows)), strict=True)
    ):
        own = rows[number == place]
        if not weights[name]:
            continue
        remedy = f"that is less than one of the {len(rows)} rows of an epoch: raise it, or give 0"
        require(share > 0, f"task_weights.{name}", weights[name], remedy)
        parts.append(in_passes(own, share, seed=seed, epoch=epoch))
    return torch.cat(parts)


def in_passes(
    rows: Int[Tensor, " N"], count: int, *, seed: int, epoch: int, name: str = "mixture"
) -> Int[Tensor, " C"]:
    """So many rows for an epoch, the next ones of passes over all of them in a seeded order each:
    one is read again only when all were."""
    first = epoch * count
    passes = range(first // len(rows), (first + count - 1) // len(rows) + 1)
    drawn = torch.cat(
        [rows[uniforms(seed, turn, rows, name, 1)[:, 0].argsort()] for turn in passes]
    )
    return drawn[first % len(rows) :][:count]


def shares(task: Task, weights: Mapping[str, float], count: int) -> list[int]:
    """`count` divided among the tasks by their weights: rounded down, what is left goes to those
    that lost most."""
    total = sum(weights.values())
    exact = [count * weights[name] / total for name in task.tasks]
    whole = [int(share) for share in exact]
    order = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for place in order[: count - sum(whole)]:
        whole[place] += 1
    return whole
