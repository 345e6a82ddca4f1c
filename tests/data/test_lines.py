from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from recast.data import lines
from recast.data.lines import Line, id_of, read_lines, text_of
from recast.types import RecastError

ROW = '{"a": 1}'


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("row", ['{"a": "x\\u00e9"}', r"{u'a': u'x\xe9'}"])
def test_json_and_literals_plain_and_packed(tmp_path: Path, row: str, pack: type) -> None:
    file = tmp_path / "rows"  # the name says nothing
    file.write_bytes(pack(f"\ufeff{row}\n\n {row}".encode()))
    assert list(read_lines(file)) == [Line(1, {"a": "x\xe9"}), Line(3, {"a": "x\xe9"})]


def test_odd_escapes_of_literals_are_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_text(r"{'a': 'D:\games'}")  # Python warns of \g
    assert list(read_lines(file)) == [Line(1, {"a": r"D:\games"})]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (f"{ROW}\n[1]", r"line 2 is no object \(it holds a list\)"),
        ("[", r"line 1 is no object"),
        (f'{ROW}\n{{"a": 1', r"line 2 is no object \(no JSON, Expecting ',' delimiter at char"),
        (f"{ROW}\n{{'a': 1}}", r"line 2 is no object \(no JSON"),
        ("{'a': open('x')}", r"line 1 is no object \(no Python literal; code is never run\)"),
        ("{'a': 1}\n{'a': ", r"line 2 is no object \(no Python literal, '\{' was never closed\)"),
        ("{'a': " + "[" * 9_999, r"line 1 is no object \(no Python literal, too many nested"),
        ("{'a': 1" + "+1" * 9_999 + "}", r"line 1 is no object"),
        ('{"a": ' + "[" * 99_999, r"line 1 is no object"),
        (" \n", "is empty: give one object a line"),
        ("", "is empty: give one object a line"),
        (b"\xff{}", r"line 1 is no object \('utf-8' codec"),
        (
            gzip.compress(b'{"a": 1}\n' * 9_999, mtime=0)[:60],
            "is damaged behind line .*: fetch it again",
        ),
        (b"\x1f\x8b\x08no gzip at all, no", "is damaged behind line 0"),
    ],
)
def test_what_is_no_object(tmp_path: Path, content: str | bytes, error: str) -> None:
    file = tmp_path / "rows.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecastError, match=error):
        list(read_lines(file))


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_LONGEST", 20)
    file = tmp_path / "rows.json"
    file.write_text(f"{ROW}\n" + '{"a": "' + "x" * 99)
    with pytest.raises(RecastError, match=r"line 2 is no object \(it is longer than 20 bytes\)"):
        list(read_lines(file))
    with pytest.raises(RecastError, match="none is not there: give a file of lines"):
        list(read_lines(tmp_path / "none"))


def test_ids_and_texts() -> None:
    file = Path("f")
    assert id_of(Line(3, {"id": 7}), "id", file) == "7"
    assert id_of(Line(3, {"id": " B7\n"}), "id", file) == "B7"
    assert id_of(Line(3, {"id": ""}), "id", file, may_lack=True) is None
    with pytest.raises(RecastError, match=r"f, line 3 has no 'id' \(it holds b, c\): mend the lin"):
        id_of(Line(3, {"b": 1, "c": 2}), "id", file)
    for value in (7.0, True, ["7"], json.loads(r'"\ud800"')):
        with pytest.raises(
            RecastError, match=r"f, line 3: id is .*: give a UTF-8 text or an integ"
        ):
            id_of(Line(3, {"id": value}), "id", file)
    assert text_of(json.loads(r'["a\ud800", null, {"b": 1}, true, 2.5]')) == "a? 2.5"


def test_a_large_file_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(f"{ROW}\n" * 2_000)
    list(read_lines(file))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(lines, "LINE_EVERY_S", 0)
    list(read_lines(file))
    assert capsys.readouterr().out.startswith("rows.json: ")
