"""Room for what a run will write, asked before any work is done for it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from recast.run.files import UnwritableError

if sys.platform != "win32":
    import resource


def require_space(output: str | Path, needed: int, largest: int = 0) -> None:
    """Refuse an output whose disk has less than `needed` bytes free, or where files may not have
    `largest` bytes; where the system does not tell, there is room.

    Raises `RecastError`.
    """
    path = Path(output).resolve()
    above = next(parent for parent in (path, *path.parents) if parent.exists())
    disk, limit = shutil.disk_usage(above), _most_bytes()
    if disk.total and needed > disk.free:  # some network disks tell 0 of 0
        raise UnwritableError(
            f"{output} takes {needed:,} bytes, its disk has {disk.free:,} free: free some space or "
            "choose another output"
        )
    if limit is not None and largest > limit:
        raise UnwritableError(
            f"{output} takes a file of {largest:,} bytes, files are limited to {limit:,} here: "
            "raise that (ulimit -f)"
        )


def _most_bytes() -> int | None:
    """Of a file of this process; None: any number."""
    if sys.platform == "win32":
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit
