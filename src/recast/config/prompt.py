"""What a policy reads besides the items: `sft` sets it, the policy's folder keeps it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from recast.config.check import check_breaks, check_settings, within
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
    and the ID behind it (both); unset: sids, of a catalogue of titles titles."""
    template: str | None = None
    """User message of a history, with {history} where the items stand."""
    item: str | None = None
    """What an item of a history is written in, with {item} where it stands; unset: itself."""
    separator: str | None = None
    """What stands between the items of a history; unset: a comma and a space."""
    plain: bool | None = None
    """Read the message of a history as it is, not through the tokenizer's chat template."""

    def __post_init__(self) -> None:
        check_settings(self)
        within(self, 1, MOST_PROMPT, "max_tokens")
        for name in ("system", "suffix", "prefix", "template", "item", "separator"):
            check_breaks(f"prompt.{name}", getattr(self, name))
        need = "write {history} once, where the items stand"
        fits = self.template is None or self.template.count("{history}") == 1
        require(fits, "prompt.template", self.template, need)
        fits = self.item is None or self.item.count("{item}") == 1
        require(fits, "prompt.item", self.item, "write {item} once, where an item stands")
        need = "it is part of the chat template, and prompt.plain leaves that out: leave one out"
        require(not (self.plain and self.system), "prompt.system", self.system, need)

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
