"""The only door to prompts: a `Task` knows the rows of a data set and what a policy reads there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from recast.data.folder import load_data, load_items
from recast.data.history import history, seen
from recast.data.rows import Rows, has_rows, load_rows
from recast.data.windows import user_windows
from recast.draws import uniforms
from recast.items.catalog import Catalog
from recast.policy.chat import chat_task
from recast.policy.encoder_decoder import is_encoder_decoder
from recast.policy.load import Policy
from recast.policy.prompts import make_prompts, write_items
from recast.types import Interactions, Prompts, RecastError, Sequences

_ROWS = 2**16  # whose histories are looked at together


@runtime_checkable
class Task(Protocol):
    """Rows of a data set as prompts of one policy.

    Row ids are the keys of all draws: no two rows that go through one run share one.
    """

    @property
    def name(self) -> str:
        """One word."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the parts whose metrics are told apart; one of a plain task."""

    @property
    def catalog(self) -> Catalog:
        """The items that answers name."""

    @property
    def split_name(self) -> str:
        """How the rows were split, in words; printed above every table."""

    @property
    def exclude_seen(self) -> bool:
        """Whether the items of a row's own history are no candidates."""

    def rows(self, split: str) -> Int[Tensor, " N"]:
        """Row ids of `train`, `rl`, `valid` or `test`."""

    def users(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Whom the statistics resample."""

    def task_of(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Of which of the `tasks` each row is."""

    def targets(self, rows: Int[Tensor, " N"]) -> Int[Tensor, "N T"]:
        """Items, padded with -1 on the right."""

    def item_counts(self, splits: Sequence[str]) -> Int[Tensor, " I"]:
        """How often each item was used in these splits."""

    def history_lengths(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Items that were used before the row; 0 where nobody knows."""

    def lengths(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Prompt tokens, without building them."""

    def notes(self, rows: Int[Tensor, " N"]) -> list[str]:
        """What the prompts of these rows leave out against a setting or the model's limits, for the
        screen."""

    def prompts(self, rows: Int[Tensor, " B"]) -> Prompts:
        """What the policy reads, and the targets."""

    def sequences(self, rows: Int[Tensor, " N"], epoch: int) -> Sequences:
        """What supervised training on these rows reads in an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryTask:
    """The prompt of an event is BOS and the latest `window - 1` items before it, its target the
    item of the event."""

    interactions: Interactions
    catalog: Catalog
    window: int
    backwards_frac: float = 0.0
    """Share of the windows of supervised training that are read backwards."""
    crop_frac: float = 0.0
    """Share of them that begin at a random item of theirs."""
    seed: int = 0
    """Of these windows."""
    has_windows: bool = True
    """Off: supervised training reads every row with its own prompt, as an encoder-decoder must."""
    name: str = "history"

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def split_name(self) -> str:
        return self.interactions.split_name

    @property
    def exclude_seen(self) -> bool:
        return self.interactions.exclude_seen

    def rows(self, split: str) -> Int[Tensor, " N"]:
        """Events with a history, in time order, of items that write something."""
        rows = self.interactions.rows(split)
        return rows[self.catalog.is_written.cpu()[self.interactions.items[rows]]]

    def users(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        return self.interactions.users[rows]

    def task_of(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        return torch.zeros_like(rows)

    def targets(self, rows: Int[Tensor, " N"]) -> Int[Tensor, "N 1"]:
        return self.interactions.items[rows][:, None]

    def item_counts(self, splits: Sequence[str]) -> Int[Tensor, " I"]:
        """Events of every item."""
        items = self.interactions.items[self.interactions.within(splits)]
        return items.bincount(minlength=self.interactions.num_items)

    def history_lengths(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        return rows - self.interactions.starts[rows]

    def notes(self, rows: Int[Tensor, " N"]) -> list[str]:
        """None: the window is a choice."""
        return []

    def lengths(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """BOS and the items' tokens."""
        written = self.catalog.lengths.cpu().long()
        found = []
        for some in rows.split(_ROWS):
            items = history(self.interactions, some, self.window - 1)
            found.append(1 + written[items.clamp(min=0)].masked_fill(items < 0, 0).sum(1))
        return torch.cat(found)

    def prompts(self, rows: Int[Tensor, " B"]) -> Prompts:
        """One target each."""
        items = history(self.interactions, rows, self.window - 1)
        targets = self.targets(rows)
        return make_prompts(
            self.catalog,
            history=items[:, : int((items >= 0).sum(1).max())] if len(rows) else items,
            targets=targets,
            seen=seen(self.interactions, rows),
            row_ids=rows,
            domains=self.catalog.domain_of.cpu()[targets[:, 0]].long(),
        )

    def sequences(self, rows: Int[Tensor, " N"], epoch: int) -> Sequences:
        """Windows of the users' events among `rows`, cut anew every epoch; all items count. Without
        windows the prompts of the rows, in a new order every epoch, whose target alone counts."""
        if not self.has_windows:
            return self._pairs(rows, epoch)
        windows = user_windows(
            self.interactions,
            rows,
            width=self.window,
            seed=self.seed,
            epoch=epoch,
            backwards_frac=self.backwards_frac,
            crop_frac=self.crop_frac,
        )
        tokens, lengths = write_items(self.catalog, windows.to(self.catalog.device))
        column = torch.arange(tokens.shape[1], device=tokens.device)
        inside = column < lengths[:, None]
        return Sequences(
            tokens=tokens[inside],
            loss_mask=(column > 0).expand(tokens.shape)[inside],
            lengths=lengths,
        )

    def _pairs(self, rows: Int[Tensor, " N"], epoch: int) -> Sequences:
        number = torch.arange(len(rows))
        rows = rows[uniforms(self.seed, epoch, number, "shuffle", 1)[:, 0].argsort()]
        parts = []
        for some in rows.split(_ROWS):
            items = F.pad(history(self.interactions, some, self.window - 1), (0, 1), value=-1)
            behind = (items >= 0).sum(1, keepdim=True)
            items = items.scatter(1, behind, self.targets(some)).to(self.catalog.device)
            tokens, lengths = write_items(self.catalog, items)
            column = torch.arange(tokens.shape[1], device=tokens.device)
            inside = column < lengths[:, None]
            target = self.catalog.lengths[self.targets(some)[:, 0].to(self.catalog.device)]
            counts = column >= (lengths - target)[:, None]
            parts.append((tokens[inside].int(), counts[inside], lengths))
        tokens, loss_mask, lengths = (torch.cat(x) for x in zip(*parts, strict=True))
        return Sequences(tokens=tokens, loss_mask=loss_mask, lengths=lengths)


def load_task(data: str | Path, policy: Policy) -> Task:
    """The task of a data folder for a policy; what belongs to supervised training is unset.

    Raises `RecastError` unless the folder and the policy's catalogue hold the same items.
    """
    check_catalog(data, policy.catalog)
    return make_task(load_source(data), policy)


def load_source(data: str | Path) -> Interactions | Rows:
    """The events or the rows of a data folder."""
    return load_rows(data) if has_rows(data) else load_data(data)


def make_task(
    source: Interactions | Rows,
    policy: Policy,
    *,
    backwards_frac: float = 0.0,
    crop_frac: float = 0.0,
    seed: int = 0,
) -> Task:
    """Rows, and events for a policy that renders its prompts, as `ChatTask`; other events as
    `HistoryTask`."""
    if isinstance(source, Rows) or policy.prompt.is_set:
        return chat_task(source, policy, seed)
    return HistoryTask(
        interactions=source,
        catalog=policy.catalog,
        window=policy.window,
        backwards_frac=backwards_frac,
        crop_frac=crop_frac,
        seed=seed,
        has_windows=not is_encoder_decoder(policy.model),
    )


def check_catalog(data: str | Path, catalog: Catalog) -> None:
    """Raise `RecastError` unless the data folder and the catalogue hold the same items."""
    ids = load_items(data)["item_id"].to_list()
    remedy = "make the catalogue from this data with `recast tokenize`"
    if len(ids) != catalog.num_items:
        raise RecastError(
            f"the data has {len(ids)} items, the catalogue {catalog.num_items}: a target would be "
            f"missing; {remedy}"
        )
    for index, (own, other) in enumerate(zip(ids, catalog.item_ids, strict=True)):
        if own != other:
            raise RecastError(
                f"item {index} is {own!r} in the data, {other!r} in the catalogue: {remedy}"
            )
