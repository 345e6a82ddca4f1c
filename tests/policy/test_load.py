"""Policies made, extended, saved and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import naive
import pytest
import tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    Llama4TextConfig,
    NemotronConfig,
    OPTConfig,
    PersimmonConfig,
    PhiConfig,
    PretrainedConfig,
)

from recast.config import ModelConfig
from recast.items.catalog import build_catalog
from recast.policy.attention import ATTENTION
from recast.policy.create import create_policy
from recast.policy.load import Policy, disable_dropout, load_policy, save_policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.memory import plan_memory
from recast.types import RecastError


def _saved(folder: Path, name: str, vocab_size: int) -> str:
    config = tiny.tiny_config(name, vocab_size)
    with torch.random.fork_rng(devices=[]):
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def test_a_new_policy_has_the_asked_shape_and_depends_on_the_seed_alone() -> None:
    catalog = tiny.tiny_catalog()
    torch.manual_seed(1)
    config = ModelConfig(
        hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48
    )
    first = create_policy(config, catalog, window=5, seed=3)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again = create_policy(config, catalog, window=5, seed=3)
    other = create_policy(config, catalog, window=5, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.model.config.model_type == "qwen3"
    assert first.model.config.vocab_size == 2 + 3 + 3 + 4
    assert first.model.config.max_position_embeddings == 1 + 5 * 3
    assert not first.model.training
    weights = [p.model.get_input_embeddings().weight for p in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_vocabulary_of_a_given_model_is_extended(tmp_path: Path, name: str) -> None:
    folder = _saved(tmp_path / "model", name, 9)
    kept = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    policy = create_policy(ModelConfig(path=folder), tiny.tiny_catalog(), window=5, seed=0)
    catalog = policy.catalog
    assert (catalog.first_token, catalog.bos_token, catalog.pad_token) == (9, 1, 0)
    assert catalog.codes.tolist() == tiny.CODES.tolist()
    weight = policy.model.get_input_embeddings().weight
    assert policy.model.config.vocab_size == len(weight) == 9 + 3 + 3 + 4
    assert torch.equal(weight[:9], kept)
    assert policy.model.get_output_embeddings().weight.shape == weight.shape
    prompts = tiny.make_prompts(catalog, [[1, 2]], [[7]])
    found = branch_logprobs(policy, prompts, prompts.targets, "full")
    wanted = naive.branch_logprobs(
        tiny.twin(policy.model), prompts, 0, prompts.targets[0, 0].tolist()
    )
    torch.testing.assert_close(found[0, 0], wanted, rtol=1e-5, atol=1e-5)


def test_a_policy_of_the_same_semantic_ids_keeps_its_vocabulary(tmp_path: Path) -> None:
    first = tiny.tiny_policy("llama", tiny.tiny_catalog())
    save_policy(first, tmp_path / "policy")
    config = ModelConfig(path=str(tmp_path / "policy"))
    again = create_policy(config, tiny.tiny_catalog(), window=5, seed=0)
    assert again.catalog.vocab_size == first.catalog.vocab_size
    weights = [p.model.get_input_embeddings().weight for p in (first, again)]
    assert torch.equal(*weights)
    other = build_catalog(tiny.CODES.flip(0), tiny.SIZES)
    with pytest.raises(RecastError, match="policy writes other semantic IDs than this catalogue"):
        create_policy(config, other, window=5, seed=0)
    names = [f"other {index}" for index in range(len(tiny.CODES))]
    other = build_catalog(tiny.CODES, tiny.SIZES, item_ids=names)
    with pytest.raises(RecastError, match="policy writes other items than this catalogue"):
        create_policy(config, other, window=5, seed=0)


def test_a_model_without_a_token_to_begin_with_is_refused(tmp_path: Path) -> None:
    config = tiny.tiny_config("llama", 9)
    for config.bos_token_id, config.eos_token_id, said in (
        (40, None, "has bos_token_id 40 of 9 tokens: name one of them"),
        (None, 50, "has eos_token_id 50 of 9 tokens: name one of them"),
    ):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
        with pytest.raises(RecastError, match=said):
            create_policy(
                ModelConfig(path=str(tmp_path / "model")), tiny.tiny_catalog(), window=5, seed=0
            )


def test_texts_are_no_tokens_of_a_given_model(tmp_path: Path) -> None:
    tiny.tiny_policy("llama", tiny.tiny_catalog()).model.save_pretrained(tmp_path / "model")
    with pytest.raises(RecastError, match="has a vocabulary of its own, and this catalogue"):
        create_policy(
            ModelConfig(path=str(tmp_path / "model")), tiny.text_catalog(), window=5, seed=0
        )


def test_a_saved_policy_gives_the_same_log_probabilities(tmp_path: Path) -> None:
    policy = tiny.tiny_policy("llama", tiny.tiny_catalog())
    save_policy(policy, tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    prompts = tiny.make_prompts(policy.catalog, [[1, 2], [5]], [[7], [0]])
    for space in ("full", "level", "trie"):
        found = branch_logprobs(again, prompts, prompts.targets, space)
        wanted = branch_logprobs(policy, prompts, prompts.targets, space)
        assert torch.equal(found, wanted)
    assert again.window == policy.window
    assert not again.model.training
    assert again.catalog.codes.tolist() == tiny.CODES.tolist()
    assert {p.name for p in tmp_path.iterdir()} == {"policy"}


def test_a_saved_policy_is_a_plain_hugging_face_folder(tmp_path: Path) -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    save_policy(policy, tmp_path / "policy")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert plain.config._attn_implementation == "sdpa"
    assert not plain.generation_config.do_sample


def test_a_vocabulary_smaller_than_the_catalogue_is_refused(tmp_path: Path) -> None:
    policy = tiny.tiny_policy("llama", tiny.tiny_catalog())
    save_policy(policy, tmp_path / "policy")
    larger = build_catalog(tiny.CODES, (3, 3, 9))
    for file in (tmp_path / "policy" / "catalog").iterdir():
        file.unlink()
    larger.save(tmp_path / "policy" / "catalog")
    with pytest.raises(RecastError, match=r"policy has 12 tokens, its catalogue needs 17: use "):
        load_policy(tmp_path / "policy")


def test_a_context_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "model", "gpt2", 12)
    with pytest.raises(
        RecastError, match=r"context of 640 tokens, a window of 214 items needs 643"
    ):
        create_policy(ModelConfig(path=folder), tiny.tiny_catalog(), window=214, seed=0)
    create_policy(ModelConfig(path=folder), tiny.tiny_catalog(), window=213, seed=0)


def test_a_folder_without_a_policy_or_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecastError, match=r"holds no policy \(recast.json\): make one with"):
        load_policy(tmp_path)
    with pytest.raises(RecastError, match=r"holds no model \(config.json\): give a Hugging Face"):
        create_policy(ModelConfig(path=str(tmp_path)), tiny.tiny_catalog(), window=5, seed=0)


@pytest.mark.parametrize("kind", ["bloom", "llama4"])
def test_a_model_that_would_ignore_the_layout_is_refused(tmp_path: Path, kind: str) -> None:
    common = {"vocab_size": 12, "hidden_size": 32, "num_attention_heads": 4, "bos_token_id": 1}
    if kind == "bloom":
        config = BloomConfig(**common, n_layer=2, pad_token_id=0, eos_token_id=None)
    else:
        config = Llama4TextConfig(
            **common, num_hidden_layers=1, intermediate_size=48, intermediate_size_mlp=48,
            head_dim=8, num_key_value_heads=2, num_local_experts=2, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(RecastError, match=r"model is a \w+, whose attention .* such as Qwen3"):
        create_policy(
            ModelConfig(path=str(tmp_path / "model")), tiny.tiny_catalog(), window=5, seed=0
        )


def test_saving_never_writes_over_another_policy(tmp_path: Path) -> None:
    policy = tiny.tiny_policy("llama", tiny.tiny_catalog())
    save_policy(policy, tmp_path / "policy")
    with pytest.raises(RecastError, match="already holds something"):
        save_policy(policy, tmp_path / "policy")


SPACES = ('8, "logprob_space": "tree"', '8, "logprob_space": ["trie"]')


@pytest.mark.parametrize("window", ["1", "2.5", "true", '"8"', "", "[]", *SPACES])
def test_a_damaged_window_or_space_is_refused(tmp_path: Path, window: str) -> None:
    (tmp_path / "recast.json").write_text(f'{{"window": {window}}}')
    with pytest.raises(RecastError, match=r"recast.json is damaged \(.*\): use the folder as it"):
        load_policy(tmp_path)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    policy = tiny.tiny_policy("llama", tiny.tiny_catalog())
    save_policy(policy, tmp_path / "policy")
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[3, 0] = torch.inf
    with pytest.raises(RecastError, match=r"embed_tokens.weight holds NaN or infinity: the run"):
        save_policy(policy, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    policy.model.save_pretrained(tmp_path / "policy")
    with pytest.raises(RecastError, match=r"policy: model.embed_tokens.weight holds NaN or inf"):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize(("key", "value"), [("n_head", 0), ("n_embd", "x"), ("n_layer", -1.5)])
def test_a_broken_config_is_told_on_one_short_line(tmp_path: Path, key: str, value: object) -> None:
    folder = Path(_saved(tmp_path / "model", "gpt2", 12))
    content = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(RecastError, match=r"model does not load \(.{1,200}\): give a whole"):
        create_policy(ModelConfig(path=str(folder)), tiny.tiny_catalog(), window=5, seed=0)


def test_a_model_that_chooses_its_attention_itself_is_refused(tmp_path: Path) -> None:
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "vocab_size": 12}
    config = GPTJConfig(**shape, bos_token_id=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(RecastError, match="whose attention the packed forward cannot replace"):
        create_policy(
            ModelConfig(path=str(tmp_path / "model")), tiny.tiny_catalog(), window=5, seed=0
        )


LIKE_LLAMA: dict[str, Any] = {
    "vocab_size": 9,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**LIKE_LLAMA, logits_scaling=4.0),
        CohereConfig(**LIKE_LLAMA),
        Gemma3TextConfig(**LIKE_LLAMA, head_dim=8, final_logit_softcapping=30.0),
        NemotronConfig(**LIKE_LLAMA),
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_give_other_numbers_packed_are_refused(
    tmp_path: Path, config: PretrainedConfig
) -> None:
    """Scaled or capped logits; Nemotron's layers keep the layout from their attention."""
    folder = tmp_path / "model"
    with torch.random.fork_rng(devices=[]):
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(RecastError, match="gives other numbers than by itself"):
        create_policy(ModelConfig(path=str(folder)), tiny.tiny_catalog(), window=5, seed=0)


def test_a_context_as_short_as_its_prompts_is_enough(tmp_path: Path) -> None:
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16}
    config = GPT2Config(**shape, vocab_size=9, bos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    path = str(tmp_path / "gpt2")
    policy = create_policy(ModelConfig(path=path), tiny.tiny_catalog(), window=5, seed=0)
    assert plan_memory(policy, 16, None).micro_batch_tokens == 65536


def test_dropout_that_is_a_function_is_off_in_training_mode_too() -> None:
    """OPT keeps its rate as a number of the layer, there is no module to switch off."""
    shape = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=20, word_embed_proj_dim=16, dropout=0.5, layerdrop=0.5, **shape)
    model = AutoModelForCausalLM.from_config(config)
    tokens = torch.arange(12)[None]
    wanted = model.eval()(input_ids=tokens).logits
    assert not torch.equal(model.train()(input_ids=tokens).logits, wanted)
    disable_dropout(model)
    assert torch.equal(model.train()(input_ids=tokens).logits, wanted)


DROPS: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2}
DROPS |= {"num_attention_heads": 2, "bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}


@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(**DROPS, ffn_dim=16, word_embed_proj_dim=16, dropout=0.5, layerdrop=0.5),
        GPT2Config(**DROPS, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5),
        PersimmonConfig(**DROPS, intermediate_size=16, attention_dropout=0.5, hidden_dropout=0.5),
        PhiConfig(**DROPS, intermediate_size=16, attention_dropout=0.5, resid_pdrop=0.5),
        GPTNeoXConfig(**DROPS, intermediate_size=16, attention_dropout=0.5, hidden_dropout=0.5),
    ],
    ids=lambda config: config.model_type,
)
def test_activations_that_are_computed_again_drop_nothing(config: PretrainedConfig) -> None:
    """Checkpointing needs train mode; Persimmon asks its settings for the rate."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    rates = {name: value for name, value in vars(model.config).items() if "drop" in name}
    policy = Policy(model=model.eval(), catalog=tiny.tiny_catalog(), window=5)
    prompts = tiny.make_prompts(policy.catalog, [[1, 2], [5]], [[7], [0]])
    wanted = branch_logprobs(policy, prompts, prompts.targets, "full")
    model.train()
    assert not branch_logprobs(policy, prompts, prompts.targets, "full").equal(wanted)
    disable_dropout(model)
    model.activation_checkpointing_enable()
    assert branch_logprobs(policy, prompts, prompts.targets, "full").equal(wanted)
    assert rates == {name: value for name, value in vars(model.config).items() if "drop" in name}


def test_a_package_that_is_missing_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.tiny_policy("llama", tiny.tiny_catalog()).model.save_pretrained(tmp_path / "model")

    def needs_more(*args: object, **settings: object) -> None:
        raise ImportError("Using bitsandbytes 4-bit quantization requires bitsandbytes")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", needs_more)
    with pytest.raises(RecastError, match=r"does not load \(Using bitsandbytes 4-bit .* requires"):
        create_policy(
            ModelConfig(path=str(tmp_path / "model")), tiny.tiny_catalog(), window=5, seed=0
        )


def test_a_config_without_a_first_token_is_told_so(tmp_path: Path) -> None:
    tiny.tiny_policy("llama", tiny.tiny_catalog()).model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"bos_token_id": None, "eos_token_id": None}))
    with pytest.raises(RecastError, match=r"has bos_token_id None of .* tokens: name one of them"):
        create_policy(
            ModelConfig(path=str(tmp_path / "model")), tiny.tiny_catalog(), window=5, seed=0
        )
