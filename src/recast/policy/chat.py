"""Rows of one or several tasks, or events, as rendered prompts: a `Task` for policies that read
text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from recast.data.history import history, seen
from recast.data.rows import Rows
from recast.draws import uniforms
from recast.items.catalog import Catalog
from recast.policy.load import Policy
from recast.policy.prompts import make_prompts
from recast.policy.render import Draft, Renderer, answers_of
from recast.policy.room import context_of, prompt_of, require_answer
from recast.types import Interactions, Prompts, RecastError, Sequences

_RENDERED = 4096
"""Rows that are rendered and tokenized together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTask:
    """The prompt of a row is its messages or its history in the policy's chat template, or its
    text; its targets are all that the row has. The prompt of an event is a rendered history.

    A row is rendered once and kept as tokens. Without a tokenizer the prompt is BOS and the latest
    `window - 1` items of the history. A target without a semantic ID is none, and rows without
    another one are left out. Rows of the split `rl` are those of `train` where the data has none.
    """

    source: Rows | Interactions
    catalog: Catalog
    window: int
    renderer: Renderer | None
    """None: the policy has no tokenizer."""
    limit: int | None
    """Tokens of a prompt at most."""
    seed: int = 0
    """Of the order in which supervised training reads the rows."""
    name: str = "chat"
    _read: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    _dropped: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def split_name(self) -> str:
        return self.source.split_name

    @property
    def exclude_seen(self) -> bool:
        return self.source.exclude_seen

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.source.task_names if isinstance(self.source, Rows) else (self.name,)

    def task_of(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        return self.source.tasks[rows] if isinstance(self.source, Rows) else torch.zeros_like(rows)

    def rows(self, split: str) -> Int[Tensor, " N"]:
        """In the order of the file, events in that of time."""
        found = self.source.rows(split)
        if split == "rl" and not len(found):
            found = self.source.rows("train")
        if bool(self.catalog.is_written.all()):
            return found
        return found[(self.targets(found) >= 0).any(1)]

    def users(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        return self.source.users[rows]

    def targets(self, rows: Int[Tensor, " N"]) -> Int[Tensor, "N T"]:
        """Items that have a semantic ID, in their order, padded with -1."""
        if isinstance(self.source, Interactions):
            items = self.source.items[rows][:, None]
        else:
            items = self.source.targets.take(rows)
        written = self.catalog.is_written.cpu()[items.clamp(min=0)] & (items >= 0)
        order = written.int().argsort(dim=1, descending=True, stable=True)
        count = int(written.sum(1).max()) if len(rows) else 1
        return items.masked_fill(~written, -1).gather(1, order)[:, :count]

    def item_counts(self, splits: Sequence[str]) -> Int[Tensor, " I"]:
        """Of every item the rows of these splits that name it as a target, or its events."""
        if isinstance(self.source, Interactions):
            items = self.source.items[self.source.within(splits)]
        else:
            rows = torch.cat([self.source.rows(split) for split in splits])
            items = self.source.targets.take(rows).flatten()
        return items[items >= 0].bincount(minlength=self.catalog.num_items)

    def history_lengths(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """0 of a row that is text."""
        if isinstance(self.source, Interactions):
            return rows - self.source.starts[rows]
        return self.source.history.lengths[rows]

    def lengths(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        return torch.tensor([len(tokens) for tokens in self._tokens(rows)], dtype=torch.long)

    def prompts(self, rows: Int[Tensor, " B"]) -> Prompts:
        read = self._tokens(rows)
        lengths = torch.tensor([len(tokens) for tokens in read], dtype=torch.long)
        width = int(lengths.max()) if len(rows) else 1
        tokens = torch.full((len(rows), width), self.catalog.pad_token)
        inside = torch.arange(width) < lengths[:, None]
        tokens[inside] = torch.from_numpy(_flat(read)).long()
        targets = self.targets(rows)
        if isinstance(self.source, Rows):
            domains = self.source.task_domains[self.source.tasks[rows]]
            excluded = self.source.seen.take(rows)
        else:
            domains = self.catalog.domain_of.cpu()[targets[:, 0]].long()
            excluded = seen(self.source, rows)
        return make_prompts(
            self.catalog,
            history=self._history(rows),
            text=(tokens, lengths),
            targets=targets,
            seen=excluded,
            row_ids=rows,
            domains=domains,
        )

    def sequences(self, rows: Int[Tensor, " N"], epoch: int) -> Sequences:
        """The prompts with their answers, in a new order every epoch; what follows the prompt
        counts. Of titles, each of which is an answer of its own, a row with several targets is as
        many sequences."""
        self._tokens(rows)  # an error then names the first row in the order of the file
        number = torch.arange(len(rows))
        rows = rows[uniforms(self.seed, epoch, number, "shuffle", 1)[:, 0].argsort()]
        end = [] if self.renderer is None else self.renderer.end_of_turn
        targets = self.targets(rows)
        if self.catalog.form is not None:  # an item ends what is said
            row, place = (targets >= 0).nonzero(as_tuple=True)
            rows, targets, end = rows[row], targets[row, place][:, None], []
        answers = answers_of(self.catalog, targets, end)
        pairs = [
            (prompt, np.array(answer, dtype=np.int32))
            for prompt, answer in zip(self._tokens(rows), answers, strict=True)
        ]
        return sequences_of(pairs, self.catalog.device)

    def notes(self, rows: Int[Tensor, " N"]) -> list[str]:
        """How many of these prompts were cut."""
        self._tokens(rows)
        lost = [self._dropped[row] for row in rows.tolist() if row in self._dropped]
        if not lost:
            return []
        return [
            f"{len(lost):,} of {len(rows):,} prompts have more than {self.limit:,} tokens: "
            f"{sum(lost):,} of their oldest items are left out"
        ]

    def _history(self, rows: Int[Tensor, " N"]) -> Int[Tensor, "N H"]:
        if isinstance(self.source, Interactions):
            items = history(self.source, rows, self.window - 1)
            return items[:, : int((items >= 0).sum(1).max())] if len(rows) else items
        return self.source.history.take(rows, None if self.renderer else self.window - 1)

    def _tokens(self, rows: Int[Tensor, " N"]) -> list[np.ndarray]:
        """Of every row, rendered where it was not before."""
        new = [row for row in dict.fromkeys(rows.tolist()) if row not in self._read]
        for start in range(0, len(new), _RENDERED):
            some = new[start : start + _RENDERED]
            items = [[i for i in h if i >= 0] for h in self._history(torch.tensor(some)).tolist()]
            read, dropped = self._render(some, items)
            for row, tokens, lost in zip(some, read, dropped, strict=True):
                self._read[row] = np.array(tokens, dtype=np.int32)
                if lost:
                    self._dropped[row] = lost
        return [self._read[row] for row in rows.tolist()]

    def _render(
        self, rows: list[int], histories: list[list[int]]
    ) -> tuple[list[list[int]], list[int]]:
        if self.renderer is None:
            first, begin = self.catalog.bos_token, self.catalog.begin_tokens
            written = [_written(self.catalog, items) for items in histories]
            return [[first, *tokens, *begin] for tokens in written], [0] * len(rows)
        drafts = [self._draft(self.renderer, *row) for row in zip(rows, histories, strict=True)]
        return self.renderer.tokens(drafts, rows, self.limit)

    def _draft(self, renderer: Renderer, row: int, items: list[int]) -> Draft:
        prompt = self.source.prompts[row] if isinstance(self.source, Rows) else None
        if prompt is None:
            return renderer.history(items, row)
        assert isinstance(self.source, Rows)
        is_chat = bool(self.source.is_chat[row])
        return renderer.messages(prompt, row) if is_chat else renderer.plain(prompt, row)


def chat_task(source: Rows | Interactions, policy: Policy, seed: int = 0) -> ChatTask:
    """Raises `RecastError` for rows of text that a policy without a tokenizer cannot read."""
    catalog, renderer, limit = policy.catalog, None, policy.prompt.max_tokens
    if policy.tokenizer is not None:
        prompt = prompt_of(policy.tokenizer, policy.prompt, catalog, "the policy", is_rows=True)
        renderer = Renderer(tokenizer=policy.tokenizer, catalog=catalog, prompt=prompt)
        context = context_of(policy.model)
        require_answer(context, prompt, catalog.max_length)
        if limit is None and context is not None:
            limit = context - catalog.max_length
    elif isinstance(source, Rows) and source.prompts.null_count() < len(source.prompts):
        row = source.prompts.is_not_null().arg_max()
        raise RecastError(
            f"row {row} is text, and the policy has no tokenizer: start from a model with one, "
            "--model.path"
        )
    return ChatTask(
        source=source,
        catalog=catalog,
        window=policy.window,
        renderer=renderer,
        limit=limit,
        seed=seed,
    )


def sequences_of(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], device: torch.device | str
) -> Sequences:
    """Prompts with their answers, on which alone the loss is."""
    counts = [np.arange(len(p) + len(a)) >= len(p) for p, a in pairs]
    lengths = torch.tensor([len(count) for count in counts], dtype=torch.long)
    mask = np.concatenate([np.zeros(0, dtype=bool), *counts])
    return Sequences(
        tokens=torch.from_numpy(_flat([part for pair in pairs for part in pair])).to(device),
        loss_mask=torch.from_numpy(mask).to(device),
        lengths=lengths.to(device),
    )


def with_room(policy: Policy, num_targets: int) -> Policy:
    """The policy with a limit of its prompts, where it renders them, that leaves room in its
    context for the longest answer that supervised training reads."""
    if not policy.prompt.is_set:
        return policy
    items = torch.zeros(1, num_targets, dtype=torch.long)
    answer, context = len(answers_of(policy.catalog, items, [0])[0]), context_of(policy.model)
    answer = answer if policy.catalog.form is None else policy.catalog.max_length
    require_answer(context, policy.prompt, answer)
    most = policy.prompt.max_tokens or (None if context is None else context - answer)
    return replace(policy, prompt=replace(policy.prompt, max_tokens=most))


def _written(catalog: Catalog, items: list[int]) -> list[int]:
    """Tokens of the items that write something."""
    index = torch.tensor(items, dtype=torch.long, device=catalog.device)
    return catalog.tokens_of(index)[catalog.mask_of(index)].tolist()


def _flat(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int32), *parts])
