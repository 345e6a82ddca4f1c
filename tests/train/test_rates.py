"""Two learning rates over one table, by one AdamW per rate; rates of 0 by the bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from small_walk import metric_lines, sft_config, weights
from transformers import AutoModelForCausalLM

from recast.config import SFTConfig
from recast.config.model import ModelConfig
from recast.items.catalog import load_catalog
from recast.sft import train_sft
from recast.train.rates import rates_of
from recast.train.state import adamw
from recast.types import RecastError


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_rows_at_their_own_rate_go_as_if_they_had_their_own_optimizer(kind: str) -> None:
    """The rows behind token 2 at 1e-2, everything else at 1e-3, four steps of random gradients,
    against two plain optimizers over copies."""
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy(kind, catalog)
    model, first, last = policy.model, catalog.first_token, catalog.vocab_size
    rates = rates_of(policy, 1e-3, 1e-2)
    slow = {name: p.detach().clone() for name, p in model.named_parameters()}
    fast = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = [torch.optim.AdamW(list(copy.values()), weight_decay=0.1) for copy in (slow, fast)]
    optimizer = adamw(model.parameters(), 1e-3, 0.1)
    draw = torch.Generator().manual_seed(1)
    for factor in (0.5, 1.0, 0.7, 0.1):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
            slow[name].grad = fast[name].grad = parameter.grad.clone()
        for plain, rate in zip(optimizers, (1e-3, 1e-2), strict=True):
            plain.param_groups[0]["lr"] = rate * factor
            plain.step()
        rates.step(optimizer, factor)
    tables = {id(table) for table in rates.tables}
    for name, parameter in model.named_parameters():
        expected = slow[name].clone()
        if id(parameter) in tables:
            expected[first:last] = fast[name][first:last]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("backbone") / "model"
    config = tiny.tiny_config("qwen3", 40)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tiny_tokenizer(9).save_pretrained(folder)
    return str(folder)


def config_of(walk: Path, output: Path, backbone: str, **settings: object) -> SFTConfig:
    config = sft_config(walk, output, epochs=1)
    return replace(config, model=ModelConfig(path=backbone), **settings)


@pytest.mark.parametrize(("lr", "sid_lr"), [(0.0, 1e-2), (1e-2, 0.0)])
def test_a_rate_of_0_leaves_the_weights_as_they_are(
    walk: Path, tmp_path: Path, backbone: str, lr: float, sid_lr: float
) -> None:
    """The old rows and the body keep their bits at lr 0, the rows of semantic IDs at sid_lr 0; the
    others move."""
    start = config_of(walk, tmp_path / "start", backbone, lr=1e-12, max_steps=1)
    train_sft(start)
    train_sft(config_of(walk, tmp_path / "run", backbone, lr=lr, sid_lr=sid_lr, max_steps=3))
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    first = 9
    last = first + sum(load_catalog(walk / "catalog").codebook_sizes)
    for name, value in after.items():
        moved = (value - before[name]).abs() > 1e-6
        if "embed_tokens" in name or "lm_head" in name:
            assert bool(moved[first:last].any()) == (sid_lr > 0)
            old = torch.cat([moved[:first], moved[last:]])
        else:
            old = moved
        assert bool(old.any()) == (lr > 0), name


def test_a_run_ends_with_its_steps(walk: Path, tmp_path: Path) -> None:
    """7 steps where an epoch has 6: a second epoch of one step."""
    found = train_sft(sft_config(walk, tmp_path / "run", max_steps=7, epochs=50))
    assert found["optimizer_steps"] == 7
    assert [line["step"] for line in metric_lines(tmp_path / "run")] == [6, 7]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0.0}, "lr is 0.0: nothing is trained"),
        ({"sid_lr": 1e-3}, "sid_lr is 0.001: a new model has one rate"),
        ({"lr": -1.0}, "lr is -1.0: give a positive rate"),
        ({"lr": 0.0, "sid_lr": 0.0, "model": ModelConfig(path="x")}, "lr is 0.0: nothing"),
        ({"max_steps": 0}, "max_steps is 0"),
    ],
)
def test_rates_that_train_nothing_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(RecastError, match=said):
        SFTConfig(data="d", catalog="c", output="o", **settings)
