"""The body of a language model: tokens in, last hidden states out; no other file calls one."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor


def hidden_states(
    model: Any,
    positions: Int[Tensor, "B S"],
    *,
    tokens: Int[Tensor, "B S"] | None = None,
    embedded: Float[Tensor, "B S W"] | None = None,
    **others: Any,
) -> Float[Tensor, "B S W"]:
    """What the output layer reads, of `tokens` or of their embeddings; W numbers a token.

    `model` is a transformers causal LM, plain or with adapters. Positions are always told: some
    models count them from elsewhere by themselves. `others` reach the attention: a `layout`, and
    `past_key_values` to decode with.
    """
    hidden: Tensor = body_of(model)(
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
