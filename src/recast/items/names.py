"""How semantic IDs are named in text: a pattern in, the names of all codes out, and back."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from recast.types import require

_REMEDY = "give a text with {level} and then {code}, once each, such as <{level}_{code}>"
_MOST_LEVELS = len(string.ascii_lowercase)


@dataclass(frozen=True, kw_only=True, slots=True)
class SidNames:
    """What the code c of level l is called, and what stands around the names of an item.

    A level is a letter, from a to z, as in MiniOneRec (arXiv 2510.24431); OpenOneRec's names are
    `SidNames(pattern="<s_{level}_{code}>", begin="<|sid_begin|>", end="<|sid_end|>")`.
    Raises `RecastError` for a pattern that does not tell levels and codes apart.
    """

    pattern: str = "<{level}_{code}>"
    begin: str = ""
    end: str = ""

    def __post_init__(self) -> None:
        before, level, rest = self.pattern.partition("{level}")
        between, code, after = rest.partition("{code}")
        parts = before + between + after
        fits = bool(level and code and after) and not set("{}") & set(parts)
        # A digit beside the code would be read as one of its own.
        fits = fits and not between[-1:].isdigit() and not after[:1].isdigit()
        require(fits, "pattern of the names", self.pattern, _REMEDY)

    def name(self, level: int, code: int) -> str:
        """Of one code.

        >>> SidNames().name(1, 159)
        '<b_159>'
        """
        letter = string.ascii_lowercase[level]
        return self.pattern.replace("{level}", letter).replace("{code}", str(code))

    def spell(self, codes: Sequence[int]) -> str:
        """One semantic ID, with what stands around it.

        >>> SidNames(begin="[", end="]").spell((60, 159))
        '[<a_60><b_159>]'
        """
        names = [self.name(level, code) for level, code in enumerate(codes)]
        return "".join([self.begin, *names, self.end])

    def of(self, codebook_sizes: Sequence[int]) -> list[str]:
        """Of all codes, level by level, then what begins and what ends an item, if anything does.

        Raises `RecastError` for more levels than there are letters.

        >>> SidNames(end="<end>").of((2, 1))
        ['<a_0>', '<a_1>', '<b_0>', '<end>']
        """
        remedy = f"a tokenizer names {_MOST_LEVELS} at most, from a to z"
        count = len(codebook_sizes)
        require(count <= _MOST_LEVELS, "levels of semantic IDs", count, remedy)
        sizes = enumerate(codebook_sizes)
        names = [self.name(level, code) for level, size in sizes for code in range(size)]
        return names + [word for word in (self.begin, self.end) if word]


PLAIN = SidNames()


def pattern_of(names: Sequence[str]) -> str | None:
    """The pattern that these names, of the levels a, b, ... in turn, were made by; None if by none.

    >>> pattern_of(["<s_a_60>", "<s_b_159>"])
    '<s_{level}_{code}>'
    """
    patterns = set()
    for level, name in enumerate(names):
        letter = string.ascii_lowercase[level % _MOST_LEVELS]
        found = re.fullmatch(rf"(.*){letter}([^0-9]*)[0-9]+([^0-9]+)", name, re.ASCII | re.DOTALL)
        patterns.add(found and "{}{{level}}{}{{code}}{}".format(*found.groups()))
    return patterns.pop() if len(patterns) == 1 and len(names) <= _MOST_LEVELS else None
