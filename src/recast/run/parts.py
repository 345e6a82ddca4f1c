"""Finished parts of long work, kept beside its output until that is there.

While `runs/catalog` is made, `runs/.catalog.parts` holds what is done, in folders as `write_whole`
writes them. The same command, started again after it was killed, goes on behind them; its numbers
are those of one that was never ended.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from recast.errors import RecastError
from recast.run.checkpoint import read_whole, write_whole
from recast.run.environment import version_of
from recast.run.files import alone_in, refuse_existing
from recast.run.fingerprint import Input, digest, plain
from recast.run.reading import reading, reason_of
from recast.run.stop import whole
from recast.run.world import is_first, spread, world

_EVERY_S = 60.0
_MOST = 0.02  # of the time goes into writing
_DECIDING = ("recast-rl", "torch", "transformers", "tokenizers")

Part = dict[str, Tensor]
"""What is known of one batch."""

Batch = TypeVar("Batch", bound=Sized)


@contextmanager
def parts_of(output: str | Path) -> Iterator[Parts]:
    """Around the work for `output`, which is there when the block ends well; then the parts are
    removed. A signal, and an error of work that took a minute, leave them for the same command.

    Raises `RecastError` while another process works for the same output, and when that is there.
    Several ranks keep nothing.
    """
    if world().size > 1:
        yield NO_PARTS
        return
    path = Path(output).resolve()
    folder = path.with_name(f".{path.name}.parts")
    with alone_in(folder):
        try:
            refuse_existing(output)  # of a process that has ended since we looked
            parts = Parts(folder)
            try:
                yield parts
            except BaseException as error:
                with whole():
                    parts.leave(isinstance(error, KeyboardInterrupt))
                raise
            parts.remove()
        finally:
            with suppress(OSError):  # not empty
                folder.rmdir()


class Parts:
    """What is done of some work; made by `parts_of`. Before `begin` nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._deciding: dict[str, Any] = {}
        self._done: dict[str, Part] = {}
        self._pending: dict[str, Part] = {}
        self._due = time.monotonic() + _EVERY_S
        self._is_warned = False
        self.threads: int | None = None
        """Torch threads that the parts were made with, which are set; None without parts."""

    def begin(self, reads: dict[str, Input], **deciding: Any) -> None:
        """Take the parts that the same settings made of the same files; others and damaged ones are
        removed, which is said."""
        if not self._folder:
            return
        versions = {name: version_of(name) for name in _DECIDING}
        sums = {}
        for name, file in reads.items():
            with reading(file.path, "let its files be read"):
                sums[name] = digest(
                    file.path, file.patterns
                )  # JSON too as it is, whatever is in it
        self._deciding = plain(versions | deciding | sums, "a setting")
        others: set[str] = set()
        for folder in self._folders():
            try:
                tensors, facts = read_whole(folder)
                with reading(folder, "it is skipped"):
                    then, threads = dict(facts["deciding"]), int(facts["threads"])
            except RecastError as error:
                say(f"warning: {error}")
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if then != self._deciding:
                both = self._deciding | then
                others |= {key for key in both if then.get(key) != self._deciding.get(key)}
                shutil.rmtree(folder, ignore_errors=True)
                continue
            self.threads = threads
            for name, tensor in tensors.items():
                batch, _, field = name.rpartition("/")
                self._done.setdefault(batch, {})[field] = tensor
        if others:
            what = ", ".join(sorted(others))
            say(f"{self._folder}: parts made with another {what} are removed, begins anew")
        if self.threads:
            torch.set_num_threads(self.threads)

    def collect(
        self, unit: str, batches: Sequence[Batch], work: Callable[[Batch], Part]
    ) -> list[Part]:
        """What `work` gives for every batch of `unit` (such as "texts"), in their order, each rank
        doing its part of them. It must give the same for a batch whatever was worked on before."""
        if not self._deciding:
            return spread(batches, work)
        lengths = list(map(len, batches))  # another device may take others at once
        ends = accumulate(lengths)
        names = [f"{unit}/{end - n}-{end}" for n, end in zip(lengths, ends, strict=True)]
        sizes = dict(zip(names, lengths, strict=True))
        if behind := sum(size for name, size in sizes.items() if name in self._done):
            say(f"goes on behind {behind:,} of {sum(sizes.values()):,} {unit}")
        for name, batch in zip(names, batches, strict=True):
            if name in self._done:
                continue
            self._done[name] = self._pending[name] = work(batch)
            if time.monotonic() >= self._due:
                with whole():
                    self._write()
        return [self._done.pop(name) for name in names]

    def leave(self, is_signal: bool) -> None:
        """Write what is not yet written: at a signal, and where there are parts already."""
        if is_signal or self._folders():
            self._write()
        if self._folders():
            say(f"what is done is kept in {self._folder}: the same command goes on there")

    def remove(self) -> None:
        """The output is there."""
        for folder in self._folders("part-*") + self._folders(".part-*.partial"):
            shutil.rmtree(folder, ignore_errors=True)

    def _folders(self, pattern: str = "part-*") -> list[Path]:
        return sorted(self._folder.glob(pattern)) if self._folder else []

    def _write(self) -> None:
        if not (self._folder and self._pending):
            return
        started = time.monotonic()
        numbers = [int(folder.name[5:]) for folder in self._folders() if folder.name[5:].isdigit()]
        folder = self._folder / f"part-{max(numbers, default=-1) + 1:06d}"
        tensors = {
            f"{batch}/{name}": tensor
            for batch, part in self._pending.items()
            for name, tensor in part.items()
        }
        facts = {"threads": torch.get_num_threads(), "deciding": self._deciding}
        try:
            write_whole(folder, tensors, facts)
            self._pending.clear()
        except RecastError as error:
            if not self._is_warned:
                say(f"warning: nothing is kept of the work, which goes on ({reason_of(error)})")
            self._is_warned = True
        now = time.monotonic()
        self._due = now + max(_EVERY_S, (now - started) / _MOST)


NO_PARTS = Parts()
"""Keeps nothing: of work that takes no time, or is kept otherwise."""


def say(line: str) -> None:
    """Print a line of progress."""
    if is_first():
        with suppress(OSError):  # nobody reads us
            print(line, flush=True)
