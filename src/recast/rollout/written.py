"""Thoughts behind their prompts, ready for what follows: prompts in, or tokens that were sampled
elsewhere; the keys and values, hidden states and log-probabilities of the policy out. Letter: S the
tokens of the longest thought."""

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
from recast.rollout.distribution import Distribution
from recast.rollout.frame import Frame
from recast.rollout.sample import invert
from recast.types import Draw, Prompts


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
def write(
    policy: Policy,
    prompts: Prompts,
    begins: Int[Tensor, " B"],
    count: int,
    limit: int,
    draw: Draw,
    drawn_from: Distribution,
    frame: Frame,
    closes: bool,
) -> Written:
    """`count` thoughts of at most `limit` tokens behind each prompt, token by token; one that has
    ended sends what nobody looks at."""
    model, (rows, device) = policy.model, (len(prompts), begins.device)
    packed = pack(prompts.tokens, begins, prompts.targets[:, :0])
    cache: Any = DynamicCache()
    hidden = packed_forward(model, packed, past_key_values=cache).expand(-1, count, -1)
    width = model.get_output_embeddings().weight.shape[0]
    every = torch.arange(width, device=device).expand(rows * count, -1)
    allowed = (every < frame.known).view(rows, count, -1)
    ends = begins.new_tensor([frame.close, *frame.end])
    itself = torch.eye(count, dtype=torch.bool, device=device).expand(rows, -1, -1)
    seen = packed.layout.mask[:, 0].expand(-1, count, -1)
    position = packed.layout.query_positions.expand(-1, count)
    keys = packed.layout.key_positions
    alive = torch.ones(rows, count, dtype=torch.bool, device=device)
    closed, cut, lengths = ~alive, ~alive, torch.zeros_like(position)
    tokens, logprobs = [], []
    for step in range(limit + closes):
        scores = vocabulary_scores(model, hidden.flatten(0, 1), every).view(rows, count, -1)
        weights = drawn_from.weights(scores, allowed)
        token = invert(weights.cumsum(-1), draw.uniforms(prompts, f"think/{step}", count))
        if closes:
            ends_otherwise = (torch.isin(token, ends) & (token != frame.close)) | (step == limit)
            cut = cut | (alive & ends_otherwise)
            token = token.masked_fill(ends_otherwise, frame.close)
        value = scores.gather(2, token[..., None])[..., 0]
        tokens.append(token.masked_fill(~alive, policy.catalog.pad_token))
        logprobs.append(value.masked_fill(~alive, 0.0))
        keys = torch.cat([keys, position + 1], dim=1)
        layout = Layout(
            prompt_width=0,
            mask=torch.cat([seen, itself], dim=2)[:, None],
            query_positions=position + 1,
            key_positions=keys,
            num_tokens=alive.sum(),
        )
        moved = hidden_states(
            model, position + 1, tokens=token, layout=layout, past_key_values=cache
        )
        hidden = torch.where(alive[..., None], moved, hidden)
        seen = torch.cat([seen, itself & alive[..., None]], dim=2)
        position, lengths = position + alive.long(), lengths + alive.long()
        closed = closed | (alive & (token == frame.close) & ~cut)
        alive = alive & ~torch.isin(token, ends)
        if not bool(alive.any()):
            break
    layout = Layout(
        prompt_width=0, mask=seen[:, None], query_positions=position, key_positions=keys
    )
    both = torch.stack(tokens, dim=2), torch.stack(logprobs, dim=2)
    by = torch.full_like(lengths, draw.step)
    return Written(cache, layout, hidden, *both, lengths, closed, cut, by)


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
    return Written(
        cache=cache,
        layout=shown.at(last),
        hidden=at(last),
        tokens=tokens,
        logprobs=logprobs.masked_fill(~sent, 0.0),
        lengths=lengths,
        is_closed=is_closed,
        is_cut=torch.zeros_like(is_closed),
        weights_step=weights_step,
    )
