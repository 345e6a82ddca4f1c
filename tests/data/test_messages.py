from __future__ import annotations

import json
from typing import Any

import pytest

from recast.data.messages import Chat, read_chat, read_literal, without_answer
from recast.types import RecastError

SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "Ask \u00e9"}
ANSWER = {"role": "assistant", "content": "A"}


def test_json_python_and_structs_say_the_same() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("Ask", " \u00e9")]}]
    for cell in (json.dumps([SYSTEM, *parts]), [SYSTEM, *parts]):
        assert read_chat(cell, "row 1") == Chat([SYSTEM, USER], False)
    # What JSON does not know: single quotes, None, True.
    python = str([SYSTEM | {"name": None, "seen": True}, *parts])
    assert read_chat(python, "row 1") == Chat([SYSTEM, USER], True)


def test_the_last_message_is_the_answer_if_it_is_the_assistants() -> None:
    prompt, answer = without_answer([SYSTEM, USER, ANSWER], "row 1")
    assert (json.loads(prompt), answer) == ([SYSTEM, USER], "A")
    turns = [USER, ANSWER, USER]
    assert without_answer(turns, "row 1") == (json.dumps(turns, ensure_ascii=False), None)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([USER, ANSWER, ANSWER], "row 1 holds two answers at the end: give messages that end with"),
        ([ANSWER], "row 1 holds an answer and no prompt"),
        ([SYSTEM, ANSWER], "row 1 holds no message but the system's"),
        ([SYSTEM], "row 1 holds no message but the system's"),
        ([{"role": "user", "content": "\ud800"}], "half a character: write them anew"),
    ],
)
def test_messages_that_ask_nothing_are_one_line(messages: list[Any], said: str) -> None:
    with pytest.raises(RecastError, match=said):
        without_answer(messages, "row 1")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("[{'role': open('/tmp/x'), 'content': 'a'}]", "neither JSON nor a literal: give a JSON"),
        ("[" * 100_000, "neither JSON nor a literal"),
        ("'" + "a" * 2**20 + "'", "no JSON, and too long for a Python literal"),
        ('"' + "a" * 2**24 + '"', "characters, 16,777,216 are read at most"),
        ("{}", "is {}, no messages"),
        ("[]", r"is \[\], no messages"),
        ("[1]", r"is \[1\], no messages"),
        (7, "is 7, no messages"),
        (None, "is None, no messages"),
        ([{"role": "user"}], "has no role or no text"),
        ([{"content": "a"}], "has no role or no text"),
        ([{"role": "user", "content": [{"type": "image", "text": "a"}]}], "has no role or no text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "has no role or no text"),
        ([{"role": 1, "content": "a"}], "has no role or no text"),
    ],
)
def test_what_is_no_chat_is_one_line(cell: Any, said: str) -> None:
    with pytest.raises(RecastError, match=said) as raised:
        read_chat(cell, "file, row 1, column 'messages'")
    assert str(raised.value).startswith("file, row 1")
    assert len(str(raised.value)) < 300


def test_literals_are_read_and_never_run() -> None:
    assert read_literal(" ['a', 1] ") == ["a", 1]
    assert read_literal("'\\d'") == "\\d"  # Python warns of such a backslash
    for code in ("__import__('os')", "1 +", "a", "[x for x in [1]]", "\0"):
        assert read_literal(code) is None
