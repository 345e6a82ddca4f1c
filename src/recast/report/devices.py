"""What a step would take on a cluster: a model's shape, a step and cards in; text out.

Estimates from stated assumptions, not measurements: `benchmarks/gpu.py` measures one card. Compared
are three ways to send the same step: *naive*, every rollout behind its own copy of the prompt;
*pair*, two rollouts of a group so, as the ReCast paper trains; *packed*, the prompt once with all
of its rollouts, as `update` sends it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from recast.config.devices import Devices
from recast.policy.body import text_config
from recast.policy.memory import size

MFU = 0.4
"""Share of a card's bfloat16 rate that the passes reach, assumed: of large dense models."""
STATE_BYTES = 16
"""Of a trained weight: itself, its gradient and AdamW's two moments, 4 each."""
MOST_STATE = 0.8
"""Of a card's memory: the rest is for what a pass keeps, which is not estimated."""
PASS_TOKENS = 8192
"""A rank's tokens between two gathers of sharded weights, assumed."""


class Shape(NamedTuple):
    """A transformer as far as it costs; `body` are its weights but for tables of tokens."""

    body: int
    layers: int
    attention: int
    """Heads times their width."""
    width: int
    vocabulary: int
    is_tied: bool

    @property
    def weights(self) -> int:
        return self.body + (1 if self.is_tied else 2) * self.vocabulary * self.width


def shape_of(model: Any) -> Shape:
    """Of a loaded model; all weights of a mixture of experts count, though a token meets some."""
    config, table = text_config(model), model.get_input_embeddings().weight
    is_tied = model.get_output_embeddings().weight is table
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    total = sum(weight.numel() for weight in model.parameters())
    vocabulary, width = table.shape
    return Shape(
        body=total - (1 if is_tied else 2) * table.numel(),
        layers=config.num_hidden_layers,
        attention=config.num_attention_heads * head,
        width=width,
        vocabulary=vocabulary,
        is_tied=is_tied,
    )


def qwen3(width: int, layers: int, heads: int, inner: int, *, is_tied: bool = False) -> Shape:
    """A Qwen3 with 8 heads of keys and values, 128 a head, and its own vocabulary.

    Published as 1.7 B:

    >>> round(qwen3(2048, 28, 16, 6144, is_tied=True).weights / 1e9, 2)
    1.72
    """
    block = width * (2 * 128 * (heads + 8) + 3 * inner) + 2 * width + 2 * 128
    return Shape(layers * block + width, layers, 128 * heads, width, 151_936, is_tied)


QWEN3 = {
    "1.7 B": qwen3(2048, 28, 16, 6144, is_tied=True),
    "8 B": qwen3(4096, 36, 32, 12288),
    "14 B": qwen3(5120, 40, 40, 17408),
}


class Step(NamedTuple):
    """What is rolled out and learned from."""

    prompts: int
    prompt_tokens: int
    group_size: int
    item_tokens: int


class Sent(NamedTuple):
    """What goes through the model once: tokens, pairs of one that attends and one that it sees, and
    tokens whose logits are read."""

    tokens: int
    pairs: int
    reads: int

    def flops(self, shape: Shape) -> float:
        """Of a forward pass: 2 for every weight of a token, 4 for every number of a pair."""
        weights = shape.body * self.tokens + shape.vocabulary * shape.width * self.reads
        return 2.0 * weights + 4.0 * shape.layers * shape.attention * self.pairs


def copies(step: Step, rollouts: int) -> Sent:
    """So many rollouts of every group, each behind its own copy of the prompt.

    2 prompts of 10 tokens with 4 items of 3, whose last token is not sent: rows of 12, in which a
    token sees itself and all before it, and 3 are read:

    >>> copies(Step(2, 10, 4, 3), 4)
    Sent(tokens=96, pairs=624, reads=24)
    """
    rows, width = step.prompts * rollouts, step.prompt_tokens + step.item_tokens - 1
    return Sent(rows * width, rows * width * (width + 1) // 2, rows * step.item_tokens)


def packed(step: Step) -> Sent:
    """Every prompt once with all of its rollouts, at most: those that begin alike share tokens.

    >>> packed(Step(2, 10, 4, 3))
    Sent(tokens=36, pairs=294, reads=18)
    """
    nodes = step.group_size * (step.item_tokens - 1)
    seen = step.prompt_tokens * (step.prompt_tokens + 1) // 2
    levels = range(1, step.item_tokens)
    seen += step.group_size * sum(step.prompt_tokens + level for level in levels)
    tokens = step.prompts * (step.prompt_tokens + nodes)
    return Sent(tokens, step.prompts * seen, step.prompts * (1 + nodes))


def ways(step: Step) -> dict[str, Sent]:
    """What each way sends through the update."""
    return {"naive": copies(step, step.group_size), "pair": copies(step, 2), "packed": packed(step)}


class Taken(NamedTuple):
    """Seconds of a step."""

    compute: float
    replicas: float
    """Summing gradients where every card holds the whole model."""
    sharded: float
    """Gathering weights and scattering gradients where all cards share it."""


def seconds(
    shape: Shape, step: Step, sent: Sent, devices: Devices, *, has_reference: bool
) -> Taken:
    """Rollout (the prompts once, the items behind them), reference and update, which is a forward
    pass and a backward pass of twice that; nothing overlaps.

    Sums go round a ring, through the slowest link that all need: each card sends and receives every
    byte (n - 1) / n times, twice where all get the sum. Shared weights are gathered in 32 bits for
    the rollout, the reference and, forwards and backwards, for every pass of `PASS_TOKENS`.
    """
    forward = sent.flops(shape)
    work = packed(step).flops(shape) + (3 + has_reference) * forward
    compute = work / (devices.number * devices.card.flops * MFU)
    share = (devices.number - 1) / devices.number
    per_weight = share * shape.weights / devices.link
    passes = math.ceil(sent.tokens / devices.number / PASS_TOKENS)
    gathers = 1 + has_reference + 2 * passes
    return Taken(compute, 2 * 4 * per_weight, 4 * (gathers + passes) * per_weight)


def described(shape: Shape, step: Step, devices: Devices, *, has_reference: bool) -> Iterator[str]:
    """All of it, line by line."""
    card, count = devices.card, devices.number
    state = STATE_BYTES + 4 * has_reference
    whole, most, gathered = shape.weights * state, MOST_STATE * card.memory, 4 * shape.weights
    shared, fits = whole / count + gathered, whole < most
    yield (
        f"{count} x {card.name}, each {card.flops / 1e12:.0f} TFLOP/s in bfloat16, of which "
        f"{MFU:.0%} are assumed, {card.memory / 1e9:.0f} GB, {devices.link / 1e9:.0f} GB/s"
    )
    yield (
        f"{step.prompts:,} prompts of {step.prompt_tokens:,} tokens, {step.group_size} items of "
        f"{step.item_tokens} each; {shape.weights / 1e9:.2f} B weights"
    )
    yield (
        f"a card holds {size(whole)} as a replica{'' if fits else ', which does not fit'}, "
        f"{size(shared)} as one of {count} that share it"
        f"{'' if shared < most else ', which does not fit'}"
    )
    yield (
        f"through each card's link: {size(8 * shape.weights * (count - 1) / count)} a step to sum "
        f"gradients, {size(gathered * (count - 1) / count)} to gather the weights once"
    )
    yield f"{'':8}{'tokens':>10}{'PFLOP':>9}{'compute s':>11}{'replicas s':>12}{'sharded s':>11}"
    for name, sent in ways(step).items():
        taken = seconds(shape, step, sent, devices, has_reference=has_reference)
        work = taken.compute * count * card.flops * MFU / 1e15
        replicas = f"{taken.compute + taken.replicas:.2f}" if fits else "-"
        sharded = f"{taken.compute + taken.sharded:.2f}" if shared < most else "-"
        yield (
            f"{name:8}{_short(sent.tokens):>10}{work:>9.1f}{taken.compute:>11.2f}{replicas:>12}"
            f"{sharded:>11}"
        )


def _short(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"
