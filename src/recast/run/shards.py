"""A checkpoint that several ranks write and read, each its shard of every tensor: PyTorch's
distributed checkpoints (DCP) on their safetensors storage, which needs no pickle.

The folder is that of one rank (`recast.run.checkpoint`) but for its tensors, of which each rank has
a file of its own, with the places of its shards in them. Any number of ranks reads either.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from recast.errors import RecastError
from recast.run.files import staged_folder
from recast.run.fingerprint import sha256_of
from recast.run.reading import reason_of
from recast.run.world import agreed, gathered, is_first, world

STATE, MANIFEST = "state.json", "manifest.json"


def write_shards(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and facts into a new folder, with the sha256 of every file; all ranks have the
    same names, and reach the folder.

    Raises `RecastError` on every rank where one of them cannot write.
    """
    with ExitStack() as stack:
        told: str | RecastError = ""
        if is_first():
            try:
                told = str(stack.enter_context(staged_folder(folder)))
            except RecastError as error:
                told = error
        told = agreed(told)
        if isinstance(told, RecastError):
            raise told
        stage = Path(told)
        try:
            save(tensors, storage_writer=HuggingFaceStorageWriter(told, save_distributed=True))
        except CheckpointException as error:
            reason = reason_of(next(iter(error.failures.values()))[0])
            raise RecastError(
                f"{folder} cannot be written ({reason}): it has to lie on a disk that all ranks "
                "reach, with room for it"
            ) from error
        own = stage.glob(f"shard-{world().rank + 1:05d}-*")
        parts = gathered({file.name: sha256_of(file) for file in own})
        if is_first():
            (stage / STATE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
            sums = {name: found for part in parts for name, found in part.items()}
            sums[STATE] = sha256_of(stage / STATE)
            (stage / MANIFEST).write_text(json.dumps(sums) + "\n", encoding="utf-8")


def read_shards(folder: Path, like: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint, however many ranks wrote it: whole, or this rank's shards of
    those that are `like` one that is shared."""
    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Tensor] = {}
    for name, kept in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(kept, TensorStorageMetadata)
        shared = (like or {}).get(name)
        if shared is not None and shared.shape == kept.size:
            found[name] = torch.empty_like(shared, dtype=kept.properties.dtype)
        else:
            found[name] = torch.empty(kept.size, dtype=kept.properties.dtype)
    load(found, storage_reader=reader, no_dist=True)
    return found
