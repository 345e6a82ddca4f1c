"""TensorBoard's files: a step and its metrics in, one event per step out.

Written in this thread: torch's writer has one of its own, which prints a trace of its own into the
run when the disk is full.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from recast.types import Metrics


class Board:
    """One event file in a folder; `first_step` makes TensorBoard forget what older files of the
    folder hold from there on.

    Raises `OSError` when it cannot be written.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():019d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        if first_step is not None:
            start = SessionLog(status=SessionLog.SessionStatus.START)
            self._write(Event(step=first_step, session_log=start))

    def add(self, step: int, metrics: Metrics) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()
