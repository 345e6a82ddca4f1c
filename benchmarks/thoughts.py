"""Thoughts that the policy samples itself against transformers' `generate` and its continuous
batching, which takes ten seconds to begin. Nothing ends a thought: each has all its tokens."""

from __future__ import annotations

import torch
from transformers import GenerationConfig

from benchmarks.harness import (
    Row,
    main,
    paired,
    random_catalog,
    random_prompts,
    stock_attention,
    tiny_policy,
)
from recast.rollout.distribution import Distribution
from recast.rollout.frame import Frame
from recast.rollout.written import write
from recast.types import Draw


def run(smoke: bool) -> list[Row]:
    """A row for each: P prompts x N thoughts."""
    num_prompts, length, count, limit = (1, 8, 2, 2) if smoke else (4, 256, 4, 32)
    catalog = random_catalog(60, 8)
    policy, prompts = tiny_policy(catalog), random_prompts(catalog, num_prompts, length)
    width = policy.model.get_output_embeddings().weight.shape[0]
    frame = Frame(close=width, end=[], forced=[], begin=[], known=width)
    settings = GenerationConfig(
        max_new_tokens=limit,
        do_sample=True,
        top_k=0,
        num_return_sequences=count,
        eos_token_id=width,
        pad_token_id=0,
    )

    @torch.no_grad()
    def own() -> object:
        every = (policy, prompts, prompts.lengths, count, limit, Draw(), Distribution(), frame)
        return write(*every, closes=False)

    def batched() -> object:
        with stock_attention(policy.model):
            return policy.model.generate_batch(prompts.tokens.tolist(), settings)

    def plain() -> object:
        mask = torch.ones_like(prompts.tokens)
        with stock_attention(policy.model):
            return policy.model.generate(
                prompts.tokens, attention_mask=mask, generation_config=settings
            )

    rows = []
    others = {"generate": plain} if smoke else {"generate": plain, "generate_batch": batched}
    for name, other in others.items():
        theirs, ours = paired(other, own, repeats=1)
        what = (
            f"stage one of `think`, P {num_prompts}, N {count} of {limit} tokens, prompt {length}"
        )
        details = f"{ours:.2f} s, theirs {theirs:.2f} s"
        rows.append(
            Row(
                f"thoughts/{name}",
                what,
                f"transformers' {name}",
                theirs / ours,
                1,
                True,
                "x",
                details,
            )
        )
    return rows


if __name__ == "__main__":
    main(run)
