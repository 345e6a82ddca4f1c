"""The type checks of the tests do refuse, and are gone where a test asks them to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checked import checked, unchecked
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from recast.config import RLConfig
from recast.losses.ppo_clip import ppo_clip

TWO, THREE = torch.zeros(2), torch.zeros(3)


@checked
def cut(values: Float[Tensor, " N"], most: float) -> Float[Tensor, " N"]:
    return values[: int(most)]


@checked
def adder(more: int) -> Callable[[int], int]:
    @checked
    def add(value: int) -> int:
        return value + more

    return add


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ppo_clip(TWO, TWO, THREE),  # the axis n is 2
        lambda: ppo_clip(TWO, TWO.long(), TWO),
        lambda: RLConfig(data="d", policy="p", output="o", lr=[]),
        lambda: cut(THREE, 2),
        lambda: adder(1)("a"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(TypeCheckError):
        wrong()


def test_what_a_test_wants_unchecked_is_called() -> None:
    with unchecked():
        assert cut(THREE, 2).equal(TWO)
    with pytest.raises(TypeCheckError):
        cut(THREE, 2)


def test_what_fits_is_called() -> None:
    assert cut(THREE, 3).equal(THREE)  # an int is a float
    assert cut(TWO, 2.0).equal(TWO)  # and N another at every call
    assert [adder(more)(1) for more in (1, 2)] == [2, 3]  # one check, two functions
