"""Thoughts behind their prompts, ready for what follows: tokens that were sampled elsewhere in, the
keys and values, hidden states and log-probabilities of the policy out. Letter: S the tokens of the
longest thought."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from recast.policy.attention import Layout
from recast.policy.body import hidden_states
from recast.policy.head import vocabulary_scores
from recast.policy.load import Policy
from recast.policy.packed import grow_branches, pack, packed_forward
from recast.types import Prompts


class Written(NamedTuple):
    """Thoughts on one copy of their prompts."""

    cache: Any
    layout: Layout
    """Whose queries are their last tokens."""
    hidden: Float[Tensor, "B N W"]
    tokens: Int[Tensor, "B N S"]
    logprobs: Float[Tensor, "B N S"]
    lengths: Int[Tensor, "B N"]
    is_closed: Bool[Tensor, "B N"]
    is_cut: Bool[Tensor, "B N"]
    """The last token is a `</think>` that was written for it."""
    weights_step: Int[Tensor, "B N"]
    """Steps behind the weights that wrote them."""
    server_gap: Float[Tensor, "B N"] | None = None
    """As that of `Thoughts`."""


@torch.no_grad()
def read_written(
    policy: Policy,
    prompts: Prompts,
    begins: Int[Tensor, " B"],
    tokens: Int[Tensor, "B N S"],
    lengths: Int[Tensor, "B N"],
    is_closed: Bool[Tensor, "B N"],
    weights_step: Int[Tensor, "B N"],
) -> Written:
    """The thoughts in one packed pass over prompts and thoughts, as if the policy had sampled them
    token by token; the prompt is sent once, and so is a beginning that thoughts share."""
    packed = pack(prompts.tokens, begins, prompts.targets[:, :0])
    cache: Any = DynamicCache()
    root = packed_forward(policy.model, packed, past_key_values=cache)
    sent = torch.arange(tokens.shape[2], device=tokens.device) < lengths[..., None]
    growth = grow_branches(packed.layout, torch.zeros_like(lengths), tokens, sent)
    shown, places = growth.layout, growth.places
    hidden = hidden_states(
        policy.model,
        shown.query_positions,
        tokens=growth.tokens,
        layout=shown,
        past_key_values=cache,
    )

    def at(places: Int[Tensor, "B n"]) -> Float[Tensor, "B n W"]:
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))

    inside = at(places[..., :-1].flatten(1)).unflatten(1, places[..., :-1].shape[1:])
    first = root[:, :, None].expand(-1, tokens.shape[1], -1, -1)
    states = torch.cat([first, inside], dim=2).flatten(0, 2)
    logprobs = vocabulary_scores(policy.model, states, tokens.reshape(-1, 1)).view(tokens.shape)
    last = places.gather(2, lengths[..., None] - 1)[..., 0]
    index = last[:, None, :, None].expand(-1, -1, -1, shown.mask.shape[3])
    layout = Layout(
        prompt_width=0,
        mask=shown.mask.gather(2, index),
        query_positions=shown.query_positions.gather(1, last),
        key_positions=shown.key_positions,
    )
    return Written(
        cache=cache,
        layout=layout,
        hidden=at(last),
        tokens=tokens,
        logprobs=logprobs.masked_fill(~sent, 0.0),
        lengths=lengths,
        is_closed=is_closed,
        is_cut=torch.zeros_like(is_closed),
        weights_step=weights_step,
    )
