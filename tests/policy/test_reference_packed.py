"""The packed forward against one unpadded copy of the prompt per branch."""

from __future__ import annotations

import naive
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.policy.attention import packed_attention
from recast.policy.load import Policy, disable_dropout
from recast.policy.logprobs import branch_logprobs
from recast.policy.packed import pack, packed_forward
from recast.types import Prompts, RecastError

KEPT = (4, 1, 3, 2)
"""Branches of each prompt; the rest of the rectangle is filler with weight 0."""


def _case(policy: Policy) -> tuple[Prompts, torch.Tensor, torch.Tensor]:
    """Prompts of 1, 7, 19 and 13 tokens, their branches and a weight per branch token."""
    catalog = policy.catalog
    histories = [[], [3, 5], [0, 1, 2, 3, 4, 5], [7, 6, 5, 4]]
    prompts = tiny.make_prompts(catalog, histories, [[7], [0], [6], [1]])
    draw = torch.Generator().manual_seed(3)
    branches = catalog.tokens_of(
        torch.randint(0, catalog.num_items, (4, max(KEPT)), generator=draw)
    )
    weights = torch.randn(branches.shape, generator=draw, dtype=policy.model.dtype)
    weights *= (torch.arange(max(KEPT)) < torch.tensor(KEPT)[:, None])[..., None]
    return prompts, branches, weights


def _naive_gradients(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    prompts, branches, weights = _case(policy)
    model = tiny.twin(policy.model)
    rows = {
        (b, k): naive.branch_logprobs(model, prompts, b, branches[b, k].tolist())
        for b, kept in enumerate(KEPT)
        for k in range(kept)
    }
    loss = torch.stack([(weights[b, k] * row).sum() for (b, k), row in rows.items()]).sum()
    return naive.gradients(model, loss), torch.cat([row.detach() for row in rows.values()])


def _packed_gradients(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    prompts, branches, weights = _case(policy)
    logprobs = branch_logprobs(policy, prompts, branches, "full")
    kept = torch.cat([logprobs[b, :kept].flatten() for b, kept in enumerate(KEPT)])
    return naive.gradients(policy.model, (logprobs * weights).sum()), kept.detach()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_gradients_equal_those_of_one_copy_of_the_prompt_per_branch(
    name: str, dtype: torch.dtype, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny.tiny_policy(name, tiny.tiny_catalog(), dtype)
    if dtype == torch.float64:
        naive.lift_norms(policy.model, monkeypatch)
    wanted, wanted_logprobs = _naive_gradients(policy)
    if checkpointing:
        policy.model.train()
        disable_dropout(policy.model)
        policy.model.activation_checkpointing_enable()
    found, logprobs = _packed_gradients(policy)
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    assert naive.relative_error(found, wanted) <= limit
    assert naive.relative_error(logprobs, wanted_logprobs) <= limit


def test_checkpointing_really_runs_the_layers_twice() -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    policy.model.train()
    disable_dropout(policy.model)
    policy.model.activation_checkpointing_enable()
    calls = []
    policy.model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    _packed_gradients(policy)
    assert len(calls) == 2


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_dropout_left_on_changes_the_numbers_and_disable_dropout_turns_it_off(name: str) -> None:
    policy = tiny.tiny_policy(name, tiny.tiny_catalog())
    prompts, branches, _ = _case(policy)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        still = branch_logprobs(policy, prompts, branches, "full")
        policy.model.train()
        noisy = branch_logprobs(policy, prompts, branches, "full")
        disable_dropout(policy.model)
        quiet = branch_logprobs(policy, prompts, branches, "full")
    assert not torch.allclose(noisy, still)
    assert torch.equal(quiet, still)


def test_bfloat16_runs_and_agrees_loosely_with_the_naive_computation() -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog(), torch.bfloat16)
    found, logprobs = _packed_gradients(policy)
    wanted, wanted_logprobs = _naive_gradients(policy)
    assert logprobs.dtype == torch.float32
    assert naive.relative_error(found.float(), wanted.float()) < 0.05
    assert (logprobs - wanted_logprobs.float()).abs().max() < 0.1


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    num_branches=st.integers(0, 3),
    branch_length=st.integers(1, 4),
    name=st.sampled_from(["gpt2", "mistral", "gemma3"]),
    seed=st.integers(0, 9),
)
def test_logits_of_any_shape_equal_the_naive_ones(
    lengths: list[int], num_branches: int, branch_length: int, name: str, seed: int
) -> None:
    catalog = tiny.tiny_catalog()
    model = tiny.tiny_policy(name, catalog).model
    plain = tiny.twin(model)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, catalog.vocab_size, (len(lengths), 12), generator=draw)
    shape = (len(lengths), num_branches, branch_length)
    branches = torch.randint(0, catalog.vocab_size, shape, generator=draw)
    with torch.no_grad():
        head = model.get_output_embeddings()
        packed = pack(tokens, torch.tensor(lengths), branches)
        logits = head(packed_forward(model, packed))
        root = logits[:, :1]
        assert packed.places.shape == branches.shape
        rest = torch.stack([row[place] for row, place in zip(logits, packed.places, strict=True)])
        rest = rest[:, :, 1:]
        for b, length in enumerate(lengths):
            prompt = tokens[b, :length].tolist()
            wanted = naive.next_logits(plain, prompt, 1)
            torch.testing.assert_close(root[b], wanted, rtol=1e-4, atol=1e-4)
            for k in range(num_branches if branch_length > 1 else 0):
                row = prompt + branches[b, k, :-1].tolist()
                wanted = naive.next_logits(plain, row, branch_length - 1)
                torch.testing.assert_close(rest[b, k], wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    width=st.integers(1, 23),
    window=st.one_of(st.none(), st.integers(1, 25)),
    kv_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_blocks_of_the_window_equal_the_full_mask(
    width: int, window: int | None, kv_heads: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 4, width, 8, generator=draw, dtype=torch.float64)
    key, value = torch.randn(2, 2, kv_heads, width, 8, generator=draw, dtype=torch.float64)
    module = torch.nn.Identity()
    found, _ = packed_attention(module, query, key, value, None, 0.3, sliding_window=window)
    distance = torch.arange(width)[:, None] - torch.arange(width)
    visible = (distance >= 0) & (distance < (window or width))
    many = 4 // kv_heads
    scores = query @ key.repeat_interleave(many, 1).transpose(-1, -2) * 0.3
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    wanted = (weights @ value.repeat_interleave(many, 1)).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_attention_that_cannot_be_expressed_is_refused(name: str) -> None:
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(RecastError, match=f"Identity uses {name}: .* choose a model without it"):
        packed_attention(torch.nn.Identity(), x, x, x, None, **{name: 30.0})


def test_decoding_without_a_layout_is_refused() -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    with pytest.raises(RecastError, match="without a layout: for generate"):
        policy.model.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=2, do_sample=False)
