"""Dropout inside the layers: where it acts, and that it is gone afterwards."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn

from recast.policy.body import dropout_mask, dropping, hidden_states
from recast.policy.packed import root_layout
from recast.types import RecastError


class Pair(nn.Module):
    """An attention block, which gives its weights too."""

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x, "weights"


class Model(nn.Module):
    """One layer: x plus what attention gives of it, then plus what the other block gives."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.layer = nn.Module()
        self.layer.add_module(attention, Pair())
        self.layer.add_module("mlp", nn.Identity())
        self.attention = attention

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = x + getattr(self.layer, self.attention)(x)[0]
        return x + self.layer.mlp(x)


def test_outputs_of_blocks_are_dropped_before_they_are_added() -> None:
    """Each is 0 or twice itself: 1 + 2 or 1 + 0, and that again plus 0 or twice itself."""
    model, x = Model("self_attn"), torch.ones(4000)
    with dropping(model, 0.5):
        values = model(x)
    assert sorted(values.unique().tolist()) == [1.0, 3.0, 9.0]
    assert float(values.mean()) == pytest.approx(4.0, abs=0.2)
    assert model(x).unique().tolist() == [4.0]


@pytest.mark.parametrize("rate", [1e-9, 0.2, 0.75, 1 - 1e-9])
def test_a_mask_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    mask = dropout_mask(torch.empty(3, 33333), rate)
    assert float((mask == 0).float().mean()) == pytest.approx(rate, abs=0.005)
    kept = mask[mask > 0]
    share = min(round(rate * 2**16), 2**16 - 1) / 2**16
    assert kept.unique().tolist() == [pytest.approx(1 / (1 - share))]
    torch.manual_seed(0)
    assert dropout_mask(torch.empty(3, 33333), rate).equal(mask)


def test_blocks_of_other_names_are_refused() -> None:
    line = "layer_dropout finds no attention and feed-forward blocks in Model"
    with pytest.raises(RecastError, match=line), dropping(Model("mixer"), 0.5):
        pass
    with dropping(Model("mixer"), 0.0):
        pass


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_every_layer_drops_and_none_afterwards(name: str) -> None:
    model = tiny.tiny_policy(name, tiny.tiny_catalog()).model
    tokens, positions = torch.tensor([[1, 2, 5]]), torch.arange(3)[None]
    others = {"layout": root_layout(torch.tensor([3]), 2)} if name == "t5" else {}

    def hidden(rate: float, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad(), dropping(model, rate):
            if rate:
                hooks = sum(len(module._forward_hooks) for module in model.modules())
                assert hooks == (10 if name == "t5" else 4)  # 2 and 3 blocks in 2 layers each
            return hidden_states(model, positions, tokens=tokens, **others)

    plain, dropped = hidden(0.0), hidden(0.4)
    assert dropped.equal(hidden(0.4))
    assert not dropped.equal(hidden(0.4, seed=1))
    assert hidden(0.0).equal(plain)
    with pytest.raises(KeyError), dropping(model, 0.4):
        raise KeyError
    assert not any(module._forward_hooks for module in model.modules())
