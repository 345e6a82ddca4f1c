"""A list of cells on the small walk, data to evaluation, with a method of a user's own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_walk import rl_config, sft_config
from torch import Tensor

from recast.cell import Cell
from recast.config import EvaluateConfig, PrepareConfig, TokenizeConfig
from recast.experiment import run_cells
from recast.methods.table import METHODS, Method
from recast.types import RecastError, RolloutGroups, Signal

NAMES = ["data", "items", "sft", "louder", "judged"]


def louder(groups: RolloutGroups, rewards: Tensor, *, w: float = 2.0) -> Signal:
    """ReCast; with PAUSE_IN set it says so there in its third step, and stays."""
    if groups.step == 2 and (pause := os.environ.get("PAUSE_IN")):
        Path(pause).touch()
        time.sleep(600)
    signal: Callable[..., Signal] = METHODS["recast"].signal
    return signal(groups, rewards, w=w)


LOUDER = replace(METHODS["recast"], signal=louder, label="Louder")


def cells_of(root: Path, events: Path, method: Method = LOUDER, **rl: Any) -> list[Cell]:
    folders = {name: str(root / name) for name in NAMES}
    prepare = PrepareConfig(output=folders["data"], interactions=str(events))
    tokenize = TokenizeConfig(
        data=folders["data"], output=folders["items"], items_as="codes", collaborative_weight=1.0
    )
    sft = sft_config(root, root / "sft", catalog=folders["items"], epochs=2)
    judge = EvaluateConfig(
        data=folders["data"], policy=f"{root}/louder/policy", output=folders["judged"]
    )
    return [
        Cell(name="data", config=prepare),
        Cell(name="items", config=tokenize),
        Cell(name="sft", config=sft),
        Cell(name="louder", config=rl_config(root, root / "louder", **rl), method=method),
        Cell(name="judged", config=judge),
    ]


def times(root: Path) -> dict[Path, int]:
    """When each file of the cells was written."""
    cells = [file for name in NAMES for file in (root / name).rglob("*")]
    return {file: file.stat().st_mtime_ns for file in cells if file.is_file()}


def refusal(root: Path, cells: list[Cell]) -> str:
    """The one line; nothing is touched."""
    before = times(root)
    with pytest.raises(RecastError) as refused:
        run_cells(root, cells)
    assert times(root) == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


if __name__ == "__main__":
    # Under its own name, not as __main__: a function's name is part of what it is.
    import small_experiment

    root, events = map(Path, sys.argv[1:])
    run_cells(root, small_experiment.cells_of(root, events))
