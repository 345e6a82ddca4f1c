"""What a config names, looked up before a stage is imported: a config in, nothing or a line out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from recast import losses, rewards, signals
from recast.config import CompareConfig, RLConfig, StepConfig
from recast.config.plugin import load_function
from recast.config.rows import telling
from recast.methods.names import require_ours
from recast.methods.table import METHODS, find_method, require_group
from recast.types import require


def check_methods(config: CompareConfig) -> None:
    """`check_method` of every method and group size that are compared."""
    for name in config.methods:
        with telling(config, name):
            _check_row(config, name)


def _check_row(config: CompareConfig, name: str) -> None:
    method, own = config.method_of(name), config.rl.get(name, {})
    named = "method" in own or name in METHODS or not own
    require(named, "method", None, "a row of your own says which method it changes")
    samplers = find_method(method).samplers
    remedy = f"a row of that name has the method {name}, call this one otherwise"
    require(method == name or name not in METHODS, "method", method, remedy)
    shared: dict[str, Any] = {"data": config.data, "policy": config.policy[0], "method": method}
    shared["sampler"] = config.sampler if samplers else None
    shared |= {"output": config.output, "steps": config.steps}
    for size in config.group_sizes:
        check_method(RLConfig(**shared | {"group_size": size} | own))


def check_method(config: StepConfig) -> None:
    """Raise `RecastError` for a method or a part that is not there, and for too small a group.

    It needs no transformers, whose import takes longer than a refusal may.
    """
    require_group(find_method(config.method), config.group_size, config.method)
    samplers = [name for method in METHODS.values() for name in method.samplers]
    ours: dict[str, Iterable[str]] = {
        "sampler": dict.fromkeys(samplers),
        "reward": rewards.REWARDS,
        "signal": signals.SIGNALS,
        "loss": losses.LOSSES,
    }
    for kind, known in ours.items():
        name = getattr(config, kind)
        if name and ":" in name:
            load_function(kind, name)
        elif name:
            require_ours(kind, name, known)
