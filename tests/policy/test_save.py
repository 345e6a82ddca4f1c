"""What of a backbone stays in the folder of a policy made of it, however often it is saved."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, AutoTokenizer

from recast.config import LoRAConfig, ModelConfig
from recast.policy.create import create_policy
from recast.policy.load import Policy, load_policy, save_policy
from recast.policy.lora import add_adapters
from recast.policy.masters import take_masters
from recast.policy.save import rounding
from recast.run import checkpoint
from recast.types import RecastError

GENERATION = {"eos_token_id": [2, 5], "pad_token_id": 2, "bos_token_id": 1, "do_sample": True}
GENERATION |= {"temperature": 0.6, "max_new_tokens": 64}


def backbone(folder: Path, dtype: torch.dtype) -> str:
    """A tied Qwen3 of 30 rows with a tokenizer of 12 words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny.tiny_config("qwen3", 30)).to(dtype)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    tiny.tiny_tokenizer(12, chat_template="{{ messages }}").save_pretrained(folder)
    return str(folder)


def kept(folder: Path) -> dict[str, Any]:
    """What must be the same in all folders; weights, as they may be trained, by dtype."""
    generation = json.loads((folder / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    return {
        "generation": {key: generation[key] for key in GENERATION},
        "chat": (folder / "chat_template.jinja").read_text(),
        "words": tokenizer("w4 <a_1><b_2><c_3> w5")["input_ids"],
        "dtypes": {weight.dtype for weight in weights.values()},
        "config": json.loads((folder / "config.json").read_text())["dtype"],
        "tied": "lm_head.weight" not in weights,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_keeps_what_its_backbone_had(tmp_path: Path, dtype: torch.dtype) -> None:
    config = ModelConfig(path=backbone(tmp_path / "model", dtype))
    policy = create_policy(config, tiny.tiny_catalog(), window=5, seed=0)
    assert policy.model.dtype == dtype
    policy.model.float()  # as training does
    save_policy(policy, tmp_path / "sft")
    wanted = {
        "generation": GENERATION | {"do_sample": False},
        "chat": "{{ messages }}",
        "words": [4, 13, 17, 21, 5],
        "dtypes": {dtype},
        "config": str(dtype).removeprefix("torch."),
        "tied": True,
    }
    assert kept(tmp_path / "sft") == wanted
    # The policy in memory goes on as it was, and is saved the same again.
    assert policy.model.dtype == torch.float32
    save_policy(policy, tmp_path / "again")
    assert kept(tmp_path / "again") == wanted

    further = load_policy(tmp_path / "sft")
    further.model.float()
    save_policy(further, tmp_path / "rl")
    assert kept(tmp_path / "rl") == wanted
    continued = ModelConfig(path=str(tmp_path / "sft"))
    save_policy(create_policy(continued, tiny.tiny_catalog(), 5, 0), tmp_path / "sft2")
    assert kept(tmp_path / "sft2") == wanted
    for name, weight in load_file(tmp_path / "sft2" / "model.safetensors").items():
        assert weight.equal(policy.model.state_dict()[name].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_that_are_merged_keep_it_too(tmp_path: Path, dtype: torch.dtype) -> None:
    config = ModelConfig(path=backbone(tmp_path / "model", dtype))
    save_policy(create_policy(config, tiny.tiny_catalog(), window=5, seed=0), tmp_path / "sft")
    policy = load_policy(tmp_path / "sft")
    model = add_adapters(policy.model, LoRAConfig(rank=2), str(tmp_path / "sft"), seed=0)
    save_policy(replace(policy, model=model), tmp_path / "merged")
    assert kept(tmp_path / "merged") == kept(tmp_path / "sft")
    save_policy(replace(policy, model=model), tmp_path / "alone", merge=False)
    further = load_policy(tmp_path / "alone")
    save_policy(further, tmp_path / "whole")
    assert kept(tmp_path / "whole") == kept(tmp_path / "sft")


def test_a_model_of_ours_has_no_tokenizer(tmp_path: Path) -> None:
    policy = create_policy(ModelConfig(), tiny.tiny_catalog(), window=5, seed=0)
    save_policy(policy, tmp_path / "policy")
    names = {file.name for file in (tmp_path / "policy").iterdir()}
    assert names == {
        *("catalog", "config.json", "generation_config.json", "model.safetensors", "recast.json")
    }
    again = load_policy(tmp_path / "policy")
    assert again.tokenizer is None
    assert again.catalog.pad_token == again.model.generation_config.pad_token_id == 0


def test_rounding_is_said_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(path=backbone(tmp_path / "model", torch.float16))
    policy = create_policy(config, tiny.tiny_catalog(), window=5, seed=0)
    assert rounding(policy.model) == []
    policy.model.float()
    said = "weights are trained in float32 and rounded to float16, as they came, on disk"
    assert rounding(policy.model) == [f"{said}; masters/ keeps them as they are trained"]
    adapted = add_adapters(policy.model, LoRAConfig(rank=2), "start", seed=0)
    assert rounding(adapted) == [said]
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[3, 0] = 1e5
    with pytest.raises(RecastError, match=r"embed_tokens.weight of the policy does not fit into f"):
        save_policy(policy, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("merge", [True, False])
def test_every_rank_writes_what_it_is_asked_for(tmp_path: Path, merge: bool) -> None:
    """On the second of two ranks transformers' own saving writes no weights."""
    save_policy(tiny.tiny_policy("qwen3", tiny.tiny_catalog()), tmp_path / "start")
    policy = load_policy(tmp_path / "start")
    model = add_adapters(policy.model, LoRAConfig(rank=2), str(tmp_path / "start"), seed=0)
    distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        save_policy(replace(policy, model=model), tmp_path / "policy", merge=merge)
    finally:
        distributed.destroy_process_group()
    again = load_policy(tmp_path / "policy").model.state_dict()
    # Fresh adapters change nothing.
    assert all(
        weight.equal(again[name])
        for name, weight in load_policy(tmp_path / "start").model.state_dict().items()
    )


def nudged(policy: Policy) -> Policy:
    """As training leaves it: a step that no weight of 16 bits follows."""
    policy.model.float()
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1 + 2**-14)
    return policy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_trains_on_loses_nothing_to_rounding(tmp_path: Path, dtype: torch.dtype) -> None:
    model, catalog = ModelConfig(path=backbone(tmp_path / "model", dtype)), tiny.tiny_catalog()
    save_policy(create_policy(model, catalog, 5, 0), tmp_path / "start")
    assert not (tmp_path / "start" / "masters").exists()  # nothing was trained
    one = nudged(load_policy(tmp_path / "start"))
    save_policy(one, tmp_path / "one")
    two = nudged(load_policy(tmp_path / "one", masters=True))
    save_policy(two, tmp_path / "two")
    further = create_policy(ModelConfig(path=str(tmp_path / "two")), catalog, 5, 0).model
    served = load_policy(tmp_path / "two").model
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    lost = 0
    for name, weight in two.model.named_parameters():
        assert further.get_parameter(name).equal(weight)
        assert served.get_parameter(name).equal(weight.to(dtype))
        assert plain.get_parameter(name).equal(weight.to(dtype))
        lost += int((weight.to(dtype) == one.model.get_parameter(name).to(dtype)).sum())
    assert lost > 1000  # steps that rounding hides
    save_policy(replace(two, model=further), tmp_path / "three")
    for name in ("model.safetensors", "masters/model.safetensors"):
        files = [load_file(tmp_path / run / name) for run in ("two", "three")]
        assert all(weight.equal(files[1][key]) for key, weight in files[0].items())


def test_masters_of_other_weights_are_refused(tmp_path: Path) -> None:
    model = ModelConfig(path=backbone(tmp_path / "model", torch.bfloat16))
    policy = nudged(create_policy(model, tiny.tiny_catalog(), 5, 0))
    save_policy(policy, tmp_path / "policy")
    file = tmp_path / "policy" / "masters" / "model.safetensors"
    whole = load_file(file)
    others = (
        ({"model.norm.weight": whole["model.norm.weight"] * 1.1}, "model.norm.weight is another o"),
        ({"model.norm.weight": whole["model.norm.weight"][:4]}, "model.norm.weight is another one"),
        ({"model.other": torch.ones(2)}, "no 'model.other'"),
    )
    for tensors, line in others:
        save_file(tensors, file)
        with pytest.raises(
            RecastError, match=rf"masters/model.safetensors is .* \({line}.*\): use"
        ):
            load_policy(tmp_path / "policy", masters=True)
    file.write_bytes(b"broken")
    with pytest.raises(RecastError, match=r"or remove .*masters to go on from its rounded weights"):
        load_policy(tmp_path / "policy", masters=True)
    load_policy(tmp_path / "policy")  # what is served is whole


def cut(tensors: dict[str, Tensor]) -> None:
    del tensors["model.norm.weight"]


def flip(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = -tensors["model.norm.weight"]


def fold(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][None]


@pytest.mark.parametrize("harm", [cut, flip, fold])
def test_weights_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[dict[str, Tensor]], None]
) -> None:
    """A disk that keeps something else than it was given."""

    def save(tensors: dict[str, Tensor], *rest: Any) -> None:
        harm(tensors)
        save_file(tensors, *rest)

    monkeypatch.setattr(checkpoint, "save_file", save)
    with pytest.raises(RecastError) as refused:
        save_policy(tiny.tiny_policy("qwen3", tiny.tiny_catalog()), tmp_path / "policy")
    assert str(refused.value) == (
        f"{tmp_path / 'policy'} cannot be written (model.safetensors was not read back as it was "
        "written): its disk fails, choose another output"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_in_place_of_masters_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "masters").mkdir()
    os.mkfifo(tmp_path / "masters" / "model.safetensors")
    with pytest.raises(RecastError, match=r"is not what training left .*\(no plain file\)"):
        take_masters(torch.nn.Linear(1, 1), tmp_path)
