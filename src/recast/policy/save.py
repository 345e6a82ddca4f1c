"""What of a model goes to disk: its weights as precise as they came, how it ends a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from recast.policy.lora import has_adapters, merged_weights
from recast.policy.masters import FOLDER, save_masters
from recast.policy.sharded import weights_of
from recast.run.checkpoint import save_tensors
from recast.types import RecastError


def saved_dtype(model: Any) -> torch.dtype:
    """That in which the model came, however it is trained: `model.float()` leaves its config."""
    dtype = model.config.dtype or model.dtype
    found: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return found


def rounding(model: Any) -> list[str]:
    """A line for the screen when the trained weights are more precise than those that are saved."""
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    dtype = saved_dtype(model)
    if all(kind.itemsize <= dtype.itemsize for kind in trained):
        return []
    how = f"weights are trained in float32 and rounded to {_name(dtype)}, as they came, on disk"
    return [how if has_adapters(model) else f"{how}; {FOLDER}/ keeps them as they are trained"]


def save_weights(model: Any, folder: Path, *, masters: bool = True) -> None:
    """The weights, adapters added to them, in the precision of the backbone, the `masters` of those
    that are more precise (`recast.policy.masters`), and the config; what
    transformers' `save_pretrained` writes, which on other ranks than 0 writes nothing.

    Raises `RecastError` for a weight beyond what that precision holds, and for a disk that gives
    back other weights than were written.
    """
    dtype = saved_dtype(model)
    weights = weights_of(model)
    if has_adapters(model):
        weights, model = merged_weights(model), model.get_base_model()
    elif masters:
        save_masters(dict(model.named_parameters()), dtype, folder)
    own = {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
    rounded: dict[Any, torch.Tensor] = {}  # by their parameter: tied weights stay tied
    for name, weight in weights.items():
        if weight.is_floating_point():
            weights[name] = rounded.setdefault(own.get(name, name), weight.to(dtype))
            if not bool(weights[name].isfinite().all()):
                raise RecastError(
                    f"{name} of the policy does not fit into {_name(dtype)}, in which the model "
                    "came: the run diverged, use a lower lr"
                )
    for name in model._keys_to_ignore_on_save or ():
        weights.pop(name, None)
    weights = revert_weight_conversion(model, remove_tied_weights_from_state_dict(weights, model))
    save_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.dtype = _name(dtype)  # not the precision of training
    model.config.save_pretrained(folder)


def save_generation(model: Any, folder: Path) -> None:
    """The backbone's own settings of generation, its end tokens among them, without sampling,
    which foreign code that reads them must not add of its own."""
    settings = json.loads(model.generation_config.to_json_string()) | {"do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
