"""Plain rows from a file: what is held out, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recast.data import plain_text
from recast.data.plain_text import PlainRow, read_plain_text
from recast.types import RecastError

USER, ANSWER = {"role": "user", "content": "Ask"}, {"role": "assistant", "content": "A"}


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_tenth_is_held_out_and_never_trained_on(tmp_path: Path) -> None:
    texts = [f"text {number % 25}" for number in range(30)]  # five of them twice
    lines = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "a.parquet")
    found, again = read_plain_text(lines), read_plain_text(str(tmp_path / "a.parquet"))
    assert found[1:] == again[1:]
    assert len(found.held_out) == 3
    assert not set(found.held_out) & set(found.rows)
    everything = found.held_out + found.rows
    assert {row.answer for row in everything} == set(texts)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read_plain_text(str(tmp_path / "a.jsonl.gz"))[1:] == found[1:]
    assert read_plain_text(write(tmp_path / "b.jsonl", [{"text": "one"}])).rows == []


def test_a_chat_in_every_form(tmp_path: Path) -> None:
    chat = [USER, ANSWER]
    pl.DataFrame({"messages": [chat] * 2}).write_parquet(tmp_path / "structs.parquet")
    pl.DataFrame({"messages": [json.dumps(chat)] * 2}).write_parquet(tmp_path / "texts.parquet")
    lists = write(tmp_path / "lists.jsonl", [{"messages": chat, "id": 1}] * 2)
    for file in (lists, *map(str, (tmp_path / "structs.parquet", tmp_path / "texts.parquet"))):
        (row,) = read_plain_text(file).held_out
        assert row == PlainRow(json.dumps([USER]), "A")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a", "messages": []}], r"a.jsonl holds both messages and text: keep one"),
        ([{"words": "a"}], r"a.jsonl has neither messages nor text \(it holds 'words'\)"),
        ([{"text": "a"}, {"text": " "}], r"a.jsonl, row 2, column 'text' is empty: fill or drop"),
        ([{"text": "a"}, {"text": ["b"]}], r"line 2, 'text' is \['b'\]: give a text$"),
        ([{"text": "a"}, {"text": float("nan")}], r"line 2, 'text' is nan: give a text$"),
        ([{"text": "\ud800"}], r"line 1, 'text' holds half a character"),
        ([{"messages": "hi"}], r"row 1, column 'messages' is 'hi', neither JSON nor a literal"),
        ([{"messages": [USER]}], r"row 1, column 'messages' ends without an answer: let the"),
        ([{"messages": [ANSWER]}], r"row 1, column 'messages' holds an answer and no prompt"),
        (
            [{"messages": [USER, ANSWER | {"content": "\ud800"}]}],
            r"row 1, column 'messages' holds half a character",
        ),
        ([{"text": "abcdef"}, {"text": "abcdef"}], r"holds more than 1,048,576 rows or 9 charac"),
        (["a"], r"a.jsonl, line 1 is no object"),
        ([], r"a.jsonl is empty: give one object a line"),
    ],
)
def test_rows_that_nobody_could_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], said: str
) -> None:
    if "more than" in said:
        monkeypatch.setattr(plain_text, "MOST_CHARACTERS", 9)
    with pytest.raises(RecastError, match=said):
        read_plain_text(write(tmp_path / "a.jsonl", rows))


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "a.parquet").write_text("hello")
    pl.DataFrame({"text": [1]}).write_parquet(tmp_path / "numbers.parquet")
    pl.DataFrame({"text": []}, schema={"text": pl.String}).write_parquet(tmp_path / "none.parquet")
    for name, said in (
        ("a.txt", r"ends in '.txt': give a .jsonl, .jsonl.gz or .parquet file"),
        ("a.parquet", r"a.parquet cannot be read \(.*\): give a whole file$"),
        ("numbers.parquet", r"column 'text' holds Int64: give texts"),
        ("none.parquet", r"none.parquet holds no row: give at least one"),
        ("missing.jsonl", r"missing.jsonl: no such file"),
        (".", r"is a folder: give a .jsonl, .jsonl.gz or .parquet file"),
    ):
        with pytest.raises(RecastError, match=said):
            read_plain_text(str(tmp_path / name))
