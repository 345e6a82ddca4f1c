"""Examples in docstrings give what they say, and every reward and signal has its own."""

from __future__ import annotations

import doctest
import pkgutil
from functools import partial
from importlib import import_module
from typing import Any

import pytest

import recast
from recast.rewards import REWARDS
from recast.signals import SIGNALS

MODULES = [module.name for module in pkgutil.walk_packages(recast.__path__, "recast.")]
PARTS = SIGNALS | REWARDS


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_hold(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_an_example_that_calls_it(name: str) -> None:
    part: Any = PARTS[name]
    while isinstance(part, partial):
        part = part.func
    examples = doctest.DocTestParser().get_examples(part.__doc__ or "")
    assert any(f"{part.__name__}(" in example.source for example in examples)
    assert any(example.want for example in examples)
