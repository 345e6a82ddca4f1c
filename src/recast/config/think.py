"""Thoughts before the items that an evaluation lists, as OpenOneRec's benchmark draws them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from recast.config.check import check_breaks, check_settings, within
from recast.errors import require, require_range

SelectK = Literal["first_k", "top_k_by_logprobs"]
"""How the lists below several thoughts become one, as the benchmark's evaluator names it."""

MOST_THOUGHT = 2**20
"""Tokens: as many as the longest prompt."""


@dataclass(frozen=True, kw_only=True)
class ThinkConfig:
    """Thoughts before the items; defaults of OpenOneRec's recommendation/config.py."""

    thoughts: int | None = None
    """Thoughts per row, beam_width / thoughts beams below each; unset: none."""
    max_thought_tokens: int = 1000
    """Where a thought ends at the latest; `</think>` is then written for it."""
    temperature: float = 0.6
    """Of the thoughts."""
    top_p: float = 0.95
    """Of the thoughts: the fewest tokens that hold this share together; 1: all."""
    top_k: int = 50
    """Of the thoughts: so many most probable tokens; 0: all."""
    prefix: str = "\n"
    """Text between a thought and the name that begins an item."""
    select_k: SelectK = "first_k"
    """The list of a row: all beams of its first thought, then of the next (first_k), or all beams
    by their log-probability (top_k_by_logprobs)."""

    def __post_init__(self) -> None:
        check_settings(self)
        within(self, 1, 4096, "thoughts")
        within(self, 1, MOST_THOUGHT, "max_thought_tokens")
        within(self, 0, 2**31, "top_k")
        require_range("think.temperature", self.temperature, 0.01, 100)
        require_range("think.top_p", self.top_p, 0, 1, above=True)
        check_breaks("think.prefix", self.prefix)
        if self.thoughts is None:
            for field in fields(self):
                value = getattr(self, field.name)
                need = "it belongs to think.thoughts, give a number of them"
                require(value == field.default, f"think.{field.name}", value, need)

    def require_share(self, beam_width: int) -> None:
        """Raise `RecastError` unless every thought gets the same number of a row's beams."""
        fits = self.thoughts is None or beam_width % self.thoughts == 0
        need = f"each gets as many beams, give a number that divides beam_width {beam_width}"
        require(fits, "think.thoughts", self.thoughts, need)


NO_THOUGHT = ThinkConfig()
"""Items follow their prompts."""
