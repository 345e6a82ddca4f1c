"""A second device for machines that have none: its tensors refuse to meet those of the CPU.

Numbers are computed on the CPU; only the labels are watched, so a test sees where a tensor was made
or left on the wrong side, as a GPU would. Like a GPU it takes single numbers from the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

NAME = "meta"  # the one name that torch lets pass without anything behind it


class OtherTensor(Tensor):
    """A CPU tensor that says it lives elsewhere."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OtherTensor:
        made: OtherTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=NAME,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner.detach()
        return made

    def tolist(self) -> Any:
        """torch refuses it to subclasses."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """Within it, tensors can be made on the device `NAME` and moved to it and back."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given: list[Tensor] = []

    def inner(x: Any) -> Any:  # by hand: torch's trees are several times slower
        if isinstance(x, Tensor):
            given.append(x := _known(x))
            return x.inner if isinstance(x, OtherTensor) else x
        return [inner(each) for each in x] if isinstance(x, list | tuple) else x

    inner_args, inner_kwargs = inner(args), {key: inner(x) for key, x in kwargs.items()}
    there = any(isinstance(x, OtherTensor) for x in given)
    device = kwargs.get("device")
    name = func.overloadpacket.__name__
    if there and device is None and name != "copy_":  # which are moves
        strangers = [x for x in given if not isinstance(x, OtherTensor) and x.ndim]
        if strangers:
            raise RuntimeError(
                f"{name}: tensors on {NAME} and on the CPU, {[tuple(x.shape) for x in given]}"
            )
    if device is not None:
        there = torch.device(device).type == NAME
        inner_kwargs["device"] = torch.device("cpu")
    result = func(*inner_args, **inner_kwargs)
    if not there:
        return result
    if name.endswith("_") and not name.endswith("__"):  # in place: the wrapper stays the same
        return given[0]
    return tree_map_only(Tensor, OtherTensor, result)


def _known(x: Tensor) -> Tensor:
    # torch.tensor([], device=...) makes its tensor where no one looks.
    strays = x.is_meta and not isinstance(x, OtherTensor) and not x.numel()
    return OtherTensor(torch.empty(x.shape, dtype=x.dtype)) if strays else x
