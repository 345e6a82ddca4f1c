"""The average of the weights, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from recast.config import Keep
from recast.train.state import LoopState


def stand_at(value: float, state: LoopState) -> None:
    """One more step, behind which every weight has this value."""
    with torch.no_grad():
        for weight in state.model.parameters():
            weight.fill_(value)
    state.remember_batch(torch.zeros(()), 1, 1)


def begun(keep: Keep, ema: float = 0.5) -> LoopState:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    return LoopState(model=model, optimizer=optimizer, keep=keep, ema=ema)


def value_of(model: nn.Module) -> list[float]:
    return [float(weight.detach()) for weight in model.parameters()]


def test_shares_are_powers_of_the_decay_and_sum_to_one() -> None:
    """Decay .5 and weights 1, 3, 3: 1, then (.5 + 3) / 1.5, then (.25 + 1.5 + 3) / 1.75."""
    state = begun("best")
    for weight, average in ((1.0, 1.0), (3.0, 3.5 / 1.5), (3.0, 4.75 / 1.75)):
        stand_at(weight, state)
        with state.judged():
            assert value_of(state.model) == pytest.approx([average] * 2)
        assert value_of(state.model) == [weight] * 2
    assert begun("best", 0.0).average == {}


@pytest.mark.parametrize(("keep", "kept"), [("best", 1.0), ("last", 3.5 / 1.5)])
def test_the_average_is_kept_and_survives_a_checkpoint(keep: Keep, kept: float) -> None:
    state = begun(keep)
    for weight, ndcg in ((1.0, 0.2), (3.0, 0.1)):
        stand_at(weight, state)
        state.validated({"valid/ndcg@10": ndcg})
    state.moved()
    again = begun(keep)
    again.restore({name: tensor.clone() for name, tensor in state.tensors().items()}, state.facts())
    for one in (state, again):
        assert value_of(one.model) == [3.0] * 2
        assert one.take() == {"valid/ndcg@10": 0.2 if keep == "best" else 0.1}
        assert value_of(one.model) == pytest.approx([kept] * 2)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_without_an_average_the_weights_themselves_are_kept(keep: Keep) -> None:
    state = begun(keep, 0.0)
    for weight, ndcg in ((1.0, 0.2), (3.0, 0.1)):
        stand_at(weight, state)
        with state.judged():
            assert value_of(state.model) == [weight] * 2
        state.validated({"valid/ndcg@10": ndcg})
    state.take()
    assert value_of(state.model) == [1.0 if keep == "best" else 3.0] * 2


def test_a_reference_moves_by_its_share_and_survives_a_checkpoint() -> None:
    """From 0 towards 1: .25, then .25 + .25 * .75; 1 is all the way, to the bit."""
    state = replace(begun("last", 0.0), reference=nn.Linear(1, 1))
    assert state.reference
    for model, value in ((state.model, 1.0), (state.reference, 0.0)):
        for weight in model.parameters():
            weight.data.fill_(value)
    for moved in (0.25, 0.4375):
        state.move_reference(0.25)
        assert value_of(state.reference) == [moved] * 2
        assert value_of(state.model) == [1.0] * 2
    state.moved()
    tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
    other = replace(begun("last", 0.0), reference=nn.Linear(1, 1))
    other.restore(tensors, state.facts())
    assert other.reference
    assert value_of(other.reference) == [0.4375] * 2
    stand_at(0.1, other)
    other.move_reference(1.0)
    assert value_of(other.reference) == value_of(other.model)
