"""Every tensor that a computation makes, by shape: what is never built cannot be slow or large."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Shapes(TorchDispatchMode):
    """Shape and type of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[tuple[int, ...], torch.dtype]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.found.add((tuple(value.shape), value.dtype))
        return result

    def square(self, width: int, heads: int) -> list[tuple[int, ...]]:
        """Tensors with two trailing dimensions of at least `width`, or as large as such scores."""
        return [
            shape
            for shape, _ in self.found
            if (len(shape) > 1 and min(shape[-2:]) >= width)
            or torch.Size(shape).numel() >= 2 * heads * width * width
        ]
