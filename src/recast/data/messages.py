"""Messages of a chat as files hold them: a cell in, messages of plain text out, the answer apart.

JSON, or the Python literals that OpenOneRec's own reader takes (nothing of them is run);
a content is a text or a list of `{"type": "text", "text": ...}` (2512.24762, RL and SFT rows).
"""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any, NamedTuple

from recast.data.columns import named
from recast.types import RecastError

_LONGEST_LITERAL = 2**20
"""Characters of a Python literal: reading one takes some hundred bytes of memory for each."""

_LONGEST = 2**24
"""Characters of messages as JSON: ten times the longest prompt of any published model."""

_BROKEN = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
"""What `json` and `ast.literal_eval` raise; the second for code, which it never runs."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
"""That chat templates know; under another name an answer would be read as a part of the prompt."""

_REMEDY = 'give a JSON list of {"role": ..., "content": ...}'


class Chat(NamedTuple):
    """Messages of a row, and whether they were Python, no JSON."""

    messages: list[dict[str, str]]
    is_python: bool


def read_chat(cell: Any, where: str) -> Chat:
    """Messages of a cell, a text or a list of structs. Raises `RecastError` at `where` for what is
    none.

    >>> read_chat('[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]', "row 1")
    Chat(messages=[{'role': 'user', 'content': 'Hi'}], is_python=False)
    """
    is_python = False
    if isinstance(cell, str):
        cell, is_python = _parsed(cell, where)
    if not (isinstance(cell, list) and cell and all(isinstance(m, dict) for m in cell)):
        raise RecastError(f"{where} is {named(cell)}, no messages: {_REMEDY}")
    messages = []
    for message in cell:
        role, content = message.get("role"), _text(message.get("content"))
        if not (isinstance(role, str) and role.strip()) or content is None:
            raise RecastError(
                f"{where}: the message {named(message)} has no role or no text: {_REMEDY}"
            )
        if role not in _ROLES:
            raise RecastError(
                f"{where}: the role {named(role)} is none of {', '.join(_ROLES)}: rename it"
            )
        messages.append({"role": role, "content": content})
    return Chat(messages, is_python)


def _parsed(text: str, where: str) -> tuple[Any, bool]:
    if len(text) > _LONGEST:
        raise RecastError(
            f"{where} has {len(text):,} characters, {_LONGEST:,} are read at most: shorten it"
        )
    try:
        return json.loads(text), False
    except _BROKEN as error:
        if len(text) > _LONGEST_LITERAL:
            raise RecastError(
                f"{where} is no JSON, and too long for a Python literal ({len(text):,} characters, "
                f"{_LONGEST_LITERAL:,} are read at most): write it as JSON"
            ) from error
    value = read_literal(text)
    if value is None:
        raise RecastError(f"{where} is {named(text)}, neither JSON nor a literal: {_REMEDY}")
    return value, True


def read_literal(text: str) -> Any:
    """The value of a Python literal of lists, dicts, texts and numbers; None for all else, code
    among it, which is never run."""
    if len(text) > _LONGEST_LITERAL:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of a backslash that escapes nothing
            return ast.literal_eval(text.strip())
    except _BROKEN:
        return None


def read_value(text: str) -> Any:
    """What JSON or, failing that, a Python literal says; None for all else."""
    try:
        return json.loads(text)
    except _BROKEN:
        return read_literal(text)


def is_whole(text: str) -> bool:
    """Whether a text is UTF-8: JSON can write half a character, which no file of ours holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(content: Any) -> str | None:
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        kinds = [part.get("type", "text") for part in content if isinstance(part, dict)]
        is_text = all(kind == "text" for kind in kinds)
        is_text = is_text and all(isinstance(part, str) for part in parts)
        return "".join(parts) if parts and is_text else None  # type: ignore[arg-type]
    return content if isinstance(content, str) else None


def without_answer(messages: list[dict[str, str]], where: str) -> tuple[str, str | None]:
    """The prompt as JSON, and the answer: the last message, if it is the assistant's.

    Raises `RecastError` for two of these at the end and for a prompt that does not end with a
    question, which nobody could answer.
    """
    answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    prompt = messages if answer is None else messages[:-1]
    if not prompt or prompt[-1]["role"] in ("assistant", "system"):
        what = {"assistant": "two answers at the end", "system": "no message but the system's"}
        said = what[prompt[-1]["role"]] if prompt else "an answer and no prompt"
        raise RecastError(
            f"{where} holds {said}: give messages that end with a user's, then one "
            "of the assistant, the answer"
        )
    return write_prompt(prompt, where), answer


def write_prompt(messages: list[dict[str, str]], where: str) -> str:
    """Messages as the JSON that `rows.parquet` holds."""
    text = json.dumps(messages, ensure_ascii=False)
    if not is_whole(text):
        raise RecastError(f"{where} holds half a character: write them anew")
    return text
