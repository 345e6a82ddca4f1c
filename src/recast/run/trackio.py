"""trackio: a step and its metrics in, one entry per step out, under TensorBoard's names.

Where it keeps them is trackio's to say (`TRACKIO_DIR`, `TRACKIO_SPACE_ID`); `trackio show` shows
them. A run is called by its folder and grouped by the folder around it, so that the seeds of a
method stand together.
"""

from __future__ import annotations

import sqlite3
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from recast.types import Metrics, RecastError


class TrackioRun:
    """One run of a project; one that `goes_on` gets the steps since its checkpoint once more, with
    the same values.

    Raises `RecastError` when there is none to be had.
    """

    def __init__(self, project: str, folder: Path, config: dict[str, Any], goes_on: bool) -> None:
        try:
            import trackio

            with redirect_stdout(StringIO()):  # it says where it writes
                self._run = trackio.init(
                    project=project,
                    name=str(folder),
                    group=str(folder.parent),
                    config=config,
                    resume="allow" if goes_on else "never",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        except (ImportError, OSError, ValueError, sqlite3.Error) as error:
            raise RecastError(f"trackio: {error}") from error
        self._finish = trackio.finish

    def add(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        with redirect_stdout(StringIO()):
            self._finish()
