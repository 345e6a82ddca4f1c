"""What training takes of a model that is not loaded yet: its config.json in, bytes and a card out.

No weight is read: the model is built without memory (`meta`) and its numbers are counted.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from recast.config import LoRAConfig
from recast.policy.encoder_decoder import auto_class
from recast.policy.folder import ADAPTERS, place_of, require_model_folder
from recast.policy.lora import read_adapters
from recast.policy.memory import all_bytes, size
from recast.run.doors import is_gguf
from recast.run.reading import LOADING
from recast.run.world import world
from recast.types import RecastError

CARDS = (24, 40, 48, 80, 141, 192)
"""GB of memory, 10^9 bytes, that accelerators are sold with."""
_SHARE = 0.8  # of a card; the rest is for activations, logits and the library's own
_TOLD = 10**8  # weights from which on a run tells what they take, before it reads them
RANK = 16  # of the adapters that are told of where none are asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Bytes that training holds besides activations and logits.

    Example, 596 million weights, all trained, with a frozen copy to compare with (KL):
    `trained=2384199680  frozen=0  gradients=2384199680  moments=4768400600  reference=2384199680`.
    """

    trained: int
    """Weights that are trained, in float32."""
    frozen: int
    """Weights that are not, as precise as they came."""
    gradients: int
    moments: int
    """AdamW's two, and its count of steps for every tensor."""
    reference: int

    @property
    def total(self) -> int:
        return self.trained + self.frozen + self.gradients + self.moments + self.reference

    def of_rank(self, fsdp_size: int) -> int:
        """What one of so many ranks holds that share it: the weights also whole, while it rolls
        out."""
        whole = self.trained + self.frozen if fsdp_size > 1 else 0
        return whole + self.total // fsdp_size

    @property
    def card(self) -> int | None:
        """GB of the smallest card that all of it takes at most four fifths of."""
        return next((card for card in CARDS if self.total <= _SHARE * card * 1e9), None)

    @property
    def text(self) -> str:
        on = f"a card of {self.card} GB" if self.card else f"more than a card of {CARDS[-1]} GB"
        return f"{size(self.total)} ({on})"


def needs_of(
    config: Any,
    *,
    rank: int | None = None,
    layers: str = "all-linear",
    reference: bool = False,
    num_rows: int = 0,
) -> Needs:
    """What a language model of these settings of transformers takes: all of its weights
    trained, or adapters of `rank` on some `layers` (`LoRAConfig`), beside a copy as `reference`,
    and with `num_rows` tokens where it has fewer.

    Example, 124 weights in 9 tensors: 496 bytes of weights and as many of gradients, 2 * 496 of
    moments and 9 * 4 of steps, in all 2,020.
    """
    config = deepcopy(config)
    text = config.get_text_config()
    text.vocab_size = max(text.vocab_size, num_rows)
    with torch.device("meta"):
        model = auto_class(config)[0].from_config(config, trust_remote_code=False)
    shapes = [list(x.shape) for x in model.parameters()]
    count = sum(x.numel() for x in model.parameters())
    if rank is None:
        return _of(count, len(shapes), frozen=0, reference=4 * count * reference)
    dtype = config.dtype or torch.float32
    names, head = [x.strip() for x in layers.split(",")], model.get_output_embeddings()
    wrapped = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and (module is not head if layers == "all-linear" else _ends(name, names))
    ]
    added = rank * sum(sum(weight.shape) for weight in wrapped)
    return _of(added, 2 * len(wrapped), frozen=count * dtype.itemsize, reference=0)


def _of(count: int, tensors: int, *, frozen: int, reference: int) -> Needs:
    moments = 2 * 4 * count + 4 * tensors
    return Needs(
        trained=4 * count, frozen=frozen, gradients=4 * count, moments=moments, reference=reference
    )


def _ends(name: str, names: list[str]) -> bool:
    return any(name == x or name.endswith(f".{x}") for x in names)


def needs_text(whole: Needs, adapters: Needs, rank: int) -> str:
    """Both ways to train a model in one line."""
    parts = [("weights", whole.trained), ("gradients", whole.gradients), ("AdamW", whole.moments)]
    parts += [("reference", whole.reference)] if whole.reference else []
    told = ", ".join(f"{name} {size(count)}" for name, count in parts)
    return f"trained in whole {whole.text}: {told}; with lora.rank {rank} {adapters.text}"


def tell_needs(
    folder: str,
    device: str,
    *,
    lora: LoRAConfig | None = None,
    reference: bool = False,
    num_rows: int = 0,
    fsdp_size: int = 1,
) -> None:
    """Say what training the model of a folder takes, where that is much, before it is loaded;
    `lora` where adapters are a choice, with their rank where they are chosen.

    Raises `RecastError` where the device has not so much as one of `fsdp_size` ranks that share it
    holds, and for a folder that holds no model.
    """
    path = Path(folder)
    if (path / ADAPTERS).is_file():
        path = Path(read_adapters(path))
    if not is_gguf(path) and require_model_folder(path) < _TOLD:
        return
    try:
        config = AutoConfig.from_pretrained(**place_of(path))
        whole = needs_of(config, reference=reference, num_rows=num_rows)
        rank = lora.rank if lora and lora.rank else RANK
        layers = lora.layers if lora else "all-linear"
        adapters = needs_of(config, rank=rank, layers=layers, num_rows=num_rows)
    except LOADING:
        return  # loading it says why
    if whole.trained < 4 * _TOLD:
        return
    asked, there = adapters if lora and lora.rank else whole, all_bytes(torch.device(device))
    if asked.of_rank(fsdp_size) > there:
        ways = []
        if lora and asked is whole:
            ways.append(f"set lora.rank, which at {rank} takes {adapters.text},")
        ways += ["set kl_coef to 0, which needs no reference"] if asked.reference else []
        ways += ["let more ranks share it, with fsdp_size"] if world().size > fsdp_size else []
        raise RecastError(
            f"{folder} takes {asked.text} in training, and {size(there)} are all that there is: "
            + " or ".join([*ways, "choose a smaller model"])
        )
    print(f"{folder}: {needs_text(whole, adapters, rank)}", flush=True)
