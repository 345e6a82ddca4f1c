"""CSV as Python's csv module reads it with `strict=True`: a file and columns in, texts out.

Where every line has as many commas as the header and there is no quote, nothing is left to decide
and polars reads; otherwise the csv module does, row by row. An empty field is null in both. Data
sets of the field in which a quote is a character are read by polars alone.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from recast.data.columns import choose_columns, named
from recast.run.reading import reason_of
from recast.types import RecastError

_LONGEST = 2**26
"""Characters of a line and of a field; bounds the memory for a file that is no text."""

_CHUNK = 2**22
_BATCH = 50_000
_SUSPECTS = 1_000

_SIGNATURES = {
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"PAR1": "a Parquet file: name it .parquet",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
}

_REASONS = {
    "unexpected end of data": "a quote is opened here and never closed",
    "expected after": "text behind a closing quote",
    "field limit": "a field is too long, a quote may not be closed",
}
"""Parts of the csv module's messages, and what they mean."""


_KEYS, _TEXTS = ("item", "row_id", "targets"), ("text", "prompt")
"""How our names of columns begin that tell a row by its id, and that may hold line breaks."""


class Suspect(NamedTuple):
    """A line inside a quoted field with as many commas as a row has: a stray quote may have
    swallowed that row."""

    row: int
    line: str
    id: str


def read_csv(file: str, columns: dict[str, str]) -> tuple[pl.DataFrame, list[Suspect]]:
    """The columns named (`columns` maps our names to the file's), and lines that look swallowed.

    Rows count from 1 without the header and blank lines. Raises `RecastError` for what is no UTF-8,
    quotes that do not match, rows of another length than the header, a name twice, and a line
    break in a column that holds no text.
    """
    path = Path(file).absolute()
    with _opened(file) as rows:
        names = next(rows).fields
        columns = choose_columns(file, names, columns)
        if not _is_plain(path):
            return _read_rows(file, names, rows, columns)
    # Absolute and without globs: polars would read a leading ~ and brackets as patterns.
    schema = dict.fromkeys(names, pl.String)
    scan = pl.scan_csv(path, schema=schema, quote_char=None, glob=False)
    chosen = scan.select(pl.col(column).alias(name) for name, column in columns.items())
    return chosen.collect(engine="streaming"), []


def read_header(file: str) -> list[str]:
    """Names of the columns. Raises `RecastError` as `read_csv` does."""
    with _opened(file) as rows:
        return next(rows).fields


def read_unquoted(
    file: Path, row: str, *, separator: str = ",", names: tuple[str, ...] = ()
) -> pl.DataFrame:
    """Every field as text, of a data set's own file in which a quote is a character; `names` are
    those of a file without a header, null in what a row lacks. Raises `RecastError`, with `row`
    for what a row should be."""
    try:
        scan = pl.scan_csv(
            file.absolute(),
            separator=separator,
            has_header=not names,
            schema=dict.fromkeys(names, pl.String) if names else None,
            missing_columns="insert" if names else "raise",
            quote_char=None,
            infer_schema=False,
            glob=False,
        )
        return scan.collect(engine="streaming")
    except (PolarsError, OSError) as error:
        raise RecastError(f"{file} cannot be read ({reason_of(error)}): give {row}") from error


@contextmanager
def _opened(file: str) -> Iterator[Iterator[_Row]]:
    path = Path(file).absolute()
    with path.open("rb") as stream:
        head = stream.read(4)
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            raise RecastError(f"{file} is {kind}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream, _long_fields():
            yield _rows(file, stream)
    except UnicodeDecodeError as error:
        raise RecastError(
            f"{file}, line {_undecodable(path)} is not UTF-8 ({error.reason}): save it as UTF-8"
        ) from error


class _Row(NamedTuple):
    number: int
    has_break: bool
    fields: list[str]


def _rows(file: str, stream: TextIO) -> Iterator[_Row]:
    """The header as row 0, then every row that is not blank, all of one length."""
    reader = csv.reader(_lines(stream), strict=True)
    number, width = 0, 0
    while True:
        line = reader.line_num + 1
        where = f"{file}, row {number} (line {line})" if number else f"{file}, header"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            reason = next((r for part, r in _REASONS.items() if part in str(error)), str(error))
            raise RecastError(
                f'{where}: {reason}: close the quote, and write one inside a quoted field as ""'
            ) from error
        if fields is None:
            break
        if not fields:
            continue
        if number == 0:
            width = len(fields)
        if len(fields) != width:
            raise RecastError(
                f"{where} has {len(fields)} fields, the header {width}: "
                "mend the row, and quote fields that hold commas"
            )
        yield _Row(number, reader.line_num > line, fields)
        number += 1
    if number == 0:
        raise RecastError(f"{file} is empty: give a file with a header and rows")


def _lines(stream: TextIO) -> Iterator[str]:
    while line := stream.readline(_LONGEST + 1):
        if len(line) > _LONGEST:
            raise csv.Error(f"a line is longer than {_LONGEST:,} characters, as in no text")
        yield line


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module's own limit is 131,072 characters, and one for the whole process."""
    before = csv.field_size_limit(_LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_rows(
    file: str, names: list[str], rows: Iterator[_Row], columns: dict[str, str]
) -> tuple[pl.DataFrame, list[Suspect]]:
    places = {name: names.index(column) for name, column in columns.items()}
    key = next((p for name, p in places.items() if name.startswith(_KEYS)), 0)
    schema = dict.fromkeys(columns, pl.String)
    batches, suspects = [pl.DataFrame(schema=schema)], list[Suspect]()
    while batch := list(islice(rows, _BATCH)):
        for row in batch:
            if row.has_break and len(suspects) < _SUSPECTS:
                suspects += _suspects(row, len(names), key)
            for name, place in places.items() if row.has_break else ():
                value = row.fields[place]
                if not name.startswith(_TEXTS) and ("\n" in value or "\r" in value):
                    raise RecastError(
                        f"{file}, row {row.number}, column {named(columns[name])} holds a line "
                        f"break in quotes ({named(value)}): close the quote where the value ends"
                    )
        values = {name: [row.fields[place] for row in batch] for name, place in places.items()}
        batches.append(pl.DataFrame(values, schema=schema))
    frame = pl.concat(batches)
    return frame.select(pl.when(pl.col(n) != "").then(pl.col(n)) for n in columns), suspects


def _suspects(row: _Row, width: int, place: int) -> Iterator[Suspect]:
    for field in row.fields:
        for line in field.splitlines()[1:]:
            if line.count(",") == width - 1:
                yield Suspect(row.number, line, line.split(",")[place].strip())


def _is_plain(path: Path) -> bool:
    """Whether every reader of CSV would read the same: UTF-8 without a quote or a lone carriage
    return, every line with as many commas as the first, and with one at least."""
    rest, num_commas = b"", 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            lines, newline, rest = (rest + chunk).rpartition(b"\n")
            num_commas = num_commas or lines.partition(b"\n")[0].count(b",")
            if newline and not _is_regular(lines + newline, num_commas):
                return False
            if len(rest) > _LONGEST:
                return False
    return not rest or _is_regular(rest + b"\n", num_commas)


def _is_regular(lines: bytes, num_commas: int) -> bool:
    if num_commas == 0 or b'"' in lines or lines.count(b"\r") != lines.count(b"\r\n"):
        return False
    try:
        lines.decode()
    except UnicodeDecodeError:
        return False
    codes = np.frombuffer(lines, dtype=np.uint8)
    marks = codes[(codes == ord(",")) | (codes == ord("\n"))]
    row = np.frombuffer(b"," * num_commas + b"\n", dtype=np.uint8)
    return len(marks) % len(row) == 0 and bool((marks.reshape(-1, len(row)) == row).all())


def _undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8."""
    number = 1
    with path.open("rb") as stream:
        while line := stream.readline(_LONGEST):
            try:
                line.decode()
            except UnicodeDecodeError:
                break
            number += line.endswith(b"\n")
    return number
