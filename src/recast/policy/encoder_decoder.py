"""The second body: a T5 (arXiv 1910.10683), as TIGER (arXiv 2305.05065) is one. Packed rows in,
last hidden states out.

A row is `[prompt | decoder start | nodes]` (`recast.policy.packed.pack`): the prompt goes through
the encoder once, however many branches it has; the start token, which is the root, and the nodes
are one row of the decoder. The columns that a `Layout` has for the prompt are the mask of the
encoder and of the cross attention, the others that of the decoder's self attention, whose relative
positions count along a branch: the positions of a layout, not its columns.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
)

from recast.policy.attention import ATTENTION, Layout

T5_DISTANCES = 32
"""Classes of relative positions in a new T5, as in the published ones."""
T5_BLOCKS = ("SelfAttention", "EncDecAttention", "DenseReluDense")
"""What the blocks of a T5 are called, each in a module of its own."""


def is_encoder_decoder(model: Any) -> bool:
    return bool(model.config.is_encoder_decoder)


def auto_class(config: Any) -> tuple[Any, str]:
    """What makes a model of these settings, and the attention that it is made with: transformers'
    own in a T5, which takes its masks as a bias."""
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM, "sdpa"
    return AutoModelForCausalLM, ATTENTION


def start_token(model: Any) -> int | None:
    """What a decoder begins with; None for a decoder alone, which begins with its prompt."""
    return int(model.config.decoder_start_token_id) if is_encoder_decoder(model) else None


def new_cache(model: Any) -> Any:
    """For keys and values. Without a config every layer keeps all keys; the windows are the
    layout's business."""
    if is_encoder_decoder(model):
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()


def t5_states(
    model: Any,
    positions: Int[Tensor, "B S"],
    embedded: Float[Tensor, "B S W"],
    *,
    layout: Layout,
    past_key_values: Any = None,
) -> Float[Tensor, "B S W"]:
    """What the output layer reads, scaled as a T5 scales it; of the prompt the encoder's states.

    A later call on a cache brings no prompt: its keys and values are in the cross attention's.
    """
    width = layout.prompt_width
    prompt, nodes = embedded[:, :width], embedded[:, width:]
    held = width if width else past_key_values.cross_attention_cache.get_seq_length()
    mask = layout.bias(None, embedded.dtype)
    if width:
        place = positions[:1, :width]
        bias = _relative(model.encoder, place, place) + mask[:, :, :1, :held]
        prompt = _run(model.encoder, prompt, bias)
    bias = _relative(model.decoder, layout.query_positions, layout.key_positions[:, held:])
    # Of the prompt's states nobody reads but the first call, which leaves keys and values of them.
    cross = (prompt, None, mask[..., :held])
    bias = bias + mask[..., held:]
    hidden = _run(model.decoder, nodes, bias, *cross, past_key_values=past_key_values)
    if model.config.scale_decoder_outputs:
        hidden = hidden * model.config.d_model**-0.5
    return torch.cat([prompt, hidden], dim=1)


def _run(
    stack: Any,
    hidden: Float[Tensor, "B S W"],
    *context: Tensor | None,
    past_key_values: Any = None,
) -> Float[Tensor, "B S W"]:
    """The stack's own forward pass, but for the masks and the position bias, which are given."""
    hidden = stack.dropout(hidden)
    for block in stack.block:
        # Causal or not, the bias says it all.
        hidden, *_ = block(hidden, None, *context, past_key_values=past_key_values, is_causal=False)
    found: Tensor = stack.dropout(stack.final_layer_norm(hidden))
    return found


def _relative(
    stack: Any, queries: Int[Tensor, "B Q"], keys: Int[Tensor, "B S"]
) -> Float[Tensor, "B heads Q S"]:
    """The first layer's bias by distance, which all layers share."""
    attention = stack.block[0].layer[0].SelfAttention
    bucket = attention._relative_position_bucket(
        keys[:, None, :] - queries[:, :, None],
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias: Tensor = attention.relative_attention_bias(bucket)
    return bias.permute(0, 3, 1, 2)
