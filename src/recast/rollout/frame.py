"""What stands around thoughts: a policy in, the tokens that end one, that follow it and that begin
an item; where prompts end, and whether a thought and an item fit behind them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recast.policy.body import text_config
from recast.policy.encoder_decoder import start_token
from recast.policy.load import Policy
from recast.types import Prompts, RecastError, require

OPEN, CLOSE = "<think>", "</think>"
_SHORTEST = 10
"""Characters that a thought of the right format has more of (onerec_recipe.py, line 386)."""
_TAIL = 12
"""Tokens at the end of a prompt that hold a tag and the line breaks around it."""


class Frame(NamedTuple):
    """What stands around thoughts, as tokens."""

    close: int
    end: list[int]
    """Of a turn, by which a thought ends too, unclosed."""
    forced: list[int]
    """Behind a thought."""
    begin: list[int]
    """What a prompt ends in that would have an item at once."""
    known: int
    """Tokens of the tokenizer."""


def frame_of(policy: Policy, prefix: str) -> Frame:
    """Raises `RecastError` for a policy that cannot think, or thinks in its prompts already."""
    tokenizer, catalog = policy.tokenizer, policy.catalog
    if not catalog.codebook_sizes:
        raise RecastError(
            "the policy's items are titles, and a thought stands before semantic IDs alone: choose "
            "a sampler that does not think, and leave out --think"
        )
    need = "an encoder-decoder reads a prompt and no thought behind it: choose another sampler"
    require(start_token(policy.model) is None, "sampler", "think", need)
    if tokenizer is None:
        raise RecastError(
            "sampler is 'think', and the policy has no tokenizer to read thoughts with: start from "
            "a language model (recast sft --model.path), or choose another sampler"
        )
    close = tokenizer.encode(CLOSE, add_special_tokens=False)
    if len(close) != 1 or tokenizer.unk_token_id in close:
        raise RecastError(
            f"sampler is 'think', and the policy's tokenizer reads {CLOSE} as {len(close)} tokens: "
            "start from a model that thinks, such as Qwen3, or choose another sampler"
        )
    asked = policy.prompt.prefix or ""
    need = "the thought is behind it, leave it out or choose another sampler"
    require(CLOSE not in asked, "prompt.prefix", asked, need)
    forced = tokenizer.encode(prefix, add_special_tokens=False) + list(catalog.begin_tokens)
    need = "give a text that stands between a thought and an item"
    require(bool(forced), "prefix", prefix, need)
    turn = getattr(policy.model.generation_config, "eos_token_id", None)
    ends = turn if isinstance(turn, list) else [turn]
    end = [token for token in {*ends, tokenizer.eos_token_id} if token is not None]
    return Frame(close[0], end, forced, list(catalog.begin_tokens), len(tokenizer))


def thought_begins(
    policy: Policy, prompts: Prompts, frame: Frame, limit: int, *, closes: bool
) -> Int[Tensor, " B"]:
    """Tokens of each prompt before what begins an item. Raises what `require_context` raises."""
    count, lengths = len(frame.begin), prompts.lengths
    at = (lengths[:, None] - count + torch.arange(count, device=lengths.device)).clamp(min=0)
    last = prompts.tokens.gather(1, at)
    is_begun = (last == last.new_tensor(frame.begin)).all(1) & (lengths > count)
    begins = torch.where(is_begun, lengths - count, lengths)
    for row, text in zip(prompts.row_ids.tolist(), _ends(policy, prompts, begins), strict=True):
        if text.endswith(CLOSE):
            raise RecastError(
                f"row {row} has a prompt that ends in {CLOSE}, behind which nobody thinks: render "
                "it without, or choose another sampler"
            )
    require_context(policy, int(begins.max()), limit, frame, closes=closes)
    return begins


def require_context(
    policy: Policy, longest: int, limit: int, frame: Frame, *, closes: bool
) -> None:
    """Raise `RecastError` where a thought of `limit` tokens, what closes it and an item leave the
    context."""
    context = getattr(text_config(policy.model), "max_position_embeddings", None)
    behind = closes + len(frame.forced) + policy.catalog.max_length
    if context is not None and longest + limit + behind > context:
        most = max(context - longest - behind, 0)
        raise RecastError(
            f"max_thought_tokens is {limit}: behind a prompt of {longest} tokens {most} fit into "
            f"the policy's context of {context}, of which the item and what begins it take "
            f"{behind}: give {most} or fewer, or train a policy of a longer context"
        )


class Tags(NamedTuple):
    """What stands around the text of thoughts."""

    is_open: Bool[Tensor, "B N"]
    """`<think>` stands in the thought, or ends the prompt."""
    is_long: Bool[Tensor, "B N"]
    """More than ten characters that are no space follow it, before `</think>`."""


def tags_of(
    policy: Policy,
    prompts: Prompts,
    begins: Int[Tensor, " B"],
    tokens: Int[Tensor, "B N S"],
    lengths: Int[Tensor, "B N"],
) -> Tags:
    """Of thoughts; the prompts are read up to `begins`."""
    found = []
    for row, text in enumerate(_ends(policy, prompts, begins)):
        before = OPEN if text.endswith(OPEN) else ""
        for thought, size in zip(tokens[row].tolist(), lengths[row].tolist(), strict=True):
            inside = (before + _decoded(policy, thought[:size])).partition(CLOSE)[0]
            _, tag, said = inside.partition(OPEN)
            found.append([bool(tag), len("".join(said.split())) > _SHORTEST])
    both = torch.tensor(found, device=lengths.device).view(*lengths.shape, 2)
    return Tags(*both.unbind(-1))


def _ends(policy: Policy, prompts: Prompts, begins: Int[Tensor, " B"]) -> list[str]:
    """The last words of each prompt."""
    rows = zip(prompts.tokens.tolist(), begins.tolist(), strict=True)
    return [_decoded(policy, row[max(end - _TAIL, 0) : end]).rstrip() for row, end in rows]


def _decoded(policy: Policy, tokens: list[int]) -> str:
    text: str = policy.tokenizer.decode(tokens, skip_special_tokens=False)
    return text
