"""What a policy reads besides the items: `sft` sets it, the policy's folder keeps it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from recast.config.check import check_settings, within
from recast.errors import require

HistoryAs = Literal["sids", "titles", "both"]
"""What an item of a history is rendered as."""

MOST_PROMPT = 2**20
"""Tokens: four times the longest context of a published model that fits one GPU."""

TEMPLATE = "These items were used, the oldest first: {history}\nWhich item comes next?"


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How rows are rendered; unset as a whole: events as BOS and items, rows with the defaults."""

    system: str | None = None
    """Text of the system message, in place of a row's own; unset: the row's own, or none."""
    suffix: str | None = None
    """What the last user message ends in, such as ` /no_think`."""
    prefix: str | None = None
    """Text between the prompt and the item, such as an empty thought."""
    max_tokens: int | None = None
    """Tokens of a prompt at most: of a longer one the oldest items of the history are left out;
    unset: what the model's context leaves."""
    history: HistoryAs | None = None
    """How an item of a history is written: its semantic ID (sids), its text (titles), or the text
    and the ID behind it (both); unset: sids."""
    template: str | None = None
    """User message of a history, with {history} where the items stand, a comma between them."""

    def __post_init__(self) -> None:
        check_settings(self)
        within(self, 1, MOST_PROMPT, "max_tokens")
        for name in ("system", "suffix", "prefix", "template"):
            text = getattr(self, name) or ""
            escape = re.search(r"\\[nt]", text)
            need = "a shell passes backslash and letter on: write a line break, in bash $'...'"
            require(escape is None, f"prompt.{name}", text, need)
        need = "write {history} once, where the items stand"
        fits = self.template is None or self.template.count("{history}") == 1
        require(fits, "prompt.template", self.template, need)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not left open."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def is_set(self) -> bool:
        return bool(self.given)


UNSET = PromptConfig()
"""Events are BOS and items."""
