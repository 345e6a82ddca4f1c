"""Ranks as far as one process can tell: what a launcher says, and who does what."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recast.errors import RecastError
from recast.run import world
from recast.run.launched import Launched
from recast.run.world import World, agreed, alone, gathered, once, share, shared, spread

LAUNCHED = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "here", "MASTER_PORT": "1"}


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 5))
def test_every_position_is_of_one_rank_and_all_have_about_as_much(
    costs: list[int], size: int
) -> None:
    before, own = world._world, []
    for rank in range(size):
        world._world = World(rank=rank, size=size)
        own.append(share(costs))
    world._world = before
    assert sorted(i for positions in own for i in positions) == list(range(len(costs)))
    loads = [sum(costs[i] for i in positions) for positions in own]
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_what_a_rank_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call waits for anybody, and the second rank is still not the one that speaks."""
    monkeypatch.setattr(world, "_world", World(rank=1, size=2))
    with alone():
        assert not world.is_first()
        assert once(lambda: 3) == agreed(3) == 3
        assert gathered(3) == [3]
        assert spread([1, 2, 3], lambda x: 2 * x) == [2, 4, 6]
        assert shared({"w": torch.ones(1)}) == {"w": torch.ones(1)}
        assert world.total(2.0) == 2.0
        world.require_same({"seed": 0})
    assert world.world().size == 2


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"RANK": None}, "RANK is None where WORLD_SIZE is 4: start it with torchrun"),
        ({"RANK": "4"}, "RANK is '4' where WORLD_SIZE is 4: "),
        ({"RANK": "-1"}, "RANK is '-1' where"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x' where"),
        ({"LOCAL_WORLD_SIZE": "9" * 50}, "LOCAL_WORLD_SIZE is '9999"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 4: MASTER_ADDR, where the processes meet, is not set"),
        ({"WORLD_SIZE": "9" * 20}, "WORLD_SIZE is 99999999999999999999: 100,000 processes are the"),
        ({"MASTER_PORT": None}, "WORLD_SIZE is 4: MASTER_PORT, where"),
    ],
)
def test_what_a_launcher_forgot(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], line: str
) -> None:
    for name, value in (LAUNCHED | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(RecastError) as told:
        Launched.told()
    assert str(told.value).startswith(line)


def test_what_a_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (LAUNCHED | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    assert Launched.told() == (3, 1, 2)


def test_to_know_that_one_is_alone_takes_no_torch() -> None:
    code = "import sys, recast.run.launched as one; one.join(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
