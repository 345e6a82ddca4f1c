"""What ties semantic IDs to a language model's words: the texts of a catalogue and histories in,
rows of supervised training out.

MiniOneRec mixes such tasks with its histories (2510.24431: SID and title both ways, title history
to SID). The questions are ours. Every item with a text and a semantic ID is asked for, those that
no event of the training period has too: a text is no event. RL and evaluation never see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from recast.config import PromptConfig
from recast.data.plain_text import PlainRow
from recast.data.rows import Rows
from recast.draws import uniforms
from recast.items.catalog import Catalog
from recast.policy.chat import chat_task, sequences_of, with_room
from recast.policy.load import Policy
from recast.policy.render import Renderer, answers_of
from recast.policy.room import context_of, prompt_of
from recast.types import Interactions, RecastError, Sequences, require

ITEM_TASKS = ("sid_to_title", "title_to_sid", "titles_to_sid")

LONGEST_PLAIN = 512
"""Tokens of a plain row: as many as a row of supervised training has that shares one."""

Pair = tuple[np.ndarray, np.ndarray]
"""Tokens of a prompt and of its answer."""

_RENDERED = 4096
"""Rows that are rendered and tokenized together."""

SID_TO_TITLE = "What is the item {sid}{of} called?"
TITLE_TO_SID = "Which item{of} is called {title}?"
"""`of` names the domain where the catalogue has several, whose items share semantic IDs."""


def renderer_of(policy: Policy, name: str) -> Renderer:
    """What renders rows of this name; raises `RecastError` for a policy that reads no text."""
    if policy.tokenizer is None:
        raise RecastError(
            f"{name} is text, and the policy has no tokenizer: start from a model with one, "
            "--model.path"
        )
    prompt = prompt_of(policy.tokenizer, policy.prompt, policy.catalog, "the policy", is_rows=True)
    return Renderer(tokenizer=policy.tokenizer, catalog=policy.catalog, prompt=prompt)


def plain_renderer(policy: Policy, name: str) -> Renderer:
    """What renders chats as they are: no setting of the policy's prompts is theirs."""
    return replace(renderer_of(policy, name), prompt=PromptConfig(), writes_items=False)


def item_rows(policy: Policy, name: str) -> tuple[Sequences, list[str]]:
    """A row for every item that has a text and a semantic ID, and lines on items that are left out
    because their row is longer than the model's context or `prompt.max_tokens`.

    Raises `RecastError` where there is no such item.
    """
    renderer, catalog = renderer_of(policy, name), policy.catalog
    remedy = f"the items write their titles, there is nothing to align: leave {name} out"
    require(bool(catalog.codebook_sizes), "task_weights", name, remedy)
    items = _items(catalog, name)
    pairs = [
        pair
        for start in range(0, len(items), _RENDERED)
        for pair in _item_pairs(renderer, name, items[start : start + _RENDERED])
    ]
    context, most = context_of(policy.model), policy.prompt.max_tokens
    kept = [
        (prompt, answer)
        for prompt, answer in pairs
        if (context is None or len(prompt) + len(answer) <= context)
        and (most is None or len(prompt) <= most)
    ]
    lost = len(pairs) - len(kept)
    remedy = "no item's row fits into the model's context and prompt.max_tokens, leave it out"
    require(bool(kept), "task_weights", name, remedy)
    notes = [f"{name}: {lost:,} of {len(pairs):,} items are left out, too long"] if lost else []
    return sequences_of(kept, catalog.device), notes


def _item_pairs(renderer: Renderer, name: str, items: list[int]) -> Iterator[Pair]:
    """Question and answer of each item."""
    catalog, end = renderer.catalog, renderer.end_of_turn
    titles = [catalog.texts[item].strip() for item in items]
    if name == "sid_to_title":
        renderer = replace(renderer, writes_items=False)
        # Roles end a line in a template; without one the question does it here.
        template, before = SID_TO_TITLE, "" if renderer.has_template else "\n"
        answers = [[*ids, *end] for ids in _encoded(renderer, [before + x for x in titles])]
    else:
        template, answers = TITLE_TO_SID, answers_of(catalog, torch.tensor(items)[:, None], end)
    drafts = [
        renderer.question(
            template.format(sid=renderer.spelled[item], title=title, of=_of(catalog, item)), item
        )
        for item, title in zip(items, titles, strict=True)
    ]
    try:
        prompts, _ = renderer.tokens(drafts, items, None)
    except RecastError as error:
        raise RecastError(f"task_weights.{name}, by item: {error}") from error
    return zip(map(_array, prompts), map(_array, answers), strict=True)


def history_rows(
    policy: Policy, source: Rows | Interactions, splits: Sequence[str], most: int, seed: int
) -> tuple[Sequences, list[str]]:
    """Histories of these splits with titles in the place of items, and the rows' own answers: at
    most so many, a seeded sample; and lines on prompts that were cut.

    Raises `RecastError` where no row has a history, and where the policy reads titles anyway.
    """
    name = "titles_to_sid"
    renderer_of(policy, name)
    remedy = "prompt.history is titles, which the rows of the data hold already, leave it out"
    require(policy.prompt.history != "titles", "task_weights", name, remedy)
    _items(policy.catalog, name)
    num_targets = int(source.targets.lengths.max()) if isinstance(source, Rows) else 1
    asked = replace(policy, prompt=replace(policy.prompt, history="titles"))
    task = chat_task(source, with_room(asked, num_targets), seed)
    rows = torch.cat([task.rows(split) for split in splits]).unique()
    rows = rows[task.history_lengths(rows) > 0]
    remedy = "no training row is a history of items, leave it out"
    require(len(rows) > 0, "task_weights", name, remedy)
    if len(rows) > most:
        rows = rows[uniforms(seed, 0, rows, name, 1)[:, 0].argsort()[:most]]
    return task.sequences(rows, 0), [f"{name}: {line}" for line in task.notes(rows)]


def plain_rows(
    policy: Policy, rows: Sequence[PlainRow], file: str, called: str = "rows"
) -> tuple[Sequences, list[str]]:
    """Chats through the policy's template, as they are, with a loss on the last answer; texts as
    its tokenizer reads them, with one on all but the first token; of both the first
    `LONGEST_PLAIN` tokens. And lines on what was cut and on rows without a token to learn, which
    are `called` so.

    Raises `RecastError` for chats that the template does not take, and where no row is left.
    """
    renderer = plain_renderer(policy, file)
    room = min(context_of(policy.model) or LONGEST_PLAIN, LONGEST_PLAIN)
    pairs = [
        pair
        for start in range(0, len(rows), _RENDERED)
        for pair in _plain_pairs(renderer, rows[start : start + _RENDERED], file, start)
    ]
    fits = [(prompt, answer) for prompt, answer in pairs if len(prompt) < room and len(answer)]
    kept = [(prompt, answer[: room - len(prompt)]) for prompt, answer in fits]
    remedy = f"none has an answer within {room} tokens, give shorter ones"
    require(bool(kept), "plain_text", file, remedy)
    lost, cut = len(pairs) - len(kept), sum(len(p) + len(a) > room for p, a in fits)
    notes = [f"{file}: {cut:,} of {len(pairs):,} {called} are cut at {room} tokens"] if cut else []
    notes += [f"{file}: {lost:,} of {len(pairs):,} {called} hold nothing to learn"] if lost else []
    return sequences_of(kept, policy.catalog.device), notes


def _plain_pairs(
    renderer: Renderer, rows: Sequence[PlainRow], file: str, start: int
) -> Iterator[Pair]:
    """Prompt and answer of each row; of a text its first token and the others."""
    answers = [row.answer for row in rows]
    if rows[0].prompt is None:
        read = renderer.tokenizer(answers, verbose=False)["input_ids"]
        return ((_array(ids[:1]), _array(ids[1:])) for ids in read)
    numbers = range(start, start + len(rows))
    try:
        drafts = [renderer.messages(x.prompt or "", n) for x, n in zip(rows, numbers, strict=True)]
        prompts, _ = renderer.tokens(drafts, numbers, None)
    except RecastError as error:
        raise RecastError(f"{file}: {error}") from error
    said = [[*ids, *renderer.end_of_turn] for ids in _encoded(renderer, answers)]
    return zip(map(_array, prompts), map(_array, said), strict=True)


def _array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def _encoded(renderer: Renderer, texts: list[str]) -> list[list[int]]:
    """Tokens of answers, without anything around them."""
    ids: list[list[int]] = renderer.tokenizer(texts, add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _items(catalog: Catalog, name: str) -> list[int]:
    """Items that have a text and a semantic ID, at least one."""
    remedy = "the items have no semantic IDs, leave it out"
    require(bool(catalog.codebook_sizes), "task_weights", name, remedy)
    written = catalog.is_written.tolist()
    items = [i for i, text in enumerate(catalog.texts) if written[i] and text.strip()]
    require(bool(items), "task_weights", name, "no item of the catalogue has a text, leave it out")
    return items


def _of(catalog: Catalog, item: int) -> str:
    names = catalog.domains
    return f" of {names[int(catalog.domain_of[item])]}" if len(names) > 1 else ""
