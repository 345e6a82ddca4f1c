"""What every epoch of supervised training reads: rows of the data and of further tasks, by weight.

The data's own rows are read as they would be alone. With weights of its tasks that sum to W (1
without any), a further task of weight w adds w / W rows for each of them, in passes of its own.
Where all its own tasks have weight 0, the further ones share as many rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config.train import LossOn
from recast.data.plain_text import PlainText
from recast.data.rows import Rows
from recast.draws import uniforms
from recast.policy.alignment import ITEM_TASKS, history_rows, item_rows, plain_rows
from recast.policy.load import Policy
from recast.policy.tasks import Task
from recast.train.mixture import check_weights, in_passes, mixed_epoch
from recast.types import Interactions, RecastError, Sequences, require

PLAIN_TEXT = "plain_text"
FURTHER = (*ITEM_TASKS, PLAIN_TEXT)
"""Tasks that are not the data's own."""

_MOST = 2**22
"""Rows that a further task adds to an epoch: their tokens are held at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Epochs:
    """The sequences of every epoch.

    Example, 100 rows of the data and, by `--task_weights.sid_to_title .25`, 25 further ones an
    epoch of the 48 that there are: `rows=[0, ..., 99]  counts={"sid_to_title": 25}`.
    """

    task: Task
    rows: Int[Tensor, " N"]
    """Of the data, all that may be read."""
    weights: Mapping[str, float]
    """Of the data's own tasks."""
    seed: int
    loss_on: LossOn
    parts: Mapping[str, Sequences] = field(default_factory=dict)
    """All rows of every further task."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How many of them an epoch reads."""
    notes: Sequence[str] = ()
    """What they leave out, for the screen."""

    def sequences(self, epoch: int) -> Sequences:
        """In a seeded order, those of the data as the task gives them where there is no other."""
        found = self.own(epoch)
        if self.parts:
            device = self.task.catalog.device
            for name, part in self.parts.items():
                number = torch.arange(len(part))
                count = self.counts[name]
                drawn = in_passes(number, count, seed=self.seed, epoch=epoch, name=name)
                found = joined(found, part.take(drawn.to(device)), device)
            number = torch.arange(len(found))
            order = uniforms(self.seed, epoch, number, "tasks", 1)[:, 0].argsort()
            found = found.take(order.to(device))
        return on_all(found) if self.loss_on == "all" else found

    def own(self, epoch: int) -> Sequences:
        """Those of the data."""
        if self.weights and not any(self.weights.values()):
            return _NONE
        rows = mixed_epoch(self.task, self.rows, self.weights, seed=self.seed, epoch=epoch)
        return self.task.sequences(rows, epoch)

    @property
    def longest(self) -> int:
        """Tokens of the longest row of a further task, 0 without any."""
        return max((int(part.lengths.max()) for part in self.parts.values()), default=0)


def make_epochs(
    policy: Policy,
    task: Task,
    source: Rows | Interactions,
    *,
    plain: PlainText | None,
    splits: Sequence[str],
    weights: Mapping[str, float],
    loss_on: LossOn,
    epochs: int,
    seed: int,
) -> Epochs:
    """What a run of at most so many epochs reads of these splits.

    Raises `RecastError` for weights of tasks that there are not or that have no row.
    """
    rows = torch.cat([task.rows(split) for split in splits]).unique()
    further = further_tasks(task, weights)
    own = {name: weight for name, weight in weights.items() if name not in further}
    others = ", ".join(name for name in FURTHER if name not in task.tasks)
    check_weights(task, rows, own, f"; further ones are {others}")
    alone = Epochs(task=task, rows=rows, weights=own, seed=seed, loss_on=loss_on)
    asked = {name: weights[name] for name in further if weights[name]}
    if not asked:
        return alone
    total = sum(own.values()) if own else 1.0
    count = len(alone.own(0)) if total else len(task.sequences(rows, 0))
    parts, counts, notes = {}, {}, []
    for name, weight in asked.items():
        counts[name] = round(count * weight / (total or sum(asked.values())))
        few = f"that is none beside {count} rows of the data, raise it"
        require(counts[name] > 0, f"task_weights.{name}", weight, few)
        many = f"that is {counts[name]:,} rows an epoch, {_MOST:,} at most, lower it"
        require(counts[name] <= _MOST, f"task_weights.{name}", weight, many)
    for name in asked:
        if name == "titles_to_sid":
            found = history_rows(policy, source, splits, epochs * counts[name], seed)
        elif name == PLAIN_TEXT:
            text = _to_train_on(plain, weights[name], epochs * counts[name], seed)
            found = plain_rows(policy, text.rows, text.file)
        else:
            found = item_rows(policy, name)
        parts[name], more = found
        notes += more
    said = [f"{counts[name]:,} {name} (of {len(parts[name]):,})" for name in asked]
    notes = [f"an epoch reads further rows: {', '.join(said)}", *notes]
    return replace(alone, parts=parts, counts=counts, notes=notes)


def _to_train_on(plain: PlainText | None, weight: float, most: int, seed: int) -> PlainText:
    """The rows of a file, at most so many, a seeded sample; raises `RecastError` without any."""
    name = f"task_weights.{PLAIN_TEXT}"
    if plain is None:
        raise RecastError(f"{name} is {weight}: give their file, --plain_text FILE")
    few = f"{plain.file} has no row beside those that are held out, give more"
    require(bool(plain.rows), name, weight, few)
    if len(plain.rows) <= most:
        return plain
    draws = uniforms(seed, 0, torch.arange(len(plain.rows)), PLAIN_TEXT, 1)[:, 0]
    return plain._replace(rows=[plain.rows[n] for n in draws.argsort()[:most].tolist()])


def further_tasks(task: Task, weights: Mapping[str, float]) -> list[str]:
    """Those of the weights that are of no task of the data, which keeps its names."""
    return [name for name in weights if name in FURTHER and name not in task.tasks]


_NONE = Sequences(
    tokens=torch.zeros(0, dtype=torch.int32),
    loss_mask=torch.zeros(0, dtype=torch.bool),
    lengths=torch.zeros(0, dtype=torch.long),
)


def joined(first: Sequences, second: Sequences, device: torch.device) -> Sequences:
    """The sequences of both."""
    return Sequences(
        tokens=torch.cat([first.tokens.to(device), second.tokens]),
        loss_mask=torch.cat([first.loss_mask.to(device), second.loss_mask]),
        lengths=torch.cat([first.lengths.to(device), second.lengths]),
    )


def on_all(sequences: Sequences) -> Sequences:
    """With a loss on every token but the first of each, which nothing precedes.

    >>> one = torch.tensor([False, False, True])
    >>> rows = Sequences(tokens=torch.tensor([1, 2, 9]), loss_mask=one, lengths=torch.tensor([3]))
    >>> on_all(rows).loss_mask.tolist()
    [False, True, True]
    """
    loss_mask = torch.ones_like(sequences.loss_mask)
    loss_mask[sequences.lengths.cumsum(0) - sequences.lengths] = False
    return replace(sequences, loss_mask=loss_mask)
