"""What the check of a model sees: a wrong mask, an attention of its own, positions that move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import naive
import pytest
import tiny
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DogeConfig,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
)

from recast.config import ModelConfig
from recast.policy.attention import Layout
from recast.policy.create import create_policy
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.packable import LARGEST_GAP, allowed_gap, packed_gap
from recast.types import RecastError

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _created(folder: Path, config: PretrainedConfig, window: int = 5) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            if name.endswith(".A") or "dt_proj" in name:  # as a trained Doge has them: not zero
                torch.nn.init.normal_(weight, std=2)
    model.save_pretrained(folder)
    return create_policy(ModelConfig(path=str(folder)), tiny.tiny_catalog(), window, seed=0)


@pytest.fixture
def without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes see all of their row."""
    bias = Layout.bias

    def nothing_hidden(self: Layout, *settings: Any) -> Tensor:
        return torch.zeros_like(bias(self, *settings))

    monkeypatch.setattr(Layout, "bias", nothing_hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_only_rounding_is_between_the_packed_forward_and_the_model(
    name: str, dtype: torch.dtype
) -> None:
    """Weights of 16 bits too: a hundredth is as visible there; they are left as they were."""
    model = tiny.tiny_policy(name, tiny.tiny_catalog(), dtype).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert packed_gap(model, tiny.tiny_catalog()) < LARGEST_GAP / 10
    after = model.state_dict()
    assert all(after[key].dtype == dtype for key in before)
    assert all(after[key].equal(value) for key, value in before.items())
    assert model.config._attn_implementation == ("sdpa" if name == "t5" else "recast_packed")


@pytest.mark.usefixtures("without_masks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_a_layout_without_a_mask_is_far_above_the_limit(name: str, dtype: torch.dtype) -> None:
    model = tiny.tiny_policy(name, tiny.tiny_catalog(), dtype).model
    assert packed_gap(model, tiny.tiny_catalog()) > 100 * LARGEST_GAP


def _sharp(folder: Path) -> Policy:
    """A model of 48 layers that look at one token each: rounding decides at which."""
    shape = SHAPE | {"num_hidden_layers": 48, "initializer_range": 0.3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape))
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 30
    model.save_pretrained(folder)
    return create_policy(ModelConfig(path=str(folder)), tiny.tiny_catalog(), 5, seed=0)


def test_a_model_that_rounding_moves_far_is_no_other_model(tmp_path: Path) -> None:
    """As a policy was behind 64 steps of a reward that it hacked: 4e-4 apart, and not loaded."""
    model = _sharp(tmp_path).model
    allowed = allowed_gap(model, tiny.tiny_catalog())
    assert packed_gap(model, tiny.tiny_catalog()) < allowed > LARGEST_GAP


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_rounding_explains_little_in_a_plain_model(name: str) -> None:
    model = tiny.tiny_policy(name, tiny.tiny_catalog()).model
    assert LARGEST_GAP / 10 < allowed_gap(model, tiny.tiny_catalog()) < 10 * LARGEST_GAP


@pytest.mark.usefixtures("without_masks")
def test_rounding_does_not_hide_a_wrong_mask(tmp_path: Path) -> None:
    with pytest.raises(RecastError, match="gives other numbers than by itself"):
        _sharp(tmp_path)


@pytest.mark.usefixtures("without_masks")
def test_new_rows_that_are_all_alike_do_not_hide_a_wrong_mask(tmp_path: Path) -> None:
    policy = tiny.tiny_policy("llama", tiny.tiny_catalog())
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[2:] = 0.1
    assert packed_gap(policy.model, tiny.tiny_catalog()) > 100 * LARGEST_GAP
    with pytest.raises(RecastError, match="gives other numbers than by itself"):
        _created(tmp_path, LlamaConfig(**SHAPE))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DogeConfig(**SHAPE), "DogeAttention uses a mask of its own"),
        (
            Gemma3TextConfig(**SHAPE, head_dim=8, use_bidirectional_attention=True),
            r"Gemma3ForCausalLM: .* other numbers than by itself \(by 0\.\d of their norm\)",
        ),
    ],
    ids=lambda x: getattr(x, "model_type", ""),
)
def test_an_attention_of_its_own_is_refused_before_training(
    tmp_path: Path, config: PretrainedConfig, message: str
) -> None:
    with pytest.raises(RecastError, match=message):
        _created(tmp_path, config)


def _rotary(kind: str) -> PretrainedConfig:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
        return Phi3Config(**SHAPE, original_max_position_embeddings=16, rope_parameters=rope)
    rope |= {"factor": 4.0, "original_max_position_embeddings": 16}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return LlamaConfig(**SHAPE, rope_parameters=rope)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_look_at_the_longest_prompt_of_a_call_are_refused(
    tmp_path: Path, kind: str
) -> None:
    with pytest.raises(
        RecastError,
        match=r"longest prompt of a call from 16 tokens on, a window of 6 items needs 19: "
        "choose a window of at most 5",
    ):
        _created(tmp_path / "long", _rotary(kind), window=6)
    policy = _created(tmp_path / "short", _rotary(kind), window=5)
    prompts = tiny.make_prompts(policy.catalog, [[1, 2, 3, 4, 5]], [[7]])
    assert prompts.tokens.shape[1] == 16
    with pytest.raises(RecastError, match=r"a prompt of 18 tokens: beyond 16 .* shorten prompts"):
        branch_logprobs(policy, prompts, prompts.targets, "full")


@pytest.mark.parametrize("kind", ["longrope", "dynamic", "linear", "yarn", "llama3"])
def test_a_short_prompt_has_its_numbers_beside_a_long_one_too(tmp_path: Path, kind: str) -> None:
    policy = _created(tmp_path / "model", _rotary(kind), window=5)
    prompts = tiny.make_prompts(policy.catalog, [[1], [1, 2, 3, 4]], [[7], [5]])
    found = branch_logprobs(policy, prompts, prompts.targets, "full")
    plain = tiny.twin(policy.model)
    for row in range(2):
        wanted = naive.branch_logprobs(plain, prompts, row, prompts.targets[row, 0].tolist())
        torch.testing.assert_close(found[row, 0], wanted, rtol=1e-5, atol=1e-5)
