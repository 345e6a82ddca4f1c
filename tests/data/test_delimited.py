from __future__ import annotations

import csv
import gzip
import io
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recast.data import delimited
from recast.data.delimited import read_csv
from recast.types import RecastError

COLUMNS = {"user": "u", "item": "i", "time": "t"}


def read(content: str | bytes, columns: dict[str, str] = COLUMNS) -> list[tuple[str | None, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "e.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_csv(str(file), columns)[0].rows()


def slow(content: bytes) -> list[tuple[str | None, ...]]:
    """Python's csv module on the whole text; raises `ValueError` for what is refused."""
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        header, *rows = (row for row in csv.reader(text, strict=True) if row)
    except csv.Error as error:
        raise ValueError from error
    if len(set(header)) < len(header) or not {"u", "i", "t"} <= set(header):
        raise ValueError
    if any(len(row) != len(header) for row in rows):
        raise ValueError
    picked = [[row[header.index(name)] for name in "uit"] for row in rows]
    if any("\n" in value or "\r" in value for row in picked for value in row):
        raise ValueError
    return [tuple(value or None for value in row) for row in picked]


PIECES = [b",", b'"', b"\n", b"\r\n", b"\r", b"a", b"7", b" ", b"\0", b";", b"\xc3\xa9", b"\xff"]
PIECES += [b"u1,i1,1,x\n", b'u,i,t,"x\ny"\n', b'"u""2",i,5,z\r\n', b"\xef\xbb\xbf", b"\xe2\x80\xa8"]
HEADERS = [b"u,i,t,x\n", b"t,x,i,u\r\n", b'"u",i,"t",x\n', b"u,i,t,u\n", b"\xef\xbb\xbfu,i,t,\n"]


@given(st.sampled_from(HEADERS), st.lists(st.sampled_from(PIECES), max_size=12))
@example(b"u,i,t,x\n", [b'a,b,1,7" tablet\n', b"a,c,2,ok\n", b'a,d,3,10" case\n'])
@example(b"u,i,t,x\n", [b'a,b,1,"open\n', b"a,c,2,ok\n"])
@example(b"u,i,t,x\n", [b'a,b,1,"open"x\n'])
@example(b"u,i,t,x\n", [b"a,b,1\n"])
@example(b"u,i,t,x\n", [b"a,b,1,\n", b"\n", b"\r\n", b"a,b,2,"])
@example(b"u,i,t,x\n", [b"a,b,1,x\r", b"a,b,2,x\r\r\n"])
@example(b"u,i,t,x\n", [b"a,b,1\r,x\n"])
@example(b"", [b"\n\n"])
@settings(max_examples=250, deadline=None)
def test_reference_csv_means_what_the_csv_module_says(header: bytes, pieces: list[bytes]) -> None:
    content = header + b"".join(pieces)
    try:
        expected = slow(content)
    except ValueError:
        with pytest.raises(RecastError) as caught:
            read(content)
        assert "\n" not in str(caught.value)
    else:
        assert read(content) == expected


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_rows_or_one_line(content: bytes) -> None:
    with suppress(RecastError):
        read(content)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            'a,b,1,"x\nc,d,2,y\n',
            "e.csv, row 1 (line 2): a quote is opened here and never closed: cl",
        ),
        ('\na,b,1,x\nc,d,2,"y"z\n', "e.csv, row 2 (line 4): text behind a closing quote: close"),
        ("a,b,1,x\n\n\na,b,1\n", "e.csv, row 2 (line 5) has 3 fields, the header 4: mend the row"),
        ('a,b,1,"x\n\n"\na,b,1,,\n', "e.csv, row 2 (line 5) has 5 fields, the header 4: mend"),
        (
            'a,b,1,x\n"a\n",b,2,y\n',
            "row 2, column 'u' holds a line break in quotes ('a\\n'): close",
        ),
        ('a,b,"1\r",x\n', "row 1, column 't' holds a line break in quotes"),
    ],
)
def test_what_is_refused_is_named_with_its_row(rows: str, message: str) -> None:
    with pytest.raises(RecastError) as caught:
        read("u,i,t,x\n" + rows)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"u,i,t\n", mtime=0), "e.csv is compressed by gzip: unpack it"),
        ("u,i,t\n1,2,3\n".encode("utf-16"), "e.csv is UTF-16: save it as UTF-8"),
        (b"u,i,t\n1,2,3\n1,caf\xe9,3\n", "e.csv, line 3 is not UTF-8 (invalid continuation byte)"),
        (b"u;i;t\n1;2;3\n", "no column 'u': its header is separated by semicolons, write it with"),
        (b"u\ti\tt\n1\t2\t3\n", "its header is separated by tabs, write it with commas"),
        (b"u,i,t,i\n1,2,3,4\n", "e.csv has the column 'i' more than once: rename or drop one"),
        (b"\n\n", "e.csv is empty: give a file with a header and rows"),
    ],
)
def test_files_that_are_no_csv(content: bytes, message: str) -> None:
    with pytest.raises(RecastError) as caught:
        read(content)
    assert message in str(caught.value)


def test_text_keeps_its_line_breaks_and_quotes() -> None:
    rows = 'i,title\nx,"one\ntwo, ""three"""\ny,A 7" tablet\n'
    columns = {"items_id": "i", "text 0": "title"}
    assert read(rows, columns) == [("x", 'one\ntwo, "three"'), ("y", 'A 7" tablet')]


def test_lines_of_rows_inside_quotes_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    file.write_text('u,i,t,x\na,b,1,ok\na,b,2,"7 inch\na,c,3,ok\na,d,4,10"\n')
    frame, suspects = read_csv(str(file), COLUMNS)
    assert frame.rows() == [("a", "b", "1"), ("a", "b", "2")]
    assert [tuple(s) for s in suspects] == [(2, "a,c,3,ok", "c"), (2, "a,d,4,10", "d")]


def test_batches_and_chunks_meet_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_CHUNK", 7)
    monkeypatch.setattr(delimited, "_BATCH", 3)
    lines = [f"u{n},i{n},{n}" for n in range(20)]
    expected = [tuple(line.split(",")) for line in lines]
    assert read("u,i,t\n" + "\n".join(lines)) == expected
    lines[13] = '"u13",i13,13'
    assert read("u,i,t\n" + "\r\n".join(lines) + "\n\n") == expected
    lines[17] = "u17,i17"
    with pytest.raises(RecastError, match=r"row 18 \(line 19\) has 2 fields, the header 3"):
        read("u,i,t\n" + "\n".join(lines))


def test_a_line_without_an_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_LONGEST", 1_000)
    file = tmp_path / "e.csv"
    with file.open("wb") as stream:
        stream.write(b"u,i,t\n")
        stream.truncate(2**40)  # a sparse file, of zeros
    with pytest.raises(RecastError, match=r"row 1 \(line 2\): a line is longer than 1,000 char"):
        read_csv(str(file), COLUMNS)
    limit = csv.field_size_limit()
    with pytest.raises(RecastError, match=r"a field is too long, a quote may not be closed"):
        read('u,i,t\na,b,"' + "x\n" * 900 + '"\n')
    assert csv.field_size_limit() == limit
