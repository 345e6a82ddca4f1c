"""Weights that several ranks share: a model in, the same one in shards (FSDP2) out.

Each rank of a group keeps a shard of every weight, and with it of its gradient and of what the
optimizer knows of it; groups of ranks are replicas of each other (HSDP). A pass of the update
gathers one layer after the other and gives it back, so all ranks have to make as many passes:
whoever has fewer makes empty ones. Searches, validations and references call the model as often as
it takes, each rank as it likes; around them every rank holds the weights whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from recast.policy.encoder_decoder import is_encoder_decoder
from recast.run.world import lost, world
from recast.types import require

Result = TypeVar("Result")


def shard(model: Any, fsdp_size: int) -> None:
    """Let groups of so many ranks share the weights, layer by layer; 1: every rank has them all.

    What `compute` gives has as its gradients the sums over all ranks. Whoever holds parameters of
    the model has to ask for them again. None, and a model in shards, stay as they are. Raises
    `RecastError` for a model without known layers.
    """
    if fsdp_size == 1 or model is None or is_sharded(model):
        return
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = () if is_encoder_decoder(model) else plain._no_split_modules or ()
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    remedy = f"the layers of a {type(plain).__name__} cannot be sharded one by one, leave it out"
    require(bool(layers), "fsdp_size", fsdp_size, remedy)
    sizes = {"replicate": world().size // fsdp_size, "shard": fsdp_size}
    if sizes["replicate"] == 1:
        del sizes["replicate"]
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    for part in (*layers, model):
        fully_shard(part, mesh=mesh)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    model.set_reduce_scatter_unused_params(True)
    model.compute = _call
    register_fsdp_forward_method(model, "compute")
    compute(model, lambda: None)  # which makes it the root of its layers, and whole
    model.reshard()


def compute(model: Any, work: Callable[[], Result]) -> Result:
    """What `work` makes of the model's weights, which a backward pass may follow. All ranks make as
    many of both."""
    if not is_sharded(model):
        return work()
    with lost():
        result: Result = model.compute(work)
    return result


def _call(work: Callable[[], Result]) -> Result:
    return work()


def backward(loss: Tensor) -> None:
    """The gradients of a loss that `compute` gave."""
    with lost():
        loss.backward()


def is_sharded(model: Any) -> bool:
    """Whether ranks share its weights, held whole for a while or not."""
    return isinstance(model, FSDPModule)


@contextmanager
def whole_weights(*models: Any) -> Iterator[None]:
    """While it lasts this rank holds all weights of the models and waits for no other in a pass;
    no gradient is made of them, and none of them may change. All ranks enter it together. Nothing
    happens to models that are whole already."""
    parts = [
        part
        for model in models
        if is_sharded(model) and isinstance(next(model.parameters()), DTensor)
        for part in model.modules()
        if isinstance(part, FSDPModule)
    ]
    with lost():
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    try:
        yield
    finally:
        for part in parts:
            is_root = any(part is model for model in models)
            part.set_reshard_after_forward(not is_root, recurse=False)
            part.reshard()


def weights_of(model: Any) -> dict[str, Tensor]:
    """What `state_dict()` gives, which would part weights that are held whole again."""
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        saved: dict[str, Tensor] = model.state_dict()
        return saved
    found = dict(model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        for key, value in module.named_buffers(recurse=False):
            if key not in module._non_persistent_buffers_set:
                found[f"{name}.{key}".lstrip(".")] = value
    return {name: value.detach() for name, value in found.items()}


def clip_gradients(parameters: Iterable[Tensor], most: float) -> Tensor:
    """Clip the gradients to a norm, together, over all ranks that share them; returns it."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def own_rows(weight: Tensor) -> tuple[Tensor, int]:
    """The rows of a weight that this rank holds, as they can be written to, and the first's
    number."""
    if not isinstance(weight, DTensor):
        return weight, 0
    rank = weight.device_mesh.get_local_rank("shard")
    chunk = -(-len(weight) // weight.device_mesh.size(-1))
    return weight.to_local(), min(rank * chunk, len(weight))
