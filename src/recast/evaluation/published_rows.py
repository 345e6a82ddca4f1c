"""Whose lists are whose: published entries and the rows of a split in, an entry for every row out.

An entry is of the row that has its targets and its history (of rows that are text, its prompt): the
order of the file says nothing, and neither do users, whom one of the formats does not name.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from recast.data.history import history
from recast.data.rows import Rows
from recast.evaluation.published import Entry, Published
from recast.items.catalog import Catalog
from recast.policy.tasks import Task
from recast.types import Interactions, RecastError, in_short, require

Key = tuple[int, ...]
"""Leaves of the trie: semantic IDs without their items."""


class Names:
    """Items by the text of their semantic IDs, domain by domain."""

    def __init__(self, catalog: Catalog) -> None:
        self._leaves = catalog.trie.leaves.long().tolist()
        self._num_leaves = catalog.trie.num_leaves
        self.is_complete = self._num_leaves not in self._leaves
        """Every item has a semantic ID."""
        levels = range(len(catalog.codebook_sizes))
        self._sid = re.compile("".join(map(catalog.names.any_code, levels)))
        self._items: list[dict[str, int]] = [{} for _ in catalog.domains]
        self._by_id = {name: item for item, name in enumerate(catalog.item_ids)}
        domains, codes = catalog.domain_of.tolist(), catalog.codes.tolist()
        for item, (domain, sid) in enumerate(zip(domains, codes, strict=True)):
            if self._leaves[item] < self._num_leaves:
                name = "".join(catalog.names.name(*part) for part in enumerate(sid))
                self._items[domain].setdefault(name, item)
        self._prefixes = [
            f"{name}:" if len(catalog.domains) > 1 else "" for name in catalog.domains
        ]

    def item(self, domain: int, text: str) -> int | None:
        """The first item of the first semantic ID behind a thought; None where no item has it."""
        found = self._sid.search(text.rpartition("</think>")[2])
        return self._items[domain].get(found[0]) if found else None

    def sids(self, domain: int, text: str) -> Key:
        """Of all semantic IDs of a text that some item has, and -1 for each that none has."""
        names = self._sid.findall(text)
        items = [self._items[domain].get(name) for name in names]
        return tuple(-1 if item is None else self._leaves[item] for item in items)

    def targets(self, domain: int, entry: Entry) -> Key:
        """Of the targets that items have, each once; their ids win over their semantic IDs."""
        if entry.answer_ids is None:
            leaves = [leaf for leaf in self.sids(domain, entry.answer) if leaf >= 0]
        else:
            named = [self._by_id.get(self._prefixes[domain] + id) for id in entry.answer_ids]
            leaves = [self._leaves[item] for item in named if item is not None]
        return tuple(dict.fromkeys(leaf for leaf in leaves if leaf < self._num_leaves))

    def of_items(self, items: list[int]) -> Key:
        """Of those that have one; -1 pads."""
        leaves = [self._leaves[item] for item in items if item >= 0]
        return tuple(leaf for leaf in leaves if leaf < self._num_leaves)


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The rows that are judged, of each the entry that is its own, and its domain."""

    rows: Int[Tensor, " N"]
    entries: list[Entry]
    domains: list[int]
    names: Names
    left_out: list[Entry]
    """Of no row: no item has one of their targets, or all of them are seen items."""


def match_rows(
    published: list[Published],
    task: Task,
    source: Rows | Interactions,
    rows: Int[Tensor, " N"],
    where: str,
) -> Matched:
    """Entries by row, of the rows whose tasks the files are of.

    Raises `RecastError` for an entry of no row, one too many and a row without one; `where` says
    whose rows they are.
    """
    names = Names(task.catalog)
    own: dict[int, Entry] = {}
    left_out: list[Entry] = []
    for file, number in zip(published, _tasks(published, task), strict=True):
        inside = rows[task.task_of(rows) == number]
        require(len(inside) > 0, f"task of {file.path}", task.tasks[number], f"{where} has no row")
        domain = int(task.catalog.domain_of[task.targets(inside)[0, 0]])
        found, lost = _match(file, task, source, inside, names, domain, where)
        left_out += lost
        if missing := [row for row in inside.tolist() if row not in found]:
            raise RecastError(
                f"{file.path} has no predictions for row {missing[0]} ({len(missing):,} such of "
                f"{len(inside):,} in {where}): give a list for every row"
            )
        own |= found
    kept = rows[torch.isin(rows, torch.tensor(list(own)))]
    targets = task.targets(kept)[:, 0]
    return Matched(
        rows=kept,
        entries=[own[row] for row in kept.tolist()],
        domains=task.catalog.domain_of.cpu()[targets].tolist(),
        names=names,
        left_out=left_out,
    )


def _tasks(published: list[Published], task: Task) -> list[int]:
    """The number of each file's task."""
    numbers = []
    for file in published:
        if len(task.tasks) == 1:
            numbers.append(0)
            continue
        remedy = f"the data has {', '.join(task.tasks)}: give lists of one of them"
        require(file.task in task.tasks, f"task of {file.path}", file.task, remedy)
        assert file.task is not None
        numbers.append(task.tasks.index(file.task))
    for number in set(numbers):
        files = [
            str(f.path) for f, other in zip(published, numbers, strict=True) if other == number
        ]
        remedy = f"all are of the task {task.tasks[number]!r}: give one"
        require(len(files) == 1, "files of --predictions", files, remedy)
    return numbers


def _match(
    file: Published,
    task: Task,
    source: Rows | Interactions,
    rows: Int[Tensor, " N"],
    names: Names,
    domain: int,
    where: str,
) -> tuple[dict[int, Entry], list[Entry]]:
    texts = _texts(source, rows)
    pasts: list[Key] = [()] * len(file.entries)
    if not all(texts):
        pasts = [names.sids(domain, entry.prompt) for entry in file.entries]
    histories = _histories(source, rows, names, max(1, *map(len, pasts), 1))
    targets_of = [names.of_items(items) for items in task.targets(rows).tolist()]
    waiting: dict[tuple[Key, Key | None], list[int]] = defaultdict(list)
    for place, (text, targets) in enumerate(zip(texts, targets_of, strict=True)):
        past = None if text else histories[place]
        waiting[tuple(dict.fromkeys(targets)), past].append(place)
    found: dict[int, Entry] = {}
    left_out = []
    for entry, past in zip(file.entries, pasts, strict=True):
        targets = names.targets(domain, entry)
        fitting = waiting.get((targets, past), []) + [
            place
            for place in waiting.get((targets, None), [])
            if all(part in entry.prompt for part in texts[place])
        ]
        own = next((place for place in fitting if int(rows[place]) not in found), None)
        if own is not None:
            found[int(rows[own])] = entry
        elif not targets or (task.exclude_seen and set(targets) <= set(past)):
            left_out.append(entry)
        else:
            what = f"{entry.place}, of the targets {in_short(entry.answer.strip())},"
            if fitting:
                raise RecastError(
                    f"{what} is there more often than {where} has such rows "
                    f"({len(fitting):,}): leave out what is there twice"
                )
            raise RecastError(
                f"{what} is of no row in {where}, none has these targets after this prompt: give "
                "the predictions for these rows, or prepare the data that they were made for"
            )
    if not found:
        raise RecastError(
            f"{file.path}: no item of the catalogue has a target of any entry, such as "
            f"{in_short(file.entries[0].answer.strip())}: give the catalogue of these semantic IDs"
        )
    return found, left_out


def _texts(source: Rows | Interactions, rows: Int[Tensor, " N"]) -> list[list[str]]:
    """What the prompt of each row says; nothing of one that is a history."""
    if isinstance(source, Interactions):
        return [[]] * len(rows)
    texts = []
    for row in rows.tolist():
        prompt = source.prompts[row]
        if prompt is not None and bool(source.is_chat[row]):
            texts.append([message["content"].strip() for message in json.loads(prompt)])
        else:
            texts.append([] if prompt is None else [prompt.strip()])
    return texts


def _histories(
    source: Rows | Interactions, rows: Int[Tensor, " N"], names: Names, window: int
) -> list[Key]:
    """The latest `window` items of each row that have a semantic ID."""
    if isinstance(source, Rows):
        past = source.history.take(rows)
    else:
        width = window if names.is_complete else int((rows - source.starts[rows]).max())
        past = history(source, rows, width)
    return [names.of_items(items)[-window:] for items in past.tolist()]
