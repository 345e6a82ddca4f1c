"""Folders that hold something else than a whole model of plain weights: one line, before they are
opened."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPTBigCodeConfig

from recast.config import ModelConfig
from recast.items.catalog import build_catalog
from recast.policy.create import create_policy
from recast.policy.folder import require_size
from recast.policy.load import Policy, load_policy, save_policy
from recast.types import RecastError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "policy"
    save_policy(tiny.tiny_policy("llama", tiny.tiny_catalog()), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A policy of Recast; without its recast.json it is any model."""
    return Path(shutil.copytree(saved, tmp_path / "policy"))


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _as_model(folder: Path) -> Policy:
    (folder / "recast.json").unlink(missing_ok=True)
    return create_policy(ModelConfig(path=str(folder)), tiny.tiny_catalog(), window=5, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**6}, "config.json has num_hidden_layers 1000000, more than the"),
        ({"num_hidden_layers": 10**30}, "config.json has num_hidden_layers 1000000000000000"),
        ({"num_attention_heads": 10**9}, "config.json has num_attention_heads 1000000000"),
        ({"num_hidden_layers": 1}, r"9 of its weights have no place .* model.layers.1.input_layer"),
        ({"num_hidden_layers": 3}, "9 of its weights are missing or do not fit"),
        ({"hidden_size": 10**9}, r"config.json asks for [\d,]+ numbers, its weights hold [\d,]+:"),
        ({"vocab_size": 10**12}, r"config.json asks for [\d,]+ numbers"),
        ({"intermediate_size": 10**9}, r"config.json asks for [\d,]+ numbers"),
        ({"intermediate_size": 47}, "6 of its weights are missing or do not fit"),
        ({"vocab_size": -5}, "does not load"),
        ({"hidden_size": "wide"}, "does not load"),
        ({"hidden_act": "nope"}, "does not load"),
        ({"model_type": "nope"}, "does not load"),
        ({"dtype": "float7"}, "does not load"),
        ({"tie_word_embeddings": True}, "its embeddings, and config.json has tie_word_e"),
        ({"rms_norm_eps": -1.0}, "gives other numbers than by itself"),
        ({"transformers_weights": "../x.safetensors"}, "names weights of its own"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised .'gptq' in config.json"),
        ({"quantization_config": {"quant_method": "fp8"}}, "give those"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_config_that_is_not_that_of_the_weights(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    _edit(folder / "config.json", **changes)
    for load in (load_policy, _as_model):
        with pytest.raises(RecastError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_a_size_that_the_weights_or_the_memory_do_not_bear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 2**20 weights of 4 bytes, and a table of all pairs of 2**17 positions beside them."""
    shape = {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 2**17}
    with pytest.raises(RecastError, match=r"config.json asks for 17,18\d,\d+,\d+ numbers"):
        require_size(GPTBigCodeConfig(**shape), 2**21, tmp_path)
    require_size(GPT2Config(**shape), 2**21, tmp_path)
    monkeypatch.setattr("os.sysconf", lambda name: 2000)  # pages of 2000 bytes
    with pytest.raises(RecastError, match="its weights need 0 GiB, this machine has 0 GiB of mem"):
        require_size(GPT2Config(**shape), 2**21, tmp_path)


def test_settings_that_are_no_settings(folder: Path) -> None:
    file = folder / "config.json"
    for text, message in (
        ("[]", "it holds a list, no dict"),
        ("{", "Expecting property name"),
        ('{"a":' * 100_000, "recursion"),
    ):
        file.write_text(text)
        with pytest.raises(RecastError, match=rf"config.json is damaged \(.*{message}"):
            load_policy(folder)
    file.unlink()
    with file.open("wb") as sparse:
        sparse.truncate(2**33)
    with pytest.raises(RecastError, match=r"config.json has 8,589,934,592 bytes: give a JSON"):
        load_policy(folder)


def test_weights_that_no_memory_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recast.policy.folder.memory_gib", lambda: 2**-30)
    with pytest.raises(RecastError, match=r"its weights need 0 GiB, this machine has 0 GiB of mem"):
        load_policy(folder)
    monkeypatch.setattr("recast.policy.folder.memory_gib", lambda: None)
    load_policy(folder)


def test_no_pickle_is_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(
        RecastError, match=r"has no model.safetensors, only pytorch_model.bin, a pickle, which may"
    ):
        _as_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(RecastError, match=r"has no model.safetensors: save it again"):
        _as_model(folder)


def test_files_of_an_index_stand_beside_it(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "out.safetensors")
    index = folder / "model.safetensors.index.json"

    def load(name: object) -> Policy:
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))
        return load_policy(folder)

    for name in ("../out.safetensors", str(folder.parent / "out.safetensors"), "out.bin", 3):
        with pytest.raises(RecastError, match="its files stand beside it, as safetensors"):
            load(name)
    with pytest.raises(RecastError, match=r"has no a.safetensors, which its index names"):
        load("a.safetensors")
    (folder.parent / "out.safetensors").rename(folder / "a.safetensors")
    assert load("a.safetensors").model.config.model_type == "llama"
    index.write_text("{}")
    with pytest.raises(RecastError, match="no weight_map"):
        load_policy(folder)


def test_weights_that_are_cut_off_or_of_8_bits(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights, whole = load_file(file), file.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(RecastError, match="does not load"):
            load_policy(folder)
    file.write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    with pytest.raises(RecastError, match="does not load"):
        load_policy(folder)
    save_file({key: x.to(torch.float8_e4m3fn) for key, x in weights.items()}, file)
    with pytest.raises(RecastError, match=r"is quantised \(F8_E4M3\)"):
        load_policy(folder)
    key = next(iter(weights))
    save_file(weights | {key: weights[key].to(torch.int8)}, file)
    with pytest.raises(RecastError, match=rf"{key} is quantised \(I8\)"):
        load_policy(folder)


def test_pipes_and_links_that_lead_nowhere(folder: Path) -> None:
    os.mkfifo(folder / "generation_config.json.tmp")
    with pytest.raises(RecastError, match=r"json.tmp is neither a file nor a folder: remove it"):
        load_policy(folder)
    (folder / "generation_config.json.tmp").unlink()
    (folder / "vocab.txt").symlink_to("nowhere")
    with pytest.raises(RecastError, match=r"vocab.txt is neither a file nor a folder: remove it"):
        load_policy(folder)
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").mkdir()
    with pytest.raises(RecastError, match=r"tokenizer.json is a folder, where a file of a model"):
        load_policy(folder)
    (folder / "tokenizer.json").rmdir()
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(RecastError, match="holds no model"):
        load_policy(folder)
    for path in (folder / "recast.json", folder.parent / ("x" * 300), folder.parent / "a\0b"):
        with pytest.raises(RecastError, match=r"holds no policy|is too long|NUL"):
            load_policy(path)


def test_adapters_beside_a_model_are_not_passed_over(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(RecastError, match=r"holds adapter_config.json: give the model with its"):
        _as_model(folder)


def test_a_broken_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(RecastError, match=r"generation_config.json is damaged"):
        load_policy(folder)


def test_the_catalogue_of_another_policy(folder: Path) -> None:
    shutil.rmtree(folder / "catalog")
    with pytest.raises(RecastError, match="holds no catalogue"):
        load_policy(folder)
    build_catalog(tiny.CODES.flip(0), tiny.SIZES).save(folder / "catalog")
    with pytest.raises(RecastError, match="is not the catalogue that this policy was trained with"):
        load_policy(folder)


@pytest.mark.parametrize("device", ["meta", "cpux", "cuda:99", "", "cpu:x", "lazy", "xla"])
def test_no_such_device(saved: Path, device: str) -> None:
    with pytest.raises(RecastError, match=r"device is '.*': torch .* give cpu"):
        load_policy(saved).to(device)
