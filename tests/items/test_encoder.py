from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    BertModel,
    CLIPConfig,
    CLIPModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from recast.items.encoder import MINILM, embed_texts
from recast.items.pooling import pool
from recast.policy.load import save_policy
from recast.types import RecastError


def test_mean_pooling_equals_one_text_at_a_time(encoder: Path) -> None:
    # [CLS] words [SEP] as token ids, unpadded; the last text is cut at the 6 positions there are.
    texts = ["red", "blue newer", "  ", "old", "green red blue old new"]
    ids = [[2, 4, 3], [2, 5, 8, 9, 3], None, [2, 7, 3], [2, 6, 4, 5, 7, 3]]
    found = embed_texts(texts, str(encoder)).vectors
    model = BertModel.from_pretrained(encoder).eval()
    assert found.dtype == torch.float32
    assert found.shape == (5, 8)
    for row, tokens in zip(found, ids, strict=True):
        if tokens is None:
            assert not row.any()
            continue
        with torch.inference_mode():
            states = model(torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(row, F.normalize(states.mean(0), dim=0))


def test_many_texts_keep_their_order(encoder: Path) -> None:
    texts = ["red " * (i % 4 + 1) + "blue" * (i % 3) for i in range(150)]
    found = embed_texts(texts, str(encoder)).vectors
    for i in (0, 63, 64, 149):
        torch.testing.assert_close(found[i : i + 1], embed_texts([texts[i]], str(encoder)).vectors)


def test_bad_texts_and_encoders_are_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecastError, match="all 2 item texts are empty: give `recast prepare`"):
        embed_texts(["", " "], str(encoder))
    with pytest.raises(
        RecastError, match=r"no-such-name holds no config.json: give a Hugging Face"
    ):
        embed_texts(["red"], "no-such-name")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RecastError, match=r"does not load .*: give a folder with a tokenizer and"):
        embed_texts(["red"], str(tmp_path))


def test_an_encoder_that_returns_nan_is_refused(encoder: Path, tmp_path: Path) -> None:
    for file in encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][5] = math.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RecastError, match=r"row 1 is not finite \(1 such rows\): check the encoder"
    ):
        embed_texts(["red", "blue"], str(tmp_path))


def test_what_is_no_encoder_is_refused(encoder: Path, tmp_path: Path) -> None:
    for name in ("policy", "t5"):
        shutil.copytree(encoder, tmp_path / name)
    shape = {"vocab_size": 10, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(**shape)).save_pretrained(tmp_path / "t5")
    with pytest.raises(
        RecastError, match=r"is no encoder \(a t5 model has a decoder\): give a folder"
    ):
        embed_texts(["red"], str(tmp_path / "t5"))
    save_policy(tiny.tiny_policy("qwen3", tiny.tiny_catalog()), tmp_path / "p")
    with pytest.raises(RecastError, match=r"is no encoder \(.*\): give a folder with a tokenizer"):
        embed_texts(["red"], str(tmp_path / "p"))
    (tmp_path / "policy" / "tokenizer.json").write_text("{}")
    with pytest.raises(RecastError, match=r"policy does not load \(.*\): give a folder"):
        embed_texts(["red"], str(tmp_path / "policy"))


def test_a_damaged_cache_names_the_folder_to_delete(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECAST_CACHE", str(tmp_path))
    name, sha256, member, _ = MINILM
    cached = tmp_path / f"{name.replace('==', '-')}-{sha256[:16]}" / member.replace("/", "+")
    shutil.copytree(encoder, cached)
    with pytest.raises(
        RecastError, match=rf"{re.escape(str(cached))} is damaged, it is not what .*: delete it"
    ):
        embed_texts(["red"], "minilm")


def changed(encoder: Path, folder: Path, files: dict[str, object]) -> str:
    """A copy of the encoder with these JSON files beside its own."""
    shutil.copytree(encoder, folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return str(folder)


SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
STEPS = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def states_of(encoder: Path, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        model = BertModel.from_pretrained(encoder).eval()
        return torch.as_tensor(model(torch.tensor([ids])).last_hidden_state[0])


def test_the_folders_own_pooling(encoder: Path, tmp_path: Path) -> None:
    """The short text is padded on whichever side its tokenizer says."""
    short, long = (states_of(encoder, ids) for ids in ([2, 4, 3], [2, 5, 8, 9, 3]))
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    own = tmp_path / "flags"
    made = embed_texts(
        ["red", "blue newer"],
        changed(encoder, own, {"modules.json": STEPS, "1_Pooling/config.json": flags}),
    )
    assert (made.pooling.modes, made.pooling.is_named) == (("cls",), True)
    wanted = F.normalize(torch.stack([short[0], long[0]]), dim=1)
    torch.testing.assert_close(made.vectors, wanted)
    both = {"pooling_mode": ["max", "lasttoken"], "include_prompt": False}
    folder = changed(encoder, tmp_path / "both", {"1_Pooling/config.json": both})
    settings = Path(folder) / "tokenizer_config.json"
    left = json.loads(settings.read_text()) | {"padding_side": "left"}
    settings.write_text(json.dumps(left))
    pairs = [torch.cat([states.amax(0), states[-1]]) for states in (short, long)]
    wanted = F.normalize(torch.stack(pairs), dim=1)
    torch.testing.assert_close(embed_texts(["red", "blue newer"], folder).vectors, wanted)


def test_the_folders_own_prompt_and_longest_input(encoder: Path, tmp_path: Path) -> None:
    """[CLS] old | red [SEP]: the first two are the prompt's, as are those of a text cut at 4."""
    files = {
        "config_sentence_transformers.json": {
            "prompts": {"query": "old ", "document": ""},
            "default_prompt_name": "query",
        },
        "sentence_bert_config.json": {"max_seq_length": 4, "do_lower_case": True},
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "include_prompt": False},
    }
    folder = changed(encoder, tmp_path / "prompt", files)
    made = embed_texts(["RED", "blue green"], folder)
    rows = [states_of(encoder, ids)[2:].mean(0) for ids in ([2, 7, 4, 3], [2, 7, 5, 3])]
    torch.testing.assert_close(made.vectors, F.normalize(torch.stack(rows), dim=1))
    assert (made.longest, made.num_cut) == (4, 1)
    files["config_sentence_transformers.json"] = {"prompts": {"query": "old ", "passage": "new"}}
    made = embed_texts(["red"], changed(encoder, tmp_path / "no_default", files))
    assert (made.pooling.prompt, made.pooling.unused_prompts) == ("", ("query", "passage"))
    files["sentence_bert_config.json"] = {"max_seq_length": 2}
    with pytest.raises(RecastError, match=r"is no encoder \(2 tokens hold no word\)"):
        embed_texts(["red"], changed(encoder, tmp_path / "short", files))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", [*STEPS, {"path": "2_Dense", "type": "a.Dense"}], "asks for a Dense step"),
        ("modules.json", [{"path": "../x", "type": "a.Transformer"}], "names the path '../x', whi"),
        ("modules.json", {}, "modules.json is damaged .it holds a dict, no list"),
        ("modules.json", "[" * 10**5, "modules.json is damaged .maximum recursion depth"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "'median'. is none of cls, max"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": "no"}, "'no' is neither true nor"),
        ("1_Pooling/config.json", "{", "config.json is damaged .Expecting property name"),
        ("sentence_bert_config.json", {"max_seq_length": "9"}, "'9' is no whole number from 1 on"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "is damaged .no 'pr"),
    ],
)
def test_a_pooling_that_cannot_be_followed(
    encoder: Path, tmp_path: Path, file: str, content: object, message: str
) -> None:
    with pytest.raises(RecastError, match=message):
        embed_texts(["red"], changed(encoder, tmp_path / "out", {file: content}))


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_token_of_texts_padded_on_either_side(side: str) -> None:
    states = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    mask = mask.flip(1) if side == "left" else mask
    first, last = (2.0, 3.0) if side == "left" else (0.0, 1.0)
    assert pool(states, mask, ("cls", "lasttoken", "mean")).tolist() == [
        [first, last, (first + last) / 2],
        [4.0, 7.0, 5.5],
    ]
    # Sums of two and of four states by the root of how many they are.
    total = pool(states, mask, ("mean_sqrt_len_tokens",)).flatten()
    torch.testing.assert_close(total, torch.tensor([(first + last) / math.sqrt(2), 11.0]))


def test_positions_behind_the_padding_are_all_there_are(encoder: Path, tmp_path: Path) -> None:
    """7 rows of positions, the first of a text is that behind the padding (0): 6 tokens."""
    shutil.copytree(encoder, tmp_path / "roberta")
    with torch.random.fork_rng(devices=[]):
        config = RobertaConfig(vocab_size=10, max_position_embeddings=7, pad_token_id=0, **SMALL)
        RobertaModel(config).save_pretrained(tmp_path / "roberta")
    made = embed_texts(["red", "red blue green old", "red " * 9], str(tmp_path / "roberta"))
    assert (made.longest, made.num_cut) == (6, 1)


def edited(encoder: Path, folder: Path, **weights: torch.Tensor | None) -> str:
    """A copy of the encoder with some of its weights replaced, or left out."""
    shutil.copytree(encoder, folder)
    held = load_file(folder / "model.safetensors")
    for part, weight in weights.items():
        name = next(key for key in held if part in key)
        if weight is None:
            del held[name]
        else:
            held[name] = weight
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_weights_that_are_missing_or_do_not_fit(encoder: Path, tmp_path: Path) -> None:
    for name, weight in (("missing", None), ("misshapen", torch.zeros(3, 3))):
        folder = edited(encoder, tmp_path / name, word_embeddings=weight)
        with pytest.raises(RecastError, match=r"1 of its weights are missing .*word_embeddings"):
            embed_texts(["red"], folder)
    # Nothing that is read here passes the pooler, which many encoders come without.
    folder = edited(encoder, tmp_path / "pooler", pooler=None)
    assert torch.equal(
        embed_texts(["red"], folder).vectors, embed_texts(["red"], str(encoder)).vectors
    )


def test_vectors_that_are_all_alike(encoder: Path, tmp_path: Path) -> None:
    last = "layer.0.output.LayerNorm"
    made = {f"{last}.weight": torch.zeros(8), f"{last}.bias": torch.ones(8)}
    folder = edited(encoder, tmp_path / "a", **made)
    with pytest.raises(RecastError, match="gives 2 different texts the same vector: check its wei"):
        embed_texts(["red", "blue", "red"], folder)
    embed_texts(["red", "Red"], folder)


def test_a_folder_without_its_tokenizer(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path / "none")
    for file in (tmp_path / "none").glob("*token*"):
        file.unlink()
    with pytest.raises(RecastError, match=r"is no encoder \(its tokenizer has no words\)"):
        embed_texts(["red"], str(tmp_path / "none"))
    with pytest.raises(RecastError, match=r"its tokenizer knows no word of the 2 texts"):
        embed_texts(["rouge", "bleu"], str(encoder))


def test_code_and_pickles_are_not_run(encoder: Path, tmp_path: Path) -> None:
    own = json.loads((encoder / "config.json").read_text())
    config = own | {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C"}}
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    folder = changed(encoder, tmp_path / "code", {"config.json": config})
    (tmp_path / "code" / "mine.py").write_text(code)
    with pytest.raises(RecastError, match="code of its own, which is never run"):
        embed_texts(["red"], folder)
    folder = changed(encoder, tmp_path / "pickle", {})
    torch.save(load_file(encoder / "model.safetensors"), tmp_path / "pickle" / "pytorch_model.bin")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    with pytest.raises(RecastError, match=r"no file named model.safetensors .*: give a folder"):
        embed_texts(["red"], folder)
    assert not (tmp_path / "ran").exists()


def test_models_that_read_no_text_or_give_no_states(encoder: Path, tmp_path: Path) -> None:
    for name, model in (
        ("image", ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4))),
        ("both", CLIPModel(CLIPConfig(text_config=SMALL, vision_config=SMALL))),
    ):
        shutil.copytree(encoder, tmp_path / name)
        model.save_pretrained(tmp_path / name)
        with pytest.raises(
            RecastError,
            match=r"is no encoder \(.*(pixel_values|no table of tokens)\): give a folder",
        ):
            embed_texts(["red"], str(tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 2**31}, r"names 17,179,\d+,\d+ weights, its files have \d,\d+ bytes"),
        ({"num_hidden_layers": 10**6}, "its config.json names 1000000 layers"),
        ({"dtype": 1e300}, r"does not load \(list index out of range\)"),
    ],
)
def test_a_config_of_absurd_sizes(
    encoder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = json.loads((encoder / "config.json").read_text()) | changes
    with pytest.raises(RecastError, match=message):
        embed_texts(["red"], changed(encoder, tmp_path / "e", {"config.json": config}))


def test_a_tokenizer_that_was_edited(encoder: Path, tmp_path: Path) -> None:
    folder = changed(encoder, tmp_path / "e", {"tokenizer.json": '{"a" 1}'})
    with pytest.raises(RecastError, match=r"does not load \(.*\): give a folder with a tokenizer"):
        embed_texts(["red"], folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_in_a_folder_are_not_waited_for(encoder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "modules.json", "config.json"):
        folder = changed(encoder, tmp_path / name, {})
        (tmp_path / name / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name / name)
        with pytest.raises(RecastError, match=f"{name}/{name} is neither a file nor a folder: rem"):
            embed_texts(["red"], folder)
    with pytest.raises(RecastError, match=r"holds no config.json: give a Hugging Face encoder"):
        embed_texts(["red"], str(tmp_path / "config.json" / "config.json"))
