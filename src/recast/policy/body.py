"""The body of a language model: tokens in, last hidden states out; no other file calls one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from recast.policy.encoder_decoder import T5_BLOCKS, is_encoder_decoder, t5_states
from recast.run.clock import count_tokens
from recast.types import RecastError

_NAMES = {
    **dict.fromkeys(("self_attn", "self_attention", "attn", "attention"), "attention"),
    **dict.fromkeys(("mlp", "feed_forward", "ffn", "block_sparse_moe"), "feed-forward"),
}
"""What the blocks of a layer are called in transformers."""


def hidden_states(
    model: Any,
    positions: Int[Tensor, "B S"],
    *,
    tokens: Int[Tensor, "B S"] | None = None,
    embedded: Float[Tensor, "B S W"] | None = None,
    **others: Any,
) -> Float[Tensor, "B S W"]:
    """What the output layer reads, of `tokens` or of their embeddings; W numbers a token.

    `model` is a causal LM or a T5 of transformers, plain or with adapters. Positions are always
    told: some models count them from elsewhere by themselves. `others` reach the attention: a
    `layout`, which a T5 needs, and `past_key_values` to decode with.
    """
    layout = others.get("layout")
    count_tokens(positions.numel() if layout is None else layout.num_tokens)
    body = body_of(model)
    if is_encoder_decoder(body):
        if embedded is None:
            embedded = body.get_input_embeddings()(tokens)
        return t5_states(body, positions, embedded, **others)
    require_steady(body, positions)
    hidden: Tensor = body(
        input_ids=tokens,
        inputs_embeds=embedded,
        position_ids=positions,
        use_cache="past_key_values" in others,
        **others,
    ).last_hidden_state
    return hidden


def body_of(model: Any) -> Any:
    """The transformer without its output layer; adapters (PEFT) sit inside it."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.base_model


class Among(NamedTuple):
    """Rows that are sent, of those that a batch has."""

    rows: list[int]
    total: int


@contextmanager
def dropping(model: Any, rate: float, among: Among | None = None) -> Iterator[None]:
    """While it lasts, dropout on the output of every attention and feed-forward block, before it
    joins the residual stream. Nothing of it stays in the model. Rows that are sent `among` others
    get the numbers that they have in one pass over them all.

    Raises `RecastError` for a model in which no such blocks are found by their names.
    """
    if not rate:
        yield
        return

    def mask_of(values: Tensor) -> Tensor:
        if among is None:
            return dropout_mask(values, rate)
        whole = values.new_empty(among.total, *values.shape[1:])
        return dropout_mask(whole, rate)[among.rows]

    def drop(module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention gives its weights too
            return (output[0] * mask_of(output[0]), *output[1:])
        return output * mask_of(output)

    hooks = [block.register_forward_hook(drop) for block in _blocks(body_of(model))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def dropout_mask(like: Float[Tensor, "*shape"], rate: float) -> Float[Tensor, "*shape"]:
    """0 for a share of `rate`, else 1 over the share that is left, as dropout multiplies by.

    On a CPU torch's generator draws four numbers at once, so that the rate is one in steps of
    2^-16: a third of the time of `torch.nn.functional.dropout`.
    """
    if like.device.type != "cpu":
        return F.dropout(torch.ones_like(like), rate)
    count, share = like.numel(), min(round(rate * 2**16), 2**16 - 1)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64)
    drawn = drawn.random_(torch.iinfo(torch.int64).min, None).view(torch.int16)[:count]
    left = 2**16 / (2**16 - share)
    return (drawn >= share - 2**15).view(like.shape).to(like.dtype).mul_(left)


def _blocks(body: Any) -> list[Any]:
    """The attention and the feed-forward block of every layer."""
    found: list[Any] = []
    for layer in body.modules():
        blocks = {name: block for name, block in layer.named_children() if name in _NAMES}
        if {_NAMES[name] for name in blocks} == {"attention", "feed-forward"}:
            found += blocks.values()
        found += [block for name, block in layer.named_children() if name in T5_BLOCKS]
    if not found:
        raise RecastError(
            f"layer_dropout finds no attention and feed-forward blocks in {type(body).__name__}, "
            f"whose layers call them otherwise than {', '.join(_NAMES)}: leave it out"
        )
    return found


def text_config(model: Any) -> Any:
    """Of what writes tokens: the model's own settings, or a part of a multimodal model's."""
    if is_encoder_decoder(model):  # transformers would make a copy with other names
        return model.config
    return model.config.get_text_config(decoder=True)


def steady_positions(model: Any) -> int | None:
    """Positions that a call may hold before the rotary embeddings of all its rows change with the
    longest of them, as `dynamic` and `longrope` ones do; None where they never do."""
    config = text_config(model)
    rope = getattr(config, "rope_parameters", None) or {}
    context = getattr(config, "max_position_embeddings", None)
    found: list[int | None] = []
    for part in (rope, *rope.values()):  # one for all layers, or one for each kind of layer
        if not isinstance(part, dict):
            continue
        if part.get("rope_type") in ("dynamic", "longrope") or "long_mscale" in part:  # PhiMoE's
            original = part.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            found.append(original or context)
    return min((x for x in found if isinstance(x, int)), default=None)


def require_steady(model: Any, positions: Int[Tensor, "B S"]) -> None:
    """Raise `RecastError` where a prompt's numbers would depend on the others of its call."""
    most = steady_positions(model)
    if most is not None and positions.numel() and int(positions.max()) >= most:
        raise RecastError(
            f"a prompt of {int(positions.max()) + 1} tokens: beyond {most} the model's rotary "
            "position embeddings look at the longest prompt of a call, and all numbers with them; "
            f"shorten prompts to {most} tokens"
        )
