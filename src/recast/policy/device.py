"""The name of a device in, the device out, tried."""

from __future__ import annotations

import torch

from recast.run.reading import reason_of
from recast.types import RecastError


def find_device(name: str) -> torch.device:
    """The device of that name; `RecastError` when this machine cannot compute on it."""
    try:
        number = torch.ones((), device=name)
        number.item()  # `meta` holds no numbers
    except (RuntimeError, AssertionError, ImportError, ValueError, TypeError) as error:
        raise RecastError(
            f"device is {name!r}: torch {torch.__version__} finds no such device here "
            f"({reason_of(error, 80)}), give cpu"
        ) from error
    return number.device
