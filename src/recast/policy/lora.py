"""LoRA (arXiv 2106.09685) by PEFT: small matrices beside frozen weights, W x + alpha / r B A x.

Enters: a language model. Leaves: the same one with adapters, which alone have gradients. They sit
inside the transformer, so the packed forward goes through them like through any other layer; with
the adapters off the model is its own reference, and no second copy of it is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from recast.config import LoRAConfig
from recast.policy.encoder_decoder import is_encoder_decoder
from recast.policy.folder import ADAPTERS, read_object
from recast.policy.sharded import weights_of
from recast.run.checkpoint import check_stored
from recast.run.reading import LOADING, reason_of
from recast.types import RecastError, require

_BASE = "base.json"
_LAYER = ".base_layer"  # PEFT's name for what an adapter sits on
_SCALE = ("lora_alpha", "r")
_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")  # as PEFT calls a decoder and an encoder with one
_FREE = {*_SCALE, "base_model_name_or_path", "target_modules", "peft_version", "revision"}


def has_adapters(model: Any) -> bool:
    """Whether PEFT wraps the model."""
    return hasattr(model, "get_base_model")


def add_adapters(model: Any, config: LoRAConfig, base: str, seed: int) -> Any:
    """The model with fresh adapters, which change nothing yet: B is 0, A is drawn from `seed`.

    `base` is the folder that the model is from, for who reads the adapters alone. Raises
    `RecastError` without PEFT, and for layers that there are not or that the packed forward reads
    apart from the transformer.
    """
    peft, rank = _peft(), config.rank
    assert rank is not None
    if not config.merge and (Path(base) / ADAPTERS).is_file():
        raise RecastError(
            f"lora.merge is False: {base} holds adapters alone itself, and PEFT puts none on top "
            "of them; leave merge on"
        )
    origin = str(Path(base).absolute())
    names: Any = config.layers
    if names != "all-linear":
        names = [name.strip() for name in names.split(",")]
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if config.alpha is None else config.alpha,
        target_modules=names,
        task_type=_TASKS[is_encoder_decoder(model)],
    )
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        try:
            wrapped = peft.get_peft_model(model, settings)
        except ValueError as error:
            raise RecastError(
                f"lora.layers is {config.layers!r} ({reason_of(error)}): name linear layers of the "
                "model, or leave it out"
            ) from error
    wrapped.peft_config["default"].base_model_name_or_path = origin
    if names != "all-linear":
        known = [name for name, _ in model.named_modules()]
        for name in names:
            is_layer = any(x == name or x.endswith(f".{name}") for x in known)
            require(is_layer, "lora.layers", name, "the model has no layer of that name")
    for name in ("get_output_embeddings", "get_input_embeddings"):
        if isinstance(getattr(wrapped, name)(), peft.tuners.lora.LoraLayer):
            raise RecastError(
                f"lora.layers is {config.layers!r}: embeddings and the output layer are read apart "
                "from the transformer and take no adapter, leave them out"
            )
    return wrapped


def without_adapters(model: Any) -> AbstractContextManager[object]:
    """A context in which the model is what it was before it had any."""
    context: AbstractContextManager[object] = model.disable_adapter()
    return context


def merged_weights(model: Any) -> dict[str, Tensor]:
    """The weights of the plain model that does what this one does; its own stay as they are."""
    layers = dict(model.get_base_model().named_modules())
    weights = {}
    for name, value in weights_of(model.get_base_model()).items():
        owner, _, kind = name.rpartition(".base_layer.")
        if owner and kind == "weight":
            delta = layers[owner].get_delta_weight("default")
            weights[f"{owner}.{kind}"] = value + delta.to(value.dtype)
        elif ".lora_" not in name:
            weights[f"{owner}.{kind}" if owner else name] = value
    return weights


def save_adapters(model: Any, folder: Path) -> None:
    """The adapters alone, as PEFT reads them, and beside them what they were trained on."""
    with _quiet():
        weights = weights_of(model)
        model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
        written = _peft().get_peft_model_state_dict(model, weights, save_embedding_layers=False)
    check_stored(written, folder / "adapter_model.safetensors")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's, with nothing filled in
    scale = {name: getattr(model.peft_config["default"], name) for name in _SCALE}
    base = {"weights": _digest(model.get_base_model()), **scale}
    (folder / _BASE).write_text(json.dumps(base) + "\n")


def _digest(model: torch.nn.Module) -> str:
    """Of the weights below the adapters: the bits of every tensor added up, which is the same on
    all devices and for a copy in float32."""
    digest = hashlib.sha256()
    for key, weight in sorted(model.named_parameters(), key=lambda x: x[0].replace(_LAYER, "")):
        if ".lora_" not in key:
            bits = weight.detach().float().contiguous().view(torch.int32)
            total = int(bits.sum(dtype=torch.int64))
            digest.update(f"{key.replace(_LAYER, '')} {[*weight.shape]} {total}".encode())
    return digest.hexdigest()


def read_adapters(folder: Path) -> str:
    """The folder of the model that the adapters in this one belong to."""
    settings = read_object(folder / ADAPTERS)
    _require_plain(settings, folder)
    base = settings.get("base_model_name_or_path")
    if not (isinstance(base, str) and os.path.isdir(base)):
        raise RecastError(
            f"{folder} holds adapters of {base!r}, which is no folder: set base_model_name_or_path "
            f"in its {ADAPTERS} to where the policy is that they were trained from"
        )
    return base


def _require_plain(settings: dict[str, Any], folder: Path) -> None:
    """Raise `RecastError` for settings that are none of ours: some of PEFT's load other modules,
    change the weights below or scale the adapters otherwise."""
    task = settings.get("task_type")
    plain = _peft().LoraConfig(task_type=_TASKS[task == _TASKS[1]]).to_dict()
    plain |= {"inference_mode": True, "peft_type": "LORA"}
    for key, value in plain.items():
        if key not in _FREE and settings.get(key, value) != value:
            raise RecastError(
                f"{folder / ADAPTERS} has {key} {settings[key]!r}, Recast saves {value!r}: use the "
                "folder as it was saved"
            )
    for key in _SCALE:
        value = settings.get(key)
        if not (type(value) in (int, float) and 0 < float(value or 0) < 1e6):
            raise RecastError(
                f"{folder / ADAPTERS} has {key} {value!r}, which is no number above 0: use the "
                "folder as it was saved"
            )


def _require_its_base(model: Any, folder: Path) -> None:
    """Raise `RecastError` where the weights below, or the adapters' scale, are not those of the
    training; folders of releases that did not note them are taken as they are."""
    if not os.path.isfile(folder / _BASE):
        return
    noted, settings = read_object(folder / _BASE), read_object(folder / ADAPTERS)
    for key in _SCALE:
        if settings[key] != noted.get(key):
            raise RecastError(
                f"{folder / ADAPTERS} has {key} {settings[key]!r}, trained with "
                f"{noted.get(key)!r}: set it back"
            )
    if _digest(model) != noted.get("weights"):
        raise RecastError(
            f"{folder} holds adapters of {settings['base_model_name_or_path']}, whose weights have "
            "changed since: give the policy that they were trained from"
        )


def load_adapters(model: Any, folder: Path) -> Any:
    """The plain model that the adapters in a folder make of this one."""
    peft = _peft()
    if not (folder / "adapter_model.safetensors").is_file():
        raise RecastError(
            f"{folder} has no adapter_model.safetensors: use the folder as it was saved"
        )
    _require_its_base(model, folder)
    try:
        with _quiet(), safe_open(folder / "adapter_model.safetensors", "pt") as file:
            wrapped = peft.PeftModel.from_pretrained(model, folder)
            # PEFT fills what is missing with fresh adapters and drops what it does not know.
            wanted, stored = peft.get_peft_model_state_dict(wrapped), {*file.keys()}
            if odd := sorted(wanted.keys() ^ stored):
                raise ValueError(f"{len(odd)} weights missing or unknown, {odd[0]} first")
            whole = wrapped.merge_and_unload()
            return whole.requires_grad_(True)  # PEFT had frozen it
    except LOADING as error:
        raise RecastError(
            f"{folder}: its adapters do not load ({reason_of(error, 200)}): use the folder as it "
            "was saved"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT warns of its own use of transformers, and of what is refused here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise RecastError('adapters need PEFT: pip install "recast-rl[lora]"') from error
    return peft
