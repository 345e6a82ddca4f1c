"""A T5 as a policy, beyond what it shares with the other models of `tiny.ARCHITECTURES`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import naive
import pytest
import tiny
import torch
from peft import AutoPeftModelForSeq2SeqLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config, T5ForConditionalGeneration

from recast.config import LoRAConfig, ModelConfig
from recast.policy.create import create_policy
from recast.policy.load import load_policy, save_policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.lora import add_adapters, without_adapters
from recast.policy.memory import count_parameters
from recast.rollout.beam import beam_search
from recast.types import RecastError

SMALL = {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_layers": 1, "num_heads": 2}
NEW = {"hidden_size": 32, "num_heads": 3, "num_kv_heads": 3, "head_dim": 8, "intermediate_size": 48}


def test_a_new_one_has_the_asked_shape() -> None:
    config = ModelConfig(kind="t5", num_layers=3, **NEW)
    policy = create_policy(config, tiny.tiny_catalog(), window=5, seed=0)
    shape = policy.model.config
    assert (shape.num_layers, shape.num_decoder_layers, shape.num_heads, shape.d_kv) == (3, 3, 3, 8)
    assert (shape.d_model, shape.d_ff, shape.decoder_start_token_id) == (32, 48, 0)
    numbers = sum(weight.numel() for weight in policy.model.parameters())
    assert numbers == count_parameters(config, policy.catalog.vocab_size)


def test_transformers_lists_the_same_items_from_the_saved_folder(tmp_path: Path) -> None:
    """Its own beam search, constrained to the codes that there are, prompt by prompt."""
    config, catalog = ModelConfig(kind="t5", **NEW), tiny.tiny_catalog()
    policy = create_policy(config, catalog, window=5, seed=0)
    save_policy(policy, tmp_path / "policy")
    prompts = tiny.make_prompts(catalog, [[0, 3, 1], [5]], [[7], [2]])
    again = load_policy(tmp_path / "policy")
    found = branch_logprobs(again, prompts, prompts.targets, "full")
    assert found.equal(branch_logprobs(policy, prompts, prompts.targets, "full"))
    groups = beam_search(again, prompts, 4)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "policy")
    assert plain.dtype == torch.float32
    for row in range(2):
        prompt = prompts.tokens[row : row + 1, : prompts.lengths[row]]
        written = plain.generate(
            prompt,
            max_new_tokens=3,
            num_beams=4,
            num_return_sequences=4,
            prefix_allowed_tokens_fn=lambda _, tokens: naive.allowed_children(
                catalog, [], tokens[1:].tolist()
            ),
        )
        assert written[:, 0].eq(0).all()
        assert written[:, 1:].equal(groups.tokens[row])


@pytest.mark.parametrize("scales", [True, False])
def test_a_given_one_learns_to_write_items(tmp_path: Path, scales: bool) -> None:
    """T5 scales what its output layer reads, T5 1.1 does not and its feed-forward is gated."""
    config = T5Config(
        vocab_size=20,
        **SMALL,
        num_decoder_layers=2,
        decoder_start_token_id=0,
        tie_word_embeddings=scales,
        feed_forward_proj="relu" if scales else "gated-gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    own = ModelConfig(path=str(tmp_path / "model"), kind="t5")
    policy = create_policy(own, tiny.tiny_catalog(), window=5, seed=0)
    assert policy.catalog.first_token == 20
    assert policy.catalog.bos_token == 1  # its end of text
    prompts = tiny.make_prompts(policy.catalog, [[0, 3, 1], [5]], [[7], [2]])
    found = branch_logprobs(policy, prompts, prompts.targets, "full")
    for row in range(2):
        wanted = naive.branch_logprobs(
            tiny.twin(policy.model), prompts, row, prompts.targets[row, 0].tolist()
        )
        torch.testing.assert_close(found[row, 0], wanted, rtol=1e-5, atol=1e-5)
    save_policy(policy, tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    assert branch_logprobs(again, prompts, prompts.targets, "full").equal(found)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own use
@pytest.mark.parametrize("merge", [False, True])
def test_adapters_are_trained_and_kept(tmp_path: Path, merge: bool) -> None:
    policy = tiny.tiny_policy("t5", tiny.tiny_catalog())
    save_policy(policy, tmp_path / "start")
    prompts = tiny.make_prompts(policy.catalog, [[0, 3, 1], [5]], [[7], [2]])
    before = branch_logprobs(policy, prompts, prompts.targets, "full")
    model = add_adapters(policy.model, LoRAConfig(rank=2), str(tmp_path / "start"), seed=0)
    policy = replace(policy, model=model)
    found = branch_logprobs(policy, prompts, prompts.targets, "full")
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        for weight in trained:
            weight.normal_(std=0.1)
    assert len(trained) == 2 * (2 * 6 + 2 * 10)  # of 6 and 10 linear layers in 2 layers each
    found = branch_logprobs(policy, prompts, prompts.targets, "full")
    assert not torch.allclose(found, before, atol=1e-2)
    with without_adapters(model):
        off = branch_logprobs(policy, prompts, prompts.targets, "full")
    torch.testing.assert_close(off, before, rtol=1e-5, atol=1e-5)
    save_policy(policy, tmp_path / "policy", merge=merge)
    again = branch_logprobs(load_policy(tmp_path / "policy"), prompts, prompts.targets, "full")
    torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-4)
    if not merge:
        other = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "policy")
        naive_row = naive.branch_logprobs(other, prompts, 0, prompts.targets[0, 0].tolist())
        torch.testing.assert_close(naive_row, found[0, 0], rtol=1e-5, atol=1e-4)


def test_an_output_layer_apart_is_refused(tmp_path: Path) -> None:
    """As T5 1.1 stores one: transformers would tie it to the embeddings."""
    T5ForConditionalGeneration(
        T5Config(vocab_size=9, **SMALL, decoder_start_token_id=0)
    ).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["shared.weight"] + 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    line = "stores another output layer than its embeddings, and transformers takes both for one"
    with pytest.raises(RecastError, match=line):
        create_policy(ModelConfig(path=str(tmp_path)), tiny.tiny_catalog(), window=5, seed=0)


@pytest.mark.parametrize("start", [None, 9, "1", True])
def test_one_without_a_token_to_begin_answers_with_is_refused(
    tmp_path: Path, start: object
) -> None:
    T5ForConditionalGeneration(T5Config(vocab_size=9, **SMALL)).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"decoder_start_token_id": start}))
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(RecastError, match=r"decoder_start_token_id .* of 9 tokens.*: name one"):
        create_policy(ModelConfig(path=str(tmp_path)), tiny.tiny_catalog(), window=5, seed=0)


def test_other_encoder_decoders_and_kinds_are_refused(tmp_path: Path) -> None:
    shape = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 9}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = AutoModelForSeq2SeqLM.from_config(BartConfig(**shape, **heads))
    bart.save_pretrained(tmp_path / "bart")
    tiny.tiny_policy("llama", tiny.tiny_catalog()).model.save_pretrained(tmp_path / "llama")
    save_policy(tiny.tiny_policy("t5", tiny.tiny_catalog()), tmp_path / "policy")
    for name, kind, line in (
        (
            "bart",
            None,
            "holds a bart model, an encoder-decoder: choose a decoder-only.* or a whole T5",
        ),
        ("llama", "t5", "model.kind is 't5': .*llama holds a llama, leave it out"),
        ("policy", "qwen3", "model.kind is 'qwen3': .*policy holds a t5, leave it out"),
    ):
        config = ModelConfig(path=str(tmp_path / name), kind=kind)
        with pytest.raises(RecastError, match=line):
            create_policy(config, tiny.tiny_catalog(), window=5, seed=0)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"num_heads": 6}, "model.num_kv_heads is 2: a T5 has as many as num_heads, give 6"),
        ({"initializer_range": 0.1}, "model.initializer_range is 0.1: it belongs to a qwen3"),
        ({"tie_embeddings": False}, "model.tie_embeddings is False: it belongs to a qwen3"),
    ],
)
def test_settings_that_no_t5_has_are_refused(setting: dict[str, object], line: str) -> None:
    with pytest.raises(RecastError, match=line):
        ModelConfig(kind="t5", **setting)  # type: ignore[arg-type]
