"""Every setting of every verb with values that no run could use: one line, or accepted."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from typing import get_type_hints

from recast import cli
from recast import config as configs
from recast.config.check import fits_type
from recast.types import RecastError

NEEDED = {"data": "d", "catalog": "c", "policy": "p", "output": "o", "ranker": "r", "texts": "t"}
NEEDED |= {"format": "trl", "tables": "t"}
TYPES = [getattr(configs, verb.config) for verb in cli.VERBS.values() if verb.config]
TYPES += [configs.ModelConfig, configs.LoRAConfig, configs.PromptConfig]
NUMBERS = (-1, 0, 10**11, 10**30, -(10**30), 1e30, 1e300, math.nan, math.inf, -math.inf, 10**9999)
OTHERS = ("", " ", "a\0b", "\udcff", True, None, [], [1], [[]], {}, {"a": 1}, b"x", object(), 1j)


def needed(config_type: type) -> dict[str, str]:
    plain = [f for f in fields(config_type) if f.default is MISSING]
    return {f.name: NEEDED[f.name] for f in plain if f.default_factory is MISSING}


def try_all(config_type: type) -> None:
    for name, hint in get_type_hints(config_type).items():
        for value in (*NUMBERS, *OTHERS):
            try:
                config = config_type(**(needed(config_type) | {name: value}))
            except RecastError as error:
                line = str(error)
            else:
                line = None
            if line is not None:
                assert ": " in line
                assert len(line) < 1000
                continue
            kept = getattr(config, name)
            assert fits_type(kept, hint)
            assert is_dataclass(kept) or kept in (value, [value])
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert value in (-1, 0) or (value, name) == (math.inf, "max_grad_norm")
