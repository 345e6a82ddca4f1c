"""A zip of a data set: what is read of it out of it, into a folder that goes again."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from recast.run.reading import UNPACKING, reason_of
from recast.types import RecastError

_WHOLE = ("ratings.dat", "movies.dat", "ratings.csv", "movies.csv")
_ENDINGS = (".inter", ".item")
_OTHER = "u.item"  # of MovieLens-100K, whose zip has a reader of its own
_LARGEST = 2**33
"""Bytes of a member; the ratings of MovieLens 32M have 2**30."""


def is_folder(file: str) -> bool:
    """Whether a zip holds what a format of whole folders reads; what is no zip does not, and the
    reader of MovieLens-100K refuses it."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(map(_is_read, archive.namelist()))
    except (*UNPACKING, OSError, ValueError):
        return False


def _is_read(name: str) -> bool:
    base = PurePosixPath(name).name
    is_named = base in _WHOLE or base.endswith(_ENDINGS)
    return is_named and base != _OTHER and not base.startswith(".")


@contextmanager
def unpacked(file: str) -> Iterator[Path]:
    """A temporary folder with those members of a zip, and its name for `file` in errors.

    Raises `RecastError` for a damaged or an encrypted archive and for one that unpacks to too much.
    """
    with TemporaryDirectory(prefix="recast-") as folder:
        try:
            with zipfile.ZipFile(file) as archive:
                for name in filter(_is_read, archive.namelist()):
                    target = Path(folder) / PurePosixPath(name).name
                    if target.exists():
                        raise ValueError(f"it holds {target.name} twice")
                    with archive.open(name) as stream, target.open("wb") as copy:
                        while piece := stream.read(2**20):
                            if copy.tell() + len(piece) > _LARGEST:
                                raise ValueError(f"{name} unpacks to more than {_LARGEST:,} bytes")
                            copy.write(piece)
        except (*UNPACKING, ValueError) as error:
            raise RecastError(
                f"{file} cannot be unpacked ({reason_of(error)}): fetch it again"
            ) from error
        try:
            yield Path(folder)
        except RecastError as error:
            raise RecastError(str(error).replace(folder, file)) from error
