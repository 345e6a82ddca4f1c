"""Checkpoints: tensors and facts of a loop in, whole folders on disk out, and the newest back.

`checkpoints/step-000120` holds `tensors.safetensors`, of ranks that share weights a file of each
(`recast.run.shards`), `state.json`, and `manifest.json` with the sha256 of all. It is written under
a temporary name, read back, synced to the disk and renamed: it is there whole or not at all. The
newest two stay, so that a damaged one has a predecessor; what a loop has found best so far is
inside each of them.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from recast.run.files import CHECKPOINTS, staged_folder
from recast.run.fingerprint import sha256_of
from recast.run.reading import read_json, reading
from recast.run.shards import MANIFEST, STATE, read_shards, write_shards
from recast.run.world import agreed, is_first
from recast.types import RecastError

_KEPT = 2
_TENSORS = "tensors.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole one on disk, whose tensors are yet to be read (`read_tensors`).

    Example, of a run of two weights after 3 steps, whose tensors are `{"model.w": [.1, .2],
    "optimizer.w.exp_avg": [0, .01]}`: `step=3  folder=checkpoints/step-3  facts={"step": 3}`.
    """

    step: int
    folder: Path
    facts: dict[str, Any]


def write_checkpoint(
    run: str | Path,
    step: int,
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    *,
    are_shared: bool = False,
) -> None:
    """Write a checkpoint of the run folder and remove all but the newest two; one of the same step
    stays as it is. Tensors that ranks share are written by them all.

    Raises `RecastError` when the disk is full, or gives back something else than was written; then
    the older ones are untouched.
    """
    folder = Path(run) / CHECKPOINTS / _name(step)
    if agreed(folder.exists()) if are_shared else folder.exists():
        return
    write = write_shards if are_shared else write_whole
    write(folder, tensors, facts)
    if not is_first():
        return
    for old in _newest_first(folder.parent)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def read_checkpoints(run: str | Path) -> Iterator[Checkpoint | RecastError]:
    """The checkpoints of a run folder, newest first; a damaged one is an error that names it."""
    for folder in _newest_first(Path(run) / CHECKPOINTS):
        try:
            step = int(folder.name.partition("-")[2])
            yield Checkpoint(step=step, folder=folder, facts=read_facts(folder))
        except RecastError as error:
            yield error


def remove_newer(run: str | Path, step: int) -> None:
    """Remove the checkpoints behind a step, which a run that goes on there makes again."""
    for folder in _newest_first(Path(run) / CHECKPOINTS):
        if folder.name > _name(step):
            shutil.rmtree(folder, ignore_errors=True)


def write_whole(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and facts into a new folder, with the sha256 of both.

    Raises `RecastError` when the disk is full, or gives back something else than was written.
    """
    with staged_folder(folder) as stage:
        save_tensors(tensors, stage / _TENSORS)
        (stage / STATE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        sums = {name: sha256_of(stage / name) for name in (_TENSORS, STATE)}
        (stage / MANIFEST).write_text(json.dumps(sums) + "\n", encoding="utf-8")


def read_whole(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_whole` wrote; `RecastError` when a byte is another."""
    facts = read_facts(folder)
    return read_tensors(folder), facts


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts, once every file is known to be what was written; `RecastError` if not."""
    with reading(folder, "it is skipped"):
        sums = read_json(folder / MANIFEST, dict)
        for name in {STATE, *sums}:
            if sums[name] != sha256_of(folder / name):
                raise ValueError(f"{name} is not what was written")
        facts: dict[str, Any] = read_json(folder / STATE, dict)
        return facts


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors, whole, however many ranks wrote them."""
    with reading(folder, "start without it"):
        if not (folder / _TENSORS).exists():
            return read_shards(folder)
        with safe_open(folder / _TENSORS, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def save_tensors(
    tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file and read it back (`check_stored`)."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    check_stored(tensors, file)


def check_stored(tensors: dict[str, Tensor], file: Path) -> None:
    """Raise `OSError` unless a safetensors file holds these names, shapes and bytes."""
    with safe_open(file, "pt") as back:
        same = set(back.keys()) == set(tensors) and all(
            _equal(back.get_tensor(name), tensor) for name, tensor in tensors.items()
        )
    if not same:
        raise OSError(errno.EIO, f"{file.name} was not read back as it was written")


def _equal(one: Tensor, other: Tensor) -> bool:
    """Byte by byte: NaN equals itself."""
    other = other.detach().cpu().contiguous()
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    flat, wanted = (tensor.reshape(-1).view(torch.uint8) for tensor in (one, other))
    return same_kind and torch.equal(flat, wanted)


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-" + 9 * "[0-9]"), reverse=True)
