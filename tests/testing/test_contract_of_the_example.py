"""The example and the guide to parts of one's own: they run, pass, and their numbers are right."""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

from recast.methods.parts import find_part, parameters
from recast.methods.probe import probe_groups, probe_resources
from recast.types import RecastError

FOLDER = Path(__file__).parents[2] / "examples"
GUIDE = FOLDER.parent / "docs" / "custom.md"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("custom_signal", FOLDER / "custom_signal.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_and_passes() -> None:
    command = [sys.executable, "-W", "error", "custom_signal.py"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "my_signal passes\n"), done.stderr


def test_every_rollout_is_compared_with_the_mean_of_the_others(example: ModuleType) -> None:
    groups = tiny.make_groups(
        [[[1, 2], [3, 4], [5, 6], [0, 0]]], [[[1, 2]]], exists=[[True, True, True, False]]
    )
    rewards = torch.tensor([[1.0, 0.5, 0.0, 0.0]])
    signal = example.my_signal(groups, rewards, clip=0.5)
    assert signal.advantages[0, :, 0].tolist() == [0.5, 0, -0.5, 0]
    assert signal.keep.tolist() == [[True, True, True, False]]
    free = example.my_signal(groups, rewards, clip=9.0)
    assert free.advantages[0, :, 0].tolist() == [0.75, 0, -0.75, 0]


def test_a_clip_out_of_range_is_refused_by_name(example: ModuleType) -> None:
    groups = tiny.make_groups([[[1, 2], [3, 4]]], [[[1, 2]]])
    with pytest.raises(RecastError, match="clip is 0: give a number above 0"):
        example.my_signal(groups, torch.zeros(1, 2), clip=0)


def test_the_command_line_finds_it_from_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "custom_signal", raising=False)
    part = find_part("signal", "custom_signal:my_signal")
    assert parameters(part) == {"clip": 1.0}


def test_it_is_as_short_as_it_says() -> None:
    source = (FOLDER / "custom_signal.py").read_text()
    body = source.partition('"""\n\n')[2].partition("\n\nif __name__")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_the_code_of_the_guide_passes_its_own_checks() -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    groups = tiny.make_groups(
        [[[1, 2], [1, 3], [5, 6]]], [[[1, 2]]], target_items=[[7]], items=[[7, 8, 9]]
    )
    assert names["near_miss"](groups, partial=0.25).tolist() == [[1, 0.25, 0]]
    loss = names["bounded"](torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    assert float(loss) == pytest.approx(math.log(2))


def test_the_guide_names_every_resource() -> None:
    known = set(probe_resources(probe_groups(1)))
    named = set(re.findall(r"^\| `(\w+)` \| ", GUIDE.read_text(), re.MULTILINE))
    assert named == known - {"texts"}  # rollouts of semantic IDs have no text
