"""OpenOneRec's items: `*_pid2sid.parquet` in, items by number out, found by pid or by SID.

`pid` is a whole number, `sid` a list of codes. Files of one kind share one space of pids each: the
same pid, or the same SID, means another item in another file.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from recast.data.row_tables import ITEM_SCHEMA, where
from recast.data.tables import read_columns
from recast.types import RecastError

SUFFIX, CAPTIONS = "pid2sid.parquet", "pid2caption.parquet"
NAMES = {"pattern": "<s_{level}_{code}>", "begin": "<|sid_begin|>", "end": "<|sid_end|>"}
_MOST_CODES = 2**31
_REMEDY = "use the file as it was published"


class Domain:
    """The items of one map of pids: I of them, of SIDs of L codes, numbered from `start` on."""

    def __init__(self, file: Path, start: int) -> None:
        self.file, self.start = file, start
        self.name = file.name.removesuffix(SUFFIX).rstrip("_-.") or "items"
        frame, _ = read_columns(str(file), {"pid": "pid", "sid": "sid"})
        self.pids, self.codes, self.num_copies = _read(file, frame)
        self.order = np.argsort(self.pids, kind="stable")
        levels = range(self.codes.shape[1])
        self.pattern = re.compile(
            "".join(f"<s_{chr(97 + level)}_(\\d{{1,9}})>" for level in levels)
        )
        self.sizes = self.codes.max(0) + 1
        self.keys = self._keys(self.codes)
        self.key_order = np.argsort(self.keys, kind="stable")
        self.num_shared = len(self.keys) - len(np.unique(self.keys))

    def __len__(self) -> int:
        return len(self.pids)

    def by_pid(self, pids: np.ndarray) -> np.ndarray:
        """Items of pids, -1 for unknown ones."""
        found = find(self.pids, pids, self.order)
        return np.where(found < 0, -1, found + self.start)

    def by_sid(self, text: str) -> tuple[list[int], int]:
        """The items of the SIDs that a text writes, in order, -1 for unknown ones; and how many
        SIDs it breaks off. One that several pids share is the first of them."""
        matches = self.pattern.findall(text)
        num_broken = text.count("<s_a_") - len(matches)
        if not matches:
            return [], num_broken
        codes = np.array(matches, dtype=np.int64).reshape(len(matches), -1)
        inside = (codes < self.sizes).all(1)
        found = find(self.keys, self._keys(np.where(inside[:, None], codes, 0)), self.key_order)
        return np.where(inside & (found >= 0), found + self.start, -1).tolist(), num_broken

    def spell(self, items: np.ndarray) -> str:
        """Items of this domain as texts write them."""
        begin, end = NAMES["begin"], NAMES["end"]
        written = []
        for codes in self.codes[items - self.start].tolist():
            names = "".join(f"<s_{chr(97 + level)}_{code}>" for level, code in enumerate(codes))
            written.append(f"{begin}{names}{end}")
        return "".join(written)

    def _keys(self, codes: np.ndarray) -> np.ndarray:
        keys = np.zeros(len(codes), dtype=np.int64)
        for level, size in enumerate(self.sizes.tolist()):
            keys = keys * size + codes[:, level]
        return keys

    def table(self, prefix: str, captions: pl.DataFrame | None) -> pl.DataFrame:
        frame = pl.DataFrame({"pid": self.pids, "domain": self.name})
        frame = frame.with_columns(sid=pl.Series(self.codes.tolist(), dtype=ITEM_SCHEMA["sid"]))
        text = pl.lit("").alias("text")
        if captions is not None:
            frame = frame.join(captions, on="pid", how="left", maintain_order="left")
            text = pl.col("text").fill_null("")
        frame = frame.with_columns(text, item_id=pl.lit(prefix) + pl.col("pid").cast(pl.String))
        return frame.select(pl.col(name).cast(kind) for name, kind in ITEM_SCHEMA.items())


def read_domains(files: list[Path]) -> list[Domain]:
    """Of every map of pids among these files, in their order. Raises `RecastError`."""
    domains: list[Domain] = []
    for file in files:
        if not file.name.endswith(SUFFIX):
            continue
        start = sum(map(len, domains))
        domains.append(Domain(file, start))
        if domains[-1].name in [domain.name for domain in domains[:-1]]:
            raise RecastError(
                f"{file} is the second map of pids called {domains[-1].name!r}: remove one of them"
            )
    if len({domain.codes.shape[1] for domain in domains}) > 1:
        lengths = ", ".join(f"{domain.file} {domain.codes.shape[1]}" for domain in domains)
        raise RecastError(f"SIDs have one number of codes, here by file {lengths}: {_REMEDY}")
    return domains


def read_captions(file: Path) -> pl.DataFrame:
    """`pid` and `text`, the first of a pid."""
    frame, _ = read_columns(str(file), {"pid": "pid", "dense_caption": "dense_caption"})
    if not frame["pid"].dtype.is_integer() or frame["dense_caption"].dtype != pl.String:
        raise RecastError(
            f"{file} holds {dict(frame.schema)}, no whole numbers and texts: {_REMEDY}"
        )
    text = pl.col("dense_caption").str.replace_all(r"\s+", " ").str.strip_chars()
    frame = frame.select(pl.col("pid").cast(pl.Int64, strict=False), text=text).drop_nulls()
    return frame.unique("pid", keep="first", maintain_order=True)


def find(keys: np.ndarray, values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Of each value the number of the first equal key, of one at least, -1 where there is none;
    `order` is what `np.argsort(keys, kind="stable")` gives.

    >>> keys = np.array([7, 5, 7])
    >>> find(keys, np.array([5, 7, 8]), np.argsort(keys, kind="stable")).tolist()
    [1, 0, -1]
    """
    place = np.searchsorted(keys, values, sorter=order).clip(max=len(keys) - 1)
    return np.where(keys[order[place]] == values, order[place], -1)


def _read(file: Path, frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, int]:
    """Pids, codes, and rows that say what an earlier one did."""
    pid, sid = frame["pid"], frame["sid"]
    is_codes = isinstance(sid.dtype, pl.List | pl.Array) and sid.dtype.inner.is_integer()
    if not (pid.dtype.is_integer() and is_codes):
        raise RecastError(
            f"{file} holds pid {pid.dtype} and sid {sid.dtype}, no whole numbers and "
            f"lists of them: {_REMEDY}"
        )
    if frame.is_empty():
        raise RecastError(f"{file} holds no row: {_REMEDY}")
    pid = pid.cast(pl.Int64, strict=False)  # null beyond it
    sid = sid.cast(pl.List(pl.Int64), strict=False)
    length = int(sid.list.len()[0] or 0)
    bad = (
        pid.is_null()
        | sid.is_null()
        | (sid.list.len() != length)
        | sid.list.contains(None, nulls_equal=True)
        | (sid.list.min() < 0)
        | (sid.list.max() >= _MOST_CODES)
    ).fill_null(True)
    if length == 0 or bad.any():
        row = int(bad.arg_max() or 0)
        raise RecastError(
            f"{where(file, row, 'sid')} is {sid.to_list()[row]} of pid {frame['pid'][row]}, the "
            f"first row has {length} codes from 0 on: {_REMEDY}"
        )
    distinct = frame.with_columns(pid, sid).unique(maintain_order=True)
    twice = distinct["pid"].is_duplicated()
    if twice.any():
        one = distinct.filter(twice)["pid"][0]
        several = distinct.filter(distinct["pid"] == one)["sid"][:2].to_list()
        raise RecastError(
            f"{file}: the pid {one} has two SIDs, {several[0]} and {several[1]}: keep one of them"
        )
    codes = distinct["sid"].explode().to_numpy().reshape(len(distinct), length)
    if float(np.prod(codes.max(0).astype(float) + 1)) >= 2.0**63:
        raise RecastError(
            f"{file}: codes up to {codes.max(0).tolist()} are too many to tell apart: {_REMEDY}"
        )
    return distinct["pid"].to_numpy(), codes, len(frame) - len(distinct)
