"""What is wrong with a tensor that somebody returned, and what to return instead."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from recast.config.user_code import is_dense


class Fault(NamedTuple):
    """What is wrong and what to do, and in which prompt (None: in no single one)."""

    what: str
    row: int | None = None


def tensor_fault(
    name: str,
    value: Any,
    shapes: list[tuple[int, ...]],
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> Fault | None:
    """A tensor of one of these shapes, on the device of another, detached and finite."""
    fault = shape_fault(name, value, shapes, like, dtype)
    if fault:
        return fault
    if value.requires_grad:
        return Fault(f"{name} with a gradient: detach what comes from log-probabilities")
    finite = value.isfinite().reshape(len(value), -1).all(1)
    if bool(finite.all()):
        return None
    row = int((~finite).nonzero()[0])
    return Fault(f"{name} that are not finite: {some(value[row])}", row)


def size_fault(name: str, value: Tensor, limit: float) -> Fault | None:
    """Numbers of at most this size."""
    size = value.abs()
    if not bool((size > limit).any()):
        return None
    what = f"{name} of {float(size.max()):g} in size: scale them to {limit:g} at most"
    return forbidden(what, size > limit)


def shape_fault(
    name: str,
    value: Any,
    shapes: list[tuple[int, ...]],
    like: Tensor,
    dtype: torch.dtype | None,
) -> Fault | None:
    """A dense tensor of one of these shapes, on the device of another; floats where no type is
    named."""
    choices = " or ".join(str(list(shape)) for shape in shapes)
    if not isinstance(value, Tensor):
        return Fault(f"{name} of type {type(value).__name__}: return a tensor {choices}")
    if not is_dense(value):
        return Fault(f"{name} as a sparse, nested or quantized tensor: return a plain {choices}")
    if tuple(value.shape) not in shapes:
        return Fault(f"{name} of the shape {list(value.shape)}: return {choices}")
    if value.dtype != dtype if dtype else not value.is_floating_point():
        return Fault(f"{name} of {value.dtype}: return {dtype or 'floats'}")
    if value.device != like.device:
        return Fault(f"{name} on {value.device}: return them on {like.device}, as the groups are")
    return None


def forbidden(what: str, where: Tensor) -> Fault | None:
    """What holds for no entry; the first axis is that of prompts."""
    rows = where.reshape(len(where), -1).any(1)
    return Fault(what, int(rows.nonzero()[0])) if bool(rows.any()) else None


def some(values: Tensor, most: int = 16) -> str:
    """The first of some numbers."""
    shown = [round(float(value), 4) for value in values.flatten()[:most]]
    return f"{shown}{' ...' * (values.numel() > most)}"
