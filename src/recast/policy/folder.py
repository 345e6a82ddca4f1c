"""A model's folder before it is opened: what its names, settings and headers tell.

Enters: a path. Leaves: nothing, or an error, before memory or time is spent. No pickle is read, no
code of the folder runs, and no file outside is reached.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from recast.policy.encoder_decoder import auto_class
from recast.run.doors import is_gguf, require_gguf
from recast.run.environment import memory_gib
from recast.run.reading import LOADING, read_json, reading, reason_of, require_plain_files
from recast.types import RecastError

ADAPTERS = "adapter_config.json"

_WEIGHTS = "model.safetensors"
_MOST_JSON = 2**26  # bytes; the index of the largest models has a tenth
_MOST_PARTS = 100_000  # layers, heads or experts; a Doge has 16,384 experts, no model more
_MOST_BUFFERS = 2**28  # numbers, beside as many as are stored: masks and tables of positions
TABLES = (".inv_freq", ".attn.bias", ".masked_bias", ".position_ids", ".attention.bias")
"""Of old folders: what a model computes by itself, once stored beside its weights."""

_AS_SAVED = "give a whole Hugging Face folder with safetensors"


def require_model_folder(path: Path) -> int:
    """How many numbers the weights of a folder have, all of them in files of its own.

    Raises `RecastError` for a folder that holds no model, one in adapters, pickles or quantised
    weights, and for files that cannot be read as what their names say.
    """
    if not os.path.isfile(path / "config.json"):
        raise RecastError(f"{path} holds no model (config.json): give a Hugging Face folder")
    require_plain_files(path)
    config = read_object(path / "config.json")
    _require_plain(config, path)
    if os.path.isfile(path / "generation_config.json"):
        read_object(path / "generation_config.json")
    if os.path.isfile(path / ADAPTERS):
        raise RecastError(
            f"{path} holds {ADAPTERS}: give the model with its adapters merged (PEFT's "
            "merge_and_unload), or remove the file if they are not meant"
        )
    files = _weight_files(path)
    try:
        stored = [_numbers(file) for file in files]
    except RecastError:
        raise
    except LOADING as error:
        raise RecastError(f"{path} does not load ({reason_of(error)}): {_AS_SAVED}") from error
    return sum(stored)


def place_of(path: Path) -> dict[str, Any]:
    """What transformers' `from_pretrained` needs to read a folder or a GGUF file, and no more.

    Raises `RecastError` for a file that is none, and without the package that reads it.
    """
    plain = {"local_files_only": True, "trust_remote_code": False}  # asks nobody, runs no code
    if not is_gguf(path):
        return {"pretrained_model_name_or_path": path} | plain
    require_gguf(path)
    return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name} | plain


def read_object(file: Path) -> dict[str, Any]:
    """The settings in a JSON file; raises `RecastError` when there are none to be read."""
    with reading(file, "use the folder as it was saved"):
        settings: dict[str, Any] = read_json(file, dict, _MOST_JSON)
    return settings


def _require_plain(config: dict[str, Any], path: Path) -> None:
    """Refuse, at any depth, quantised weights, files named from inside and absurd counts."""
    for key, value in config.items():
        if key in ("quantization_config", "compression_config") and value:
            method = value.get("quant_method", "?") if isinstance(value, dict) else value
            raise RecastError(
                f"{path} is quantised ({str(method)[:40]!r} in config.json): a policy is trained "
                "on its plain weights, give those"
            )
        if key == "transformers_weights":
            raise RecastError(f"{path}: config.json names weights of its own: remove {key}")
        is_count = re.search("layer|head|expert|block|depth|num_labels", key)
        if is_count and isinstance(value, int | float) and abs(value) > _MOST_PARTS:
            raise RecastError(
                f"{path}: config.json has {key} {value}, more than the {_MOST_PARTS} of any model: "
                "use the folder as it was saved"
            )
        if isinstance(value, dict):
            _require_plain(value, path)


def _weight_files(path: Path) -> list[Path]:
    """As transformers chooses them: one file, or those of an index."""
    index = path / f"{_WEIGHTS}.index.json"
    if os.path.isfile(path / _WEIGHTS):
        return [path / _WEIGHTS]
    if not os.path.isfile(index):
        others = sorted(x.name for x in path.iterdir() if x.suffix in (".bin", ".pt", ".pth"))
        held = f", only {others[0]}, a pickle, which may run code" if others else ""
        raise RecastError(
            f"{path} has no {_WEIGHTS}{held}: save it again with transformers' save_pretrained"
        )
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RecastError(f"{index} is damaged (no weight_map): {_AS_SAVED}")
    names = sorted({*weight_map.values()}, key=str)
    for name in names:
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise RecastError(f"{index} names {name!r}: its files stand beside it, as safetensors")
        if not os.path.isfile(path / name):
            raise RecastError(f"{path} has no {name}, which its index names: {_AS_SAVED}")
    return [path / name for name in names]


def _numbers(file: Path) -> int:
    """In the tensors of a file, by its header; those of 8 bits and less and whole numbers are
    refused, but for tables."""
    count = 0
    with safe_open(file, "pt") as stored:
        for key in stored.keys():  # noqa: SIM118  # it is no mapping
            part = stored.get_slice(key)
            coded = ("F8", "F4", "F6_") if key.endswith(TABLES) else ("F8", "F4", "F6_", "I", "U")
            if part.get_dtype().startswith(coded):
                raise RecastError(
                    f"{file}: {key} is quantised ({part.get_dtype()}): a policy is trained on its "
                    "plain weights, give those"
                )
            count += torch.Size(part.get_shape()).numel()
    return count


def require_size(config: Any, stored: int, path: Path) -> None:
    """Raise `RecastError` for a config.json that asks for more than the folder's weights fill, and
    for weights that this machine has no memory for: before any of it is taken.

    Weights of one table that are stored once may be asked for twice.
    """
    with torch.device("meta"):
        model = auto_class(config)[0].from_config(config, trust_remote_code=False)
    asked = sum(x.numel() for x in model.parameters())
    kept = sum(x.numel() for x in model.buffers())
    if asked > 2 * stored or kept > max(stored, _MOST_BUFFERS):
        raise RecastError(
            f"{path}: config.json asks for {asked + kept:,} numbers, its weights hold {stored:,}: "
            "use the folder as it was saved"
        )
    needed = asked * getattr(config.dtype, "itemsize", 4)
    memory = memory_gib()
    if memory is not None and needed > memory * 2**30:
        raise RecastError(
            f"{path}: its weights need {needed / 2**30:,.0f} GiB, this machine has {memory:,.0f} "
            "GiB of memory: choose a smaller model"
        )
