"""What ties semantic IDs to a language model's words: the texts of a catalogue and histories in,
rows of supervised training out.

MiniOneRec mixes such tasks with its histories (2510.24431: SID and title both ways, title history
to SID). The questions are ours. Every item with a text and a semantic ID is asked for, those that
no event of the training period has too: a text is no event. RL and evaluation never see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from recast.data.rows import Rows
from recast.draws import uniforms
from recast.items.catalog import Catalog
from recast.policy.chat import chat_task, sequences_of, with_room
from recast.policy.load import Policy
from recast.policy.render import Renderer, answers_of
from recast.policy.room import context_of, prompt_of
from recast.types import Interactions, RecastError, Sequences, require

ITEM_TASKS = ("sid_to_title", "title_to_sid", "titles_to_sid")

SID_TO_TITLE = "What is the item {sid}{of} called?"
TITLE_TO_SID = "Which item{of} is called {title}?"
"""`of` names the domain where the catalogue has several, whose items share semantic IDs."""


def renderer_of(policy: Policy, name: str) -> Renderer:
    """What renders a task of this name; raises `RecastError` for a policy that reads no text, and
    for items without semantic IDs."""
    if policy.tokenizer is None:
        raise RecastError(
            f"{name} is text, and the policy has no tokenizer: start from a model with one, "
            "--model.path"
        )
    sizes = policy.catalog.codebook_sizes
    remedy = "the items have no semantic IDs, leave it out"
    require(bool(sizes), "task_weights", name, remedy)
    prompt = prompt_of(policy.tokenizer, policy.prompt, "the policy", is_rows=True)
    return Renderer(tokenizer=policy.tokenizer, catalog=policy.catalog, prompt=prompt)


def item_rows(policy: Policy, name: str) -> tuple[Sequences, list[str]]:
    """A row for every item that has a text and a semantic ID, and lines on items that are left out
    because their row is longer than the model's context or `prompt.max_tokens`.

    Raises `RecastError` where there is no such item.
    """
    renderer, catalog = renderer_of(policy, name), policy.catalog
    items = _items(catalog)
    require(bool(items), "task_weights", name, "no item of the catalogue has a text, leave it out")
    titles = [catalog.texts[item].strip() for item in items]
    if name == "sid_to_title":
        renderer = replace(renderer, writes_items=False)
        # Roles end a line in a template; without one the question does it here.
        template, before = SID_TO_TITLE, "" if renderer.has_template else "\n"
        words = [before + title for title in titles]
        answers = [[*ids, *renderer.end_of_turn] for ids in encoded(renderer, words)]
    else:
        template = TITLE_TO_SID
        targets = torch.tensor(items)[:, None]
        answers = answers_of(catalog, targets, renderer.end_of_turn)
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
    context, most = context_of(policy.model), policy.prompt.max_tokens
    kept = [
        place
        for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if (context is None or len(prompt) + len(answer) <= context)
        and (most is None or len(prompt) <= most)
    ]
    lost = len(prompts) - len(kept)
    remedy = "no item's row fits into the model's context and prompt.max_tokens, leave it out"
    require(bool(kept), "task_weights", name, remedy)
    notes = [f"{name}: {lost:,} of {len(prompts):,} items are left out, too long"] if lost else []
    pairs = ([prompts[place] for place in kept], [answers[place] for place in kept])
    return sequences_of(*pairs, catalog.device), notes


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
    has_text = bool(_items(policy.catalog))
    require(has_text, "task_weights", name, "no item of the catalogue has a text, leave it out")
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


def encoded(renderer: Renderer, texts: list[str]) -> list[list[int]]:
    """Tokens of answers, without anything around them."""
    ids: list[list[int]] = renderer.tokenizer(texts, add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _items(catalog: Catalog) -> list[int]:
    """Items that have a text and write something."""
    written = catalog.is_written.tolist()
    return [i for i, text in enumerate(catalog.texts) if written[i] and text.strip()]


def _of(catalog: Catalog, item: int) -> str:
    names = catalog.domains
    return f" of {names[int(catalog.domain_of[item])]}" if len(names) > 1 else ""
