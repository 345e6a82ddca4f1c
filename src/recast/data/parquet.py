"""Parquet without surprises: a file in, its columns and rows out, or what is wrong with it.

A damaged file can make polars panic, or ask for 2**61 bytes and end the process, which nobody can
catch. So polars sees a file of ours only when it is as it was written, and any other one first in a
process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from recast.run.environment import memory_gib
from recast.run.fingerprint import check_stamp
from recast.run.reading import reason_of
from recast.types import RecastError

_BYTES_PER_ROW = 100
"""Of memory that an event takes at least while it is prepared: ids as text, its columns, a sort."""

_SHARE = 0.25
"""Of the memory, for the columns of a file as they are read: preparing holds them several times."""

_TRIAL = """
import json, sys
file, most, memory, streamed, *chosen = sys.argv[1:]
import polars
try:
    import resource
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (int(memory), resource.RLIM_INFINITY))
except ImportError:  # a system that knows none
    limit = lambda: None
try:
    scan = polars.scan_parquet(file, glob=False)
    names, num_rows = scan.collect_schema().names(), scan.select(polars.len()).collect().item()
    if num_rows <= int(most):
        limit()
        columns = [name for name in names if name in chosen or not chosen]
        if streamed == "True":
            for batch in scan.select(columns).collect_batches(chunk_size=4096):
                pass
        else:
            scan.select(columns).collect(engine="streaming")
    said = {"names": names, "num_rows": num_rows}
except BaseException as error:
    said = {"kind": type(error).__name__, "text": str(error)}
print(json.dumps(said))
"""


class Contents(NamedTuple):
    """What a Parquet file says that it holds."""

    names: list[str]
    num_rows: int


def try_parquet(file: Path, columns: tuple[str, ...] = (), *, streamed: bool = False) -> Contents:
    """Read a file in a process of its own: these columns of it as far as it has them, or all; one
    that is `streamed` may be larger than the memory.

    Raises `ValueError` for what cannot be read and `RecastError` for more than the memory holds: a
    file of a few kilobytes can state and hold any number of rows, and unpack to any size.
    """
    memory = memory_gib()
    most = int(2**62 if memory is None else memory * 2**30 / _BYTES_PER_ROW)
    command = [sys.executable, "-P", "-W", "ignore", "-c", _TRIAL, str(file.absolute()), str(most)]
    command += [str(bound := int((memory or 2**20) * _SHARE * 2**30)), str(streamed), *columns]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if b"memory allocation" in done.stderr or b"MemoryError" in done.stderr + done.stdout:
        raise RecastError(
            f"{file} unpacks to more than {bound / 2**30:.3g} GiB, or is damaged: give fewer rows "
            "and shorter texts, or use a larger machine"
        )
    if done.returncode:
        raise ValueError("reading it ends the process that does")
    said = json.loads(done.stdout)
    if "kind" in said:
        raise ValueError(reason_of(pl.exceptions.ComputeError(said["text"] or said["kind"])))
    found = Contents(**said)
    if found.num_rows > most:
        raise RecastError(
            f"{file} holds {found.num_rows:,} rows, too many for the {memory} GiB of memory: give "
            "fewer rows or use a larger machine"
        )
    return found


def check_parquet(file: Path, facts: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless a file of ours is as the `facts` of its folder say; where they say
    nothing, as those of earlier releases, unless it can be read."""
    if not file.is_file():  # polars would wait for a pipe
        raise ValueError(f"{file.name} is no plain file")
    if check_stamp(file, facts) is None:
        try_parquet(file)


def read_parquet(file: Path, facts: Mapping[str, Any]) -> pl.DataFrame:
    """A file of ours, once `check_parquet` has nothing against it."""
    check_parquet(file, facts)
    return pl.read_parquet(file.absolute(), glob=False)
