"""Whether a model can be sent packed: its attention is known, and its numbers are its own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from recast.items.catalog import Catalog
from recast.policy.packed import pack, packed_forward
from recast.types import RecastError


def text_config(model: Any) -> Any:
    """Of what writes tokens: the model's own settings, or a part of a multimodal model's."""
    return model.config.get_text_config(decoder=True)


def is_packable(model: Any) -> bool:
    """Whether all layers have an attention that the packed one can replace.

    Others would run without the layout, that is, with wrong numbers and no error.
    """
    layers = set(getattr(text_config(model), "layer_types", None) or ["full_attention"])
    known = layers <= {"full_attention", "sliding_attention"}
    return known and bool(model._supports_attention_backend)


@torch.no_grad()
def agrees(model: PreTrainedModel, catalog: Catalog) -> bool:
    """Whether the layout arrives, and two branches of a prompt get the logits that each gets alone.

    All tokens are semantic IDs: a padding token may have an embedding of zeros, behind which
    everything looks alike.
    """
    count = catalog.vocab_size - catalog.first_token
    tokens = catalog.first_token + torch.arange(6, device=model.device).view(3, 2) % count
    prompt, branches = tokens[:1], tokens[None, 1:]
    packed = pack(prompt, torch.full((1,), 2, device=model.device), branches)
    hidden = packed_forward(model, packed)[0]
    found = model.get_output_embeddings()(hidden[packed.places[0]]).float()
    alone = torch.cat([prompt.expand(2, -1), branches[0, :, :1]], dim=1)
    wanted = model(input_ids=alone, use_cache=False).logits[:, 1:].float()
    limit = 1e-4 if model.dtype.itemsize >= 4 else 0.1
    return packed.layout.was_used and bool((found - wanted).norm() <= limit * wanted.norm())


def other_attention(name: str, kind: str) -> RecastError:
    return RecastError(
        f"{name} is a {kind}, whose attention the packed forward cannot "
        "replace: choose a model of plain or sliding-window attention, such as Qwen3 or Llama"
    )
