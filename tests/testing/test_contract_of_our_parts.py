"""Every reward, signal and loss of ours meets the contract that we ask of users."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

import recast.losses
import recast.rewards
import recast.signals
from recast.losses import LOSSES
from recast.methods.parts import Part, name_of, resources
from recast.rewards import REWARDS
from recast.signals import SIGNALS
from recast.testing import check_loss, check_reward, check_signal

NOT_AT_ZERO = {"zero_at": (1.0, 1 / 3)}
ONLY_AT_ZERO = {"zero_at": (0.0,)}
SETTINGS: dict[str, dict[str, Any]] = {
    # All-zero groups are repaired, or contrasted with the target.
    "recast": NOT_AT_ZERO,
    "repair_only": NOT_AT_ZERO,
    "recast_adaptive": NOT_AT_ZERO,
    "riser": NOT_AT_ZERO,
    # No group statistics: a reward is its own advantage.
    "identity": ONLY_AT_ZERO,
    "gumbel_pg": ONLY_AT_ZERO,
    # The anchor's weight is on every hit, contrasted or not.
    "recast_levels": {"zero_at": ()},
    # Its second objective is the structural score, which constant rewards leave as it is.
    "sage": {"zero_at": ()},
    # The weight of a node is on the first rollout through it, whichever that is.
    "vstar": {"permutable": False},
}


def _public(package: ModuleType, inputs: set[str], result: str) -> Iterator[Part]:
    """Functions of a package that take no other positional inputs and are annotated so."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for name, function in inspect.getmembers(import_module(module.name), inspect.isfunction):
            if function.__module__ != module.name or name.startswith("_"):
                continue
            signature = inspect.signature(function)
            given = {
                key
                for key, p in signature.parameters.items()
                if p.kind is not inspect.Parameter.KEYWORD_ONLY
            }
            if given and given <= inputs and str(signature.return_annotation).startswith(result):
                yield function


def _all(registry: dict[str, Part], found: Iterator[Part]) -> list[Any]:
    """What has a name, and what is in the package without one."""
    parts = dict(registry)
    for part in found:
        if not any(part is known for known in parts.values()):
            parts[name_of(part)] = part
    return [pytest.param(part, id=name) for name, part in parts.items()]


def _settings(part: Part) -> dict[str, Any]:
    while isinstance(part, partial):
        part = part.func
    return SETTINGS.get(part.__name__, {})


ALL_SIGNALS = _all(SIGNALS, _public(recast.signals, {"groups", "rewards"}, "Signal"))
ALL_REWARDS = _all(REWARDS, _public(recast.rewards, {"groups"}, "Float"))
LOSS_INPUTS = {"logprobs", "old_logprobs", "ref_logprobs", "advantages", "loss_mask"}
ALL_LOSSES = _all(LOSSES, _public(recast.losses, LOSS_INPUTS, "Float"))
LISTWISE = [param for param in ALL_SIGNALS if "list_length" in resources(param.values[0])]


def test_there_is_something_to_check() -> None:
    assert len(ALL_SIGNALS) >= 3
    assert len(ALL_REWARDS) >= 2
    assert len(ALL_LOSSES) >= 1
    known = {name_of(param.values[0]).partition("(")[0] for param in ALL_SIGNALS}
    assert known >= SETTINGS.keys()


@pytest.mark.parametrize("signal", ALL_SIGNALS)
def test_a_signal_passes(signal: Part) -> None:
    check_signal(signal, **_settings(signal))


@pytest.mark.parametrize("signal", LISTWISE)
def test_a_signal_of_lists_passes_on_lists(signal: Part) -> None:
    check_signal(signal, **_settings(signal), list_length=3)


@pytest.mark.parametrize("reward", ALL_REWARDS)
def test_a_reward_passes(reward: Part) -> None:
    check_reward(reward)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_a_loss_passes(loss: Part) -> None:
    check_loss(loss)
