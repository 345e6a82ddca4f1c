"""Constrained beam search: a group of rollouts against transformers' `generate(num_beams)`."""

from __future__ import annotations

from collections import defaultdict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.harness import (
    Row,
    main,
    paired,
    random_catalog,
    random_prompts,
    stock_attention,
    tiny_policy,
)
from recast.items.catalog import Catalog
from recast.policy.load import Policy
from recast.rollout.beam import beam_search
from recast.types import Prompts

Prefixes = dict[tuple[int, ...], list[int]]


def prefixes_of(catalog: Catalog) -> Prefixes:
    """The tokens that may follow each prefix of an item: the peers' dict."""
    following: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for path in catalog.tokens_of(torch.arange(catalog.num_items)).tolist():
        for level, token in enumerate(path):
            following[tuple(path[:level])].add(token)
    return {prefix: sorted(tokens) for prefix, tokens in following.items()}


def transformers_beams(
    policy: Policy, prompts: Prompts, width: int, prefixes: Prefixes
) -> tuple[Int[Tensor, "B G L"], Float[Tensor, "B G"]]:
    """transformers' own beam search under `prefix_allowed_tokens_fn`: sequences and scores."""
    length, num_levels = prompts.tokens.shape[1], policy.catalog.num_levels

    def allowed(_: int, sequence: Tensor) -> list[int]:
        return prefixes[tuple(sequence[length:].tolist())]

    with stock_attention(policy.model):
        found = policy.model.generate(
            prompts.tokens,
            attention_mask=torch.ones_like(prompts.tokens),
            prefix_allowed_tokens_fn=allowed,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=num_levels,
            length_penalty=0.0,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    sequences = found.sequences[:, length:].view(len(prompts), width, num_levels)
    return sequences, found.sequences_scores.view(len(prompts), width)


def run(smoke: bool) -> list[Row]:
    """One row: P prompts x G beams."""
    num_prompts, width, length, num_items, codes = (
        (2, 4, 16, 60, 8) if smoke else (8, 32, 256, 100_000, 256)
    )
    catalog = random_catalog(num_items, codes)
    policy, prompts = tiny_policy(catalog), random_prompts(catalog, num_prompts, length)
    prefixes = prefixes_of(catalog)

    groups = beam_search(policy, prompts, width)
    sequences, scores = transformers_beams(policy, prompts, width, prefixes)
    # Equal scores at every rank; two items a rounding error apart may have changed places.
    torch.testing.assert_close(groups.rollout_logprobs.sum(-1), scores, rtol=0, atol=1e-3)
    equal = float((groups.tokens == sequences).all(-1).float().mean())
    assert equal > 0.98, f"{equal:.1%} of the beams are equal"

    slow, fast = paired(
        lambda: transformers_beams(policy, prompts, width, prefixes),
        lambda: beam_search(policy, prompts, width),
        repeats=1 if smoke else 7,
        slow_repeats=3,
    )
    return [
        Row(
            name="rollout",
            what=f"constrained beam rollout, P {num_prompts}, G {width}, prompt {length}, "
            f"{num_items:,} items",
            against="model.generate(num_beams) with prefix_allowed_tokens_fn over a dict of "
            "prefixes, same beams",
            value=slow / fast,
            bar=25,
            at_least=True,
            details=f"transformers {slow:.2f} s, Recast {fast:.3f} s; {equal:.1%} of the beams "
            "are the same item at the same rank",
        )
    ]


if __name__ == "__main__":
    main(run)
