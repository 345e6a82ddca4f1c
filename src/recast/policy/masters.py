"""Weights as they were trained, beside the ones that are served: float32 next to 16 bits.

Enters: a trained model that came in less than float32. Leaves: `masters/model.safetensors`, the
weights that rounding moved, and back: the model with exactly these. What is served, evaluated and
read by other programs is `model.safetensors`, rounded; what trains on begins from the masters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from recast.run.checkpoint import save_tensors
from recast.run.reading import LOADING, reason_of
from recast.types import RecastError

FOLDER = "masters"
"""Apart from the weights: some programs read every safetensors file of a model's folder."""
_FILE = "model.safetensors"


def save_masters(weights: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Write those of the weights, float32 by their names, that are others in `dtype`; nothing where
    there is none."""
    moved = {
        name: weight.detach()
        for name, weight in weights.items()
        if weight.dtype == torch.float32 and not torch.equal(weight.to(dtype).float(), weight)
    }
    if moved:
        (folder / FOLDER).mkdir()
        save_tensors(moved, folder / FOLDER / _FILE)


@torch.no_grad()
def take_masters(model: Any, folder: Path) -> None:
    """Let a model that was loaded from a folder have the weights that its masters hold, in float32;
    one without masters stays as it is.

    Raises `RecastError` for masters that are not those of the model's weights.
    """
    file = folder / FOLDER / _FILE
    if not (folder / FOLDER).exists():
        return
    own = dict(model.named_parameters())
    rounded = {name: weight.detach().clone() for name, weight in own.items()}
    model.float()
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise ValueError("no plain file")
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  # it is no mapping
                master = stored.get_tensor(name)
                if not torch.equal(master.to(rounded[name].dtype), rounded[name]):
                    raise ValueError(f"{name} is another one in {folder / _FILE}")
                own[name].copy_(master)
    except LOADING as error:
        raise RecastError(
            f"{file} is not what training left of {folder} ({reason_of(error)}): use the folder as "
            f"it was saved, or remove {file.parent} to go on from its rounded weights"
        ) from error
