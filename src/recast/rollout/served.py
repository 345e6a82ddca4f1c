"""Thoughts that a server writes: prompts in, what it samples behind them out, read by the policy as
if it had written them itself."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from recast.policy.load import Policy
from recast.rollout.distribution import Distribution
from recast.rollout.frame import Frame
from recast.rollout.server import Server
from recast.rollout.written import Written, read_written
from recast.types import Draw, Prompts, RecastError, in_short

_LARGEST_GAP = 0.5
"""Nats by which the server's log-probability of a token may be off ours, in the mean: weights of a
step before were .05 off at a rate of 1e-3 (docs/thoughts.md)."""


def write_by(
    server: Server,
    policy: Policy,
    prompts: Prompts,
    begins: Int[Tensor, " B"],
    count: int,
    limit: int,
    draw: Draw,
    drawn_from: Distribution,
    frame: Frame,
) -> Written:
    """`count` thoughts behind each prompt as the server samples them, with the policy's own keys,
    values and log-probabilities.

    Raises `RecastError` for weights that are too old, for tokens that are no thought of this
    policy's and, at temperature 1, for log-probabilities that are not its own.
    """
    if not server.is_fresh(draw.step):
        raise _stale(server, server.step, draw.step)
    ends = [frame.close, *frame.end]
    width = policy.model.get_output_embeddings().weight.shape[0]
    settings = _settings(drawn_from, limit, ends) | {
        "logit_bias": {str(token): -100.0 for token in range(frame.known, width)}
    }
    seeds = (draw.uniforms(prompts, "think", count) * 2**31).long().tolist()
    rows = zip(prompts.tokens.tolist(), begins.tolist(), seeds, strict=True)
    thoughts = server.sample(
        [settings | {"prompt": row[:size], "seed": seed} for row, size, own in rows for seed in own]
    )
    steps = [_step_of(server, thought.version, draw.step) for thought in thoughts]
    for thought in thoughts:
        _require_thought(server, thought.tokens, ends, limit, frame.known)
    shape = (len(prompts), count)
    lengths = [len(thought.tokens) for thought in thoughts]
    padding = [policy.catalog.pad_token] * max(lengths)
    padded = [(thought.tokens + padding)[: len(padding)] for thought in thoughts]
    closed = [thought.tokens[-1] == frame.close for thought in thoughts]
    written = read_written(
        policy,
        prompts,
        begins,
        tokens=begins.new_tensor(padded).view(*shape, -1),
        lengths=begins.new_tensor(lengths).view(shape),
        is_closed=torch.tensor(closed, device=begins.device).view(shape),
        weights_step=begins.new_tensor(steps).view(shape),
    )
    if drawn_from.temperature != 1:  # some say the log-probabilities of that temperature
        return written
    theirs = [(thought.logprobs + [0.0] * max(lengths))[: max(lengths)] for thought in thoughts]
    apart = (written.logprobs - written.logprobs.new_tensor(theirs).view(*shape, -1)).abs()
    gap = apart.sum(2) / written.lengths
    if float(gap.mean()) > _LARGEST_GAP:
        raise RecastError(
            f"{server} is off the policy's log-probabilities by {float(gap.mean()):.2f} a token: "
            "it serves another model, serve the policy that the run begins from"
        )
    return written._replace(server_gap=gap)


def _settings(drawn_from: Distribution, limit: int, ends: list[int]) -> dict[str, Any]:
    """All that decides what is sampled: what is left out a server takes from the model's folder."""
    return {
        "max_tokens": limit,
        "temperature": drawn_from.temperature,
        "top_p": drawn_from.top_p,
        "top_k": drawn_from.top_k or -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": ends,
        "logprobs": 0,
        "return_token_ids": True,
    }


def _step_of(server: Server, version: object, step: int) -> int:
    """The step behind the weights of this version, which serve `step`."""
    with suppress(TypeError, ValueError):
        if 0 <= step - int(str(version)) <= server.max_staleness:
            return int(str(version))
    raise _stale(server, version, step)


def _stale(server: Server, version: object, step: int) -> RecastError:
    return RecastError(
        f"{server} samples with the weights {in_short(version)}, step {step} needs those of step "
        f"{max(step - server.max_staleness, 0)} or later (max_staleness {server.max_staleness}): "
        "let it serve this run alone, and go on with --resume"
    )


def _require_thought(
    server: Server, tokens: list[int], ends: list[int], limit: int, known: int
) -> None:
    """Raise `RecastError` for what the policy could not have written as a thought."""
    whole = next((place + 1 for place, token in enumerate(tokens) if token in ends), limit)
    wrong = ""
    if max(tokens) >= known:
        wrong = f"token {max(tokens)} where the tokenizer knows {known}: it serves another model"
    elif len(tokens) != whole:
        wrong = f"{len(tokens)} tokens where a thought of {whole} ends: it knows no stop_token_ids"
        if len(tokens) < whole:
            wrong = (
                f"{len(tokens)} tokens of an open thought where {limit} fit: its context is less"
            )
    if wrong:
        raise RecastError(f"{server} gave {wrong}, serve the policy that the run begins from")
