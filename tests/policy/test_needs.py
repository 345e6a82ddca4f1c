"""What training takes, counted from a config.json: against worked numbers and against a run."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config

from recast.config import LoRAConfig
from recast.policy import needs
from recast.policy.lora import add_adapters
from recast.policy.memory import plan_memory, size
from recast.policy.needs import Needs, needs_of, tell_needs
from recast.train.state import adamw
from recast.types import RecastError

# Of PEFT itself, whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SHAPES = {  # of Qwen3's config.json: hidden, inside, layers, heads, tied
    "0.6 B": (1024, 3072, 28, 16, True),
    "1.7 B": (2048, 6144, 28, 16, True),
    "8 B": (4096, 12288, 36, 32, False),
}


def qwen3(name: str) -> Qwen3Config:
    hidden, inside, layers, heads, tied = SHAPES[name]
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=inside,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
        dtype="bfloat16",
    )


@pytest.mark.parametrize(
    ("name", "numbers", "gigabytes", "cards"),
    [
        # In whole, with a reference, adapters of rank 16.
        ("0.6 B", 596_049_920, (9.5, 11.9, 1.4), (24, 24, 24)),
        ("1.7 B", 1_720_574_976, (27.5, 34.4, 3.7), (40, 48, 24)),
        ("8 B", 8_190_735_360, (131.1, 163.8, 17.1), (192, None, 24)),
    ],
)
def test_qwen3_on_cards(
    name: str, numbers: int, gigabytes: tuple[float, ...], cards: tuple[int | None, ...]
) -> None:
    config = qwen3(name)
    found = [needs_of(config), needs_of(config, reference=True), needs_of(config, rank=16)]
    assert found[0].trained == 4 * numbers == found[1].reference
    assert found[2].frozen == 2 * numbers
    assert tuple(round(one.total / 1e9, 1) for one in found) == gigabytes
    assert tuple(one.card for one in found) == cards


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_they_are_what_a_step_holds(name: str, rank: int | None) -> None:
    """Bytes of weights, gradients and AdamW's state after a step, one by one."""
    policy = tiny.tiny_policy(name, tiny.tiny_catalog())
    model: Any = policy.model
    told = needs_of(model.config, rank=rank, reference=rank is None)
    if rank is not None:
        model = add_adapters(model, LoRAConfig(rank=rank), "start", seed=0)
    trained = [x for x in model.parameters() if x.requires_grad]
    plan = plan_memory(replace(policy, model=model), 5, None, reference=rank is None)
    steps = 4 * sum(x.requires_grad for x in model.parameters())
    assert f"{size(told.total - steps)} for weights, gradients and AdamW" in plan.text
    optimizer = adamw(trained, 1e-3, 0.0)
    model(torch.zeros(1, 3, dtype=torch.long)).logits.logsumexp(-1).sum().backward()
    for weight in trained:  # a frozen beginning gives some of the adapters none
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    optimizer.step()
    held = Needs(
        trained=sum(x.nbytes for x in trained),
        frozen=sum(x.nbytes for x in model.parameters() if not x.requires_grad),
        gradients=sum(x.grad.nbytes for x in trained if x.grad is not None),
        moments=sum(x.nbytes for state in optimizer.state.values() for x in state.values()),
        reference=sum(x.nbytes for x in copy.deepcopy(model).parameters()) if rank is None else 0,
    )
    assert told == held


def folder_of(path: Path, config: Qwen3Config) -> str:
    """A config.json and a weight, which says how many there are."""
    config.save_pretrained(path)
    save_file({"model.norm.weight": torch.zeros(8)}, path / "model.safetensors")
    return str(path)


def test_it_is_told_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "model", qwen3("1.7 B"))
    tell_needs(folder, "cpu")
    assert capsys.readouterr().out == ""  # of a small model nothing
    monkeypatch.setattr(needs, "_TOLD", 8)
    monkeypatch.setattr(needs, "all_bytes", lambda _: 30e9)
    tell_needs(folder, "cpu", num_rows=151_937)
    assert capsys.readouterr().out == (
        f"{folder}: trained in whole 27.5 GB (a card of 40 GB): weights 6.9 GB, gradients 6.9 GB, "
        "AdamW 13.8 GB; with lora.rank 16 3.7 GB (a card of 24 GB)\n"
    )
    with pytest.raises(RecastError) as refused:
        tell_needs(folder, "cpu", lora=LoRAConfig(), reference=True)
    assert str(refused.value) == (
        f"{folder} takes 34.4 GB (a card of 48 GB) in training, and 30.0 GB are all that there "
        "is: set lora.rank, which at 16 takes 3.7 GB (a card of 24 GB), or set kl_coef to 0, which "
        "needs no reference or choose a smaller model"
    )
    tell_needs(folder, "cpu", lora=LoRAConfig(), reference=True, fsdp_size=2)  # 6.9 + 34.4 / 2
    capsys.readouterr()
    tell_needs(folder, "cpu", lora=LoRAConfig(rank=8, layers="q_proj,v_proj"))
    # 28 layers: q 2048 + 2048, v 2048 + 1024, of rank 8, 16 bytes each, beside 2 of every weight.
    more = 28 * 8 * (4096 + 3072) * 16 + 28 * 4 * 4
    assert f"{(2 * 1_720_574_976 + more) / 1e9:.1f} GB" in capsys.readouterr().out


def test_what_loading_refuses_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "model", qwen3("0.6 B"))
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings["model_type"] = "unheard"
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(needs, "_TOLD", 8)
    tell_needs(folder, "cpu")
