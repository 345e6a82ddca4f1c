"""Rows as text and tokens: messages, texts and histories in, what the policy reads out.

Messages go through the chat template of the policy's own tokenizer. Behind the prompt stand the
`prefix` of the settings and the name that begins an item; the answer is the item's codes, the name
that ends it, any further items, and the token by which the model ends its turn. An item that writes
its title is an answer by itself, its end included.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config import PromptConfig
from recast.config.prompt import TEMPLATE
from recast.items.catalog import Catalog
from recast.items.names import longest_run
from recast.items.tokenizer import end_of_turn, in_template
from recast.types import RecastError, in_short, require

Message = dict[str, str]
_MARK = "recast"  # what an assistant says where only its surroundings are of interest


class Draft(NamedTuple):
    """A prompt as text, and how to make it shorter."""

    num_items: int
    """Items of its history; all but one may go."""
    text: Callable[[int], str]
    """The prompt without so many of its oldest items."""


@dataclass(frozen=True, kw_only=True)
class Renderer:
    """The tokenizer of a policy and how its prompts are rendered.

    Raises `RecastError` when the tokenizer does not read the names of the semantic IDs as the
    catalogue's tokens.
    """

    tokenizer: Any
    catalog: Catalog
    prompt: PromptConfig
    writes_items: bool = True
    """Whether an item is what follows a prompt; else it is text."""

    def __post_init__(self) -> None:
        names = self.catalog.names.of(self.catalog.codebook_sizes)
        first = self.catalog.first_token
        read = self.tokenizer("".join(names), add_special_tokens=False, verbose=False)["input_ids"]
        for place, name in enumerate(names):
            if read[place : place + 1] != [first + place]:
                raise RecastError(
                    f"the tokenizer of the policy does not read {name} as token {first + place}, "
                    "which the model writes: use the folder as it was saved"
                )
        for level in range(len(self.catalog.codebook_sizes) - 1):
            found = re.search(rf"{self.catalog.names.any_code(level)}\Z", self.prompt.prefix or "")
            code = found and found[0]
            remedy = f"the item begins behind it, leave {code} off its end"
            require(code is None, "prompt.prefix", self.prompt.prefix, remedy)

    @cached_property
    def spelled(self) -> list[str]:
        """Of every item its name in text."""
        return self.catalog.spell(torch.arange(self.catalog.num_items, device=self.catalog.device))

    @cached_property
    def _behind(self) -> str:
        """What stands behind every prompt; a prefix may end in the name that begins an item."""
        begin = self.catalog.names.begin
        return (self.prompt.prefix or "").removesuffix(begin) + begin * self.writes_items

    @property
    def has_template(self) -> bool:
        return getattr(self.tokenizer, "chat_template", None) is not None

    def history(self, items: Sequence[int], row: int) -> Draft:
        """The user message of a history, oldest first, in the chat template if there is one and it
        is asked for."""
        template, between = self.prompt.template or TEMPLATE, self.prompt.separator
        between = ", " if between is None else between
        form = self.prompt.item or "{item}"
        words = [form.replace("{item}", word) for word in map(self._item, items) if word]

        def text(drop: int) -> str:
            said = template.replace("{history}", between.join(words[drop:]))
            if self.prompt.plain:
                return said + (self.prompt.suffix or "")
            return self._rendered([{"role": "user", "content": said}], row)

        return Draft(len(words), text)

    def question(self, content: str, row: int) -> Draft:
        """A user message of which nothing may go."""
        return Draft(0, lambda _: self._rendered([{"role": "user", "content": content}], row))

    def messages(self, content: str, row: int) -> Draft:
        """Messages as JSON, a list of objects with `role` and `content`."""
        if not self.has_template:
            raise RecastError(
                f"row {row} holds messages, and the tokenizer of the policy has no chat template: "
                "start from a model with one, or give texts as prompts"
            )
        messages: list[Message] = json.loads(content)
        at, starts = max(
            ((i, longest_run(self._items, m["content"])) for i, m in enumerate(messages)),
            key=lambda found: len(found[1]),
        )

        def text(drop: int) -> str:
            said = messages[at]["content"]
            shorter = said if not drop else said[: starts[0]] + said[starts[drop] :]
            return self._rendered(
                [{**m, "content": shorter} if i == at else m for i, m in enumerate(messages)], row
            )

        return Draft(len(starts), text)

    def plain(self, content: str, row: int) -> Draft:
        """A text that is read as it is; it may end in what stands behind every prompt."""
        content = content.removesuffix(self._behind)
        for name in ("system", "suffix"):
            remedy = f"row {row} is rendered already, leave it out"
            value = getattr(self.prompt, name)
            require(value is None, f"prompt.{name}", value, remedy)
        starts = longest_run(self._items, content)

        def text(drop: int) -> str:
            return content if not drop else content[: starts[0]] + content[starts[drop] :]

        return Draft(len(starts), text)

    def tokens(
        self, drafts: Sequence[Draft], rows: Sequence[int], limit: int | None
    ) -> tuple[list[list[int]], list[int]]:
        """Tokens of prompts of at most `limit` tokens, and how many of its oldest items each lost.

        Raises `RecastError` for a prompt that is too long with a single item, for one without a
        token, and where text and tokens name other items.
        """
        read = self._read([draft.text(0) for draft in drafts], rows)
        dropped = [0] * len(drafts)
        for place, (draft, row) in enumerate(zip(drafts, rows, strict=True)):
            if limit is None or len(read[place]) <= limit:
                continue

            def fits(drop: int, draft: Draft = draft, row: int = row) -> bool:
                return len(self._read([draft.text(drop)], [row])[0]) <= limit

            drops = range(1, draft.num_items)
            found = bisect_left(drops, True, key=fits)
            if found == len(drops):
                shortest = self._read([draft.text(max(draft.num_items - 1, 0))], [row])[0]
                raise RecastError(
                    f"row {row} has a prompt of {len(read[place])} tokens, at most {limit} fit, "
                    f"and with one of the {draft.num_items} items that it lists alone it still has "
                    f"{len(shortest)}: raise prompt.max_tokens, choose a model of a longer "
                    "context, or leave the row out"
                )
            dropped[place] = drops[found]
            read[place] = self._read([draft.text(drops[found])], [row])[0]
        return read, dropped

    @cached_property
    def end_of_turn(self) -> list[int]:
        """The token that ends what an assistant says; nothing where there is none."""
        end = end_of_turn(self.tokenizer)
        return [] if end is None else [end]

    def _item(self, item: int) -> str:
        kind, title = self.prompt.history or "sids", self.catalog.texts[item].strip()
        if not self.catalog.codebook_sizes:
            return title
        if kind == "sids" or (kind == "both" and not title):
            return self.spelled[item]
        return title if kind == "titles" else f"{title} {self.spelled[item]}".strip()

    def _rendered(self, messages: list[Message], row: int) -> str:
        system, suffix = self.prompt.system, self.prompt.suffix
        if system is not None:
            rest = messages[messages[0]["role"] == "system" :]
            messages = [{"role": "system", "content": system}, *rest]
        if suffix is not None:
            users = [i for i, message in enumerate(messages) if message["role"] == "user"]
            remedy = f"row {row} has no user message that could end in it, leave it out"
            require(bool(users), "prompt.suffix", suffix, remedy)
            said = messages[users[-1]]["content"] + suffix
            messages = [*messages]
            messages[users[-1]] = messages[users[-1]] | {"content": said}
        if not self.has_template:  # roles have no form of their own there
            return "\n".join(message["content"] for message in messages)
        text = in_template(self.tokenizer, messages, f"row {row}")
        kept = iter(self._name.findall(text))
        for message in messages:
            if message["role"] == "system" and not _is_kept(message["content"], text):
                drops = "the chat template of the policy's tokenizer drops"
                require(system is None, "prompt.system", system, f"{drops} it, leave it out")
                raise RecastError(
                    f"row {row}: {drops} its system message {in_short(message['content'])}: write "
                    "it into the user message, or give the model a template that keeps it"
                )
            for name in self._name.findall(message["content"]):
                # What an assistant said before, its thoughts above all, may be left out.
                if message["role"] != "assistant" and name not in kept:
                    raise RecastError(
                        f"row {row}: the chat template of the policy's tokenizer loses {name} of "
                        f"its {message['role']} message {in_short(message['content'])}: give the "
                        "model the template that it was published with"
                    )
        return text

    def _read(self, texts: list[str], rows: Sequence[int]) -> list[list[int]]:
        """Tokens of the prompts, up to where an item begins."""
        texts = [text + self._behind for text in texts]
        read: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        first, last = self.catalog.first_token, self.catalog.vocab_size
        for place, (text, ids) in enumerate(zip(texts, read, strict=True)):
            is_plain = self.prompt.plain or not self.has_template
            if is_plain and self._bos is not None and ids[:1] != [self._bos]:
                ids.insert(0, self._bos)
            row = rows[place]
            require(bool(ids), f"prompt of row {row}", "empty", "give it a text")
            if not self.catalog.codebook_sizes:
                continue
            names = self._name.findall(text)
            if sum(first <= token < last for token in ids) != len(names):
                known = set(self.catalog.names.of(self.catalog.codebook_sizes))
                name = next((name for name in names if name not in known), names[0])
                raise RecastError(
                    f"row {row}: the tokenizer of the policy does not read {name} as one token: "
                    "give the semantic IDs that the catalogue was made with"
                )
            around = {self.catalog.names.begin, self.catalog.names.end}
            other = None if {*names} - around else _ANY_NAME.search(text)
            if other is not None:
                raise RecastError(
                    f"row {row} holds {other[0]}, and the catalogue's semantic IDs are called "
                    f"{self.catalog.names.name(0, 0)}: make it with the names of these prompts"
                )
        return read

    @cached_property
    def _bos(self) -> int | None:
        """What the tokenizer itself puts in front of a text."""
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None and self.tokenizer(_MARK)["input_ids"][:1] == [bos] else None

    @cached_property
    def _name(self) -> re.Pattern[str]:
        if not self.catalog.codebook_sizes:
            return _NOTHING
        return self.catalog.names.any_name(self.catalog.num_levels)

    @cached_property
    def _items(self) -> re.Pattern[str]:
        if not self.catalog.codebook_sizes:
            return _NOTHING
        return self.catalog.names.any_item(self.catalog.num_levels)


def answers_of(
    catalog: Catalog, targets: Int[Tensor, "N T"], end_of_turn: list[int]
) -> list[list[int]]:
    """What the model is to write behind each prompt: the codes of the items in turn, each with what
    ends it, further ones with what begins them, then the end of its turn. -1 is no item.

    >>> from recast.items.catalog import build_catalog
    >>> from recast.items.names import SidNames
    >>> names = SidNames(begin="(", end=")")
    >>> catalog = build_catalog([[1, 0], [0, 2]], (4, 8), names=names)
    >>> answers_of(catalog, torch.tensor([[1, 0], [0, -1]]), [0])
    [[2, 8, 15, 14, 3, 6, 15, 0], [3, 6, 15, 0]]
    """
    begin, end = list(catalog.begin_tokens), list(catalog.end_tokens)
    written, lengths = catalog.tokens.tolist(), catalog.lengths.tolist()
    answers = []
    for items in targets.tolist():
        codes = [written[item][: lengths[item]] for item in items if item >= 0]
        parts = [begin * (place > 0) + some + end for place, some in enumerate(codes)]
        answers.append([token for part in [*parts, end_of_turn] for token in part])
    return answers


def _is_kept(system: str, text: str) -> bool:
    """Whether a rendered text holds a system message; templates read modes out of it (SmolLM3)."""
    return all(part.strip() in text for part in re.split(r"/(?:no_)?think\b", system))


_NOTHING = re.compile(r"(?!)")
_ANY_NAME = re.compile(r"<(?:[a-z]+_)?[a-h]_[0-9]+>")
"""How the field names semantic IDs (MiniOneRec, OpenOneRec)."""
