"""What a process stands in: streams, variables and ranks; settled, or refused in one line.

It imports neither torch nor polars, which break on what is refused here.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from contextlib import suppress

from recast.errors import RecastError

_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
_MOST_THREADS = 1024
"""Of polars, which hangs for minutes with a million."""
_PACKAGES = ("jsonargparse", "numpy", "polars", "safetensors", "torch", "transformers", "yaml")
"""Folders all: a file of such a name is another's."""


def settle() -> None:
    """Make the process independent of its caller: closed streams, warnings as errors."""
    import warnings

    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # else the next file to be opened would get what is printed
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))
    for name in [name for name in os.environ if name.startswith("JSONARGPARSE_")]:
        del os.environ[name]  # it would read settings from others, and end on a wrong value
    if _COMPILED not in os.environ:
        atexit.register(_drop_cache)
    if any("error" in option for option in sys.warnoptions):
        warnings.simplefilter("ignore")  # what a library warns of is no error of a run


def _drop_cache() -> None:
    """torch makes a folder for compiled code as soon as it is imported, and nothing is compiled."""
    with suppress(OSError, KeyError):  # not empty: of others; never made
        os.rmdir(os.environ[_COMPILED])


def drop_output() -> None:
    """What is still to be written goes nowhere; else Python would fail on it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def refuse_surroundings(*, has_ranks: bool) -> None:
    """Raise `RecastError` for variables that libraries of ours panic, hang or break on, and for
    ranks of which a verb makes no use; one that has some meets the others."""
    _refuse_variables()
    from recast.config.check import num_ranks, refuse_ranks
    from recast.run.launched import Launched, join

    try:
        if not has_ranks:
            refuse_ranks()
        elif num_ranks() > 1:
            Launched.told()
    except RecastError:  # which all of them see: one line of the first process
        if os.environ.get("RANK", "0") not in map(str, range(1, min(num_ranks(), 2**20))):
            raise
        with suppress(KeyboardInterrupt):  # of the launcher, once the first one has spoken
            time.sleep(1)  # else it would be ended before its line
        raise SystemExit(2) from None
    join()


def _refuse_variables() -> None:
    """Variables that libraries of ours panic, hang or break on."""
    if threads := os.environ.get("POLARS_MAX_THREADS", ""):
        is_count = threads.isascii() and threads.isdigit() and len(threads) <= 4
        if not (is_count and 1 <= int(threads) <= _MOST_THREADS):
            raise RecastError(
                f"POLARS_MAX_THREADS is {threads!r}: give 1 to {_MOST_THREADS}, or unset it"
            )
    for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        for name in _PACKAGES:
            if os.path.isfile(file := os.path.join(folder, f"{name}.py")):
                raise RecastError(
                    f"PYTHONPATH has {file}, which hides the package {name}: rename it"
                )
