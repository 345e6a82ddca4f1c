from __future__ import annotations

import pytest

from recast.items.names import SidNames, pattern_of
from recast.types import RecastError


@pytest.mark.parametrize("pattern", ["<{level}_{code}>", "<s_{level}_{code}>", "<|{level}{code}|>"])
def test_names_are_read_as_they_are_written(pattern: str) -> None:
    names = SidNames(pattern=pattern)
    assert pattern_of([names.name(level, 10 * level) for level in range(26)]) == pattern


@pytest.mark.parametrize(
    "names",
    [
        *(["<a_1>", "<a_2>"], ["<b_1>"], ["<a_1>", "<s_b_2>"], ["<a_1>", "<b_-2>"]),
        *(["<a_>"], ["a_1"], ["<A_1>"], ["<1_1>"], ["<a_\u0661>"], [""], []),
    ],
)
def test_what_is_no_name_has_no_pattern(names: list[str]) -> None:
    assert pattern_of(names) is None


@pytest.mark.parametrize(
    "pattern",
    ["<{level}>", "<{code}_{level}>", "<{level}_{code}", "<{level}{{code}>", "<{level}{code}0>"],
)
def test_a_pattern_that_tells_no_codes_apart(pattern: str) -> None:
    with pytest.raises(RecastError, match=r"pattern of the names is .*: give a text with \{level"):
        SidNames(pattern=pattern)
