"""What is never built: a mask of the prompt against itself, a vocabulary mask per rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from shapes import Shapes

from recast.policy.logprobs import branch_logprobs
from recast.rollout.beam import beam_search
from recast.rollout.sample import sample
from recast.types import Draw, Prompts

PROMPT = 512
HEADS = 4


def _long_prompts(policy_catalog: Any) -> Prompts:
    draw = torch.Generator().manual_seed(0)
    items = torch.randint(0, policy_catalog.num_items, (2, 171), generator=draw).tolist()
    return tiny.make_prompts(policy_catalog, [items[0], items[1][:100]], [[1], [2]])


@pytest.mark.parametrize("name", tiny.DECODERS)
def test_no_tensor_of_prompt_by_prompt_is_built(name: str) -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy(name, catalog)
    prompts = _long_prompts(catalog)
    assert prompts.tokens.shape[1] >= PROMPT
    branches = catalog.tokens_of(torch.arange(8).view(2, 4))
    with Shapes() as shapes:
        branch_logprobs(policy, prompts, branches, "full").sum().backward()
    assert not shapes.square(PROMPT - 1, HEADS)
    with Shapes() as shapes:
        beam_search(policy, prompts, 4)
    assert not shapes.square(PROMPT - 1, HEADS)


def test_the_naive_attention_would_be_noticed() -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    model = tiny.twin(tiny.tiny_policy("qwen3", catalog).model, "eager")
    with Shapes() as shapes, torch.no_grad():
        model(input_ids=_long_prompts(catalog).tokens)
    assert shapes.square(PROMPT - 1, HEADS)


def test_a_window_works_in_blocks() -> None:
    """No mask is larger than the window by two windows, the branches' own one aside."""
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("mistral", catalog)
    for layer in policy.model.model.layers:
        layer.self_attn.sliding_window = 32
        layer.self_attn.config.sliding_window = 32
    prompts = _long_prompts(catalog)
    with Shapes() as shapes, torch.no_grad():
        branch_logprobs(policy, prompts, prompts.targets, "full")
    masks = [s for s, dtype in shapes.found if dtype == torch.bool and len(s) == 2]
    assert (32, 64) in masks
    assert max(torch.Size(s).numel() for s in masks) <= 32 * 64
    # Scores of a block, were they materialised, would be heads x window x 2 windows per block.
    blocks = -(-prompts.tokens.shape[1] // 32)
    largest = max(torch.Size(shape).numel() for shape, _ in shapes.found)
    assert largest <= 2 * blocks * HEADS * 32 * 64 < 2 * HEADS * PROMPT * PROMPT / 4


@pytest.mark.parametrize("search", [beam_search, sample])
def test_rollouts_build_no_vocabulary_mask_and_no_copy_of_the_prompt(
    search: Callable[..., Any],
) -> None:
    catalog = tiny.random_catalog(900, (11, 13, 17))
    policy = tiny.tiny_policy("qwen3", catalog)
    group_size, vocabulary = 16, catalog.vocab_size
    prompts = _long_prompts(catalog)
    for space in ("full", "trie"):
        with Shapes() as shapes:
            search(policy, prompts, group_size, Draw(logprob_space=space))
        masks = [s for s, dtype in shapes.found if dtype == torch.bool]
        assert masks
        assert not [s for s in masks if s[-1:] == (vocabulary,)]
        # Keys or values of 2 prompts x G branches x 2 heads x P positions x 8 numbers.
        largest = max(torch.Size(shape).numel() for shape, _ in shapes.found)
        assert largest < 2 * group_size * 2 * PROMPT * 8
