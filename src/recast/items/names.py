"""How semantic IDs are named in text: a pattern in, the names of all codes out, and back, and where
they stand in a text."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from recast.types import require

_REMEDY = "give a text with {level} and then {code}, once each, such as <{level}_{code}>"
_MOST_DIGITS = 10
_MOST_LEVELS = len(string.ascii_lowercase)
_SEPARATED = r"[^\w<]{0,8}"
"""Between two items of a run: commas, semicolons, spaces, line breaks."""


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
    numbers: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    """What the codes of every level are called by; empty: by themselves. A tokenizer that was made
    elsewhere may know them in another order and without those that no item has."""

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

        >>> SidNames().name(1, 159), SidNames(numbers=((0, 10, 2),)).name(0, 1)
        ('<b_159>', '<a_10>')
        """
        code = self.numbers[level][code] if self.numbers else code
        letter = string.ascii_lowercase[level]
        return self.pattern.replace("{level}", letter).replace("{code}", str(code))

    def facts(self) -> dict[str, Any]:
        """As JSON holds it; without numbers where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "numbers" or value}

    def spell(self, codes: Sequence[int]) -> str:
        """One semantic ID, with what stands around it.

        >>> SidNames(begin="[", end="]").spell((60, 159))
        '[<a_60><b_159>]'
        """
        names = [self.name(level, code) for level, code in enumerate(codes)]
        return "".join([self.begin, *names, self.end])

    def number(self, level: int, word: str) -> int | None:
        """What a name of a level calls its code by; None of another word.

        >>> SidNames().number(1, "<b_159>"), SidNames().number(0, "<b_159>")
        (159, None)
        """
        letter = string.ascii_lowercase[level]
        before, _, behind = self.pattern.replace("{level}", letter).partition("{code}")
        if not word.startswith(before):
            return None
        digits = word[len(before) : len(word) - len(behind)]
        is_number = digits.isascii() and digits.isdecimal() and len(digits) < _MOST_DIGITS
        if not (is_number and word == f"{before}{int(digits)}{behind}"):
            return None
        return int(digits)

    def any_code(self, level: int) -> str:
        """A regular expression of the names of one level, whatever the code."""
        before, _, behind = self.pattern.partition("{code}")
        before = before.replace("{level}", string.ascii_lowercase[level])
        return rf"{re.escape(before)}[0-9]+{re.escape(behind)}"

    def any_name(self, num_levels: int) -> re.Pattern[str]:
        """One name, of any level or of what stands around an item."""
        around = [re.escape(word) for word in (self.begin, self.end) if word]
        return re.compile("|".join([*map(self.any_code, range(num_levels)), *around]))

    def any_item(self, num_levels: int) -> re.Pattern[str]:
        """One item, with what stands around it or without."""
        begin, end = (f"(?:{re.escape(word)})?" for word in (self.begin, self.end))
        return re.compile(begin + "".join(map(self.any_code, range(num_levels))) + end)

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


def longest_run(items: re.Pattern[str], text: str) -> list[int]:
    """Where the items (`SidNames.any_item`) of the longest run of them begin in a text.

    >>> longest_run(SidNames().any_item(1), "After <a_7> we liked <a_5>, <a_6>.")
    [21, 28]
    """
    runs: list[list[int]] = [[]]
    last = -1
    for found in items.finditer(text):
        if last < 0 or not re.fullmatch(_SEPARATED, text[last : found.start()]):
            runs.append([])
        runs[-1].append(found.start())
        last = found.end()
    return max(runs, key=len)
