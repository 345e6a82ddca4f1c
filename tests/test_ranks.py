"""Two ranks equal one: every method's gradient, whole runs, and what ranks refuse."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
import torch
from small_encoder import save_encoder
from small_experiment import NAMES
from small_walk import metric_lines, numbers, rl_config, sft_config, weights
from two_ranks import RL_RUNS, SFT_RUN, stratify, write_lists

from recast.cell import Cell
from recast.experiment import follow, run_cells
from recast.methods.table import METHODS, Method
from recast.policy.sharded import shard
from recast.rl import train_rl
from recast.run.world import World, stand_in
from recast.sft import train_sft
from recast.types import RecastError

TESTS = Path(__file__).parent


def start(rank: int, port: int, *args: object, size: int = 2) -> subprocess.Popen[str]:
    """A process that is told of others as torchrun tells it."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    told |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    path = os.pathsep.join([str(TESTS), *sys.path])
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        env=os.environ | {"PYTHONPATH": path} | {name: str(x) for name, x in told.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=600)
        found.append((process.returncode, out, err))
    return found


@pytest.fixture(scope="module")
def two(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The runs of two ranks, and what they found."""
    folder, port = tmp_path_factory.mktemp("two"), free_port()
    script = TESTS / "two_ranks.py"
    write_lists(walk, folder / "lists.json")
    (folder / "encoder").mkdir()
    save_encoder(folder / "encoder")
    first, second = ended([start(rank, port, script, walk, folder) for rank in (0, 1)])
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert second[1] == ""
    return folder, json.loads(first[1].splitlines()[-1])


def test_every_method_has_the_gradient_of_one_rank(two: tuple[Path, dict[str, Any]]) -> None:
    _, found = two
    assert found.keys() > METHODS.keys()
    for name, (way, norm, same, one, both) in found.items():
        assert same, name
        assert norm > 1e-3, name
        assert way < 1e-6, name
        assert both == pytest.approx(one, rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("name", RL_RUNS)
def test_a_run_of_two_ranks_is_that_of_one(
    walk: Path, tmp_path: Path, two: tuple[Path, dict[str, Any]], name: str
) -> None:
    train_rl(rl_config(walk, tmp_path / "run", **RL_RUNS[name] | {"fsdp_size": 1}))
    check_same(tmp_path / "run", two[0] / name)
    for step in (tmp_path / "run").glob("steps/*"):
        check_weights(tmp_path / "run", two[0] / name, f"steps/{step.name}")
    one, both = (
        pl.read_parquet(run / "rollouts" / "*") for run in (tmp_path / "run", two[0] / name)
    )
    assert one.drop("logprob").equals(both.drop("logprob"))


def test_dropout_of_two_ranks_is_that_of_one(
    walk: Path, tmp_path: Path, two: tuple[Path, dict[str, Any]]
) -> None:
    train_sft(sft_config(walk, tmp_path / "run", **SFT_RUN))
    for fsdp_size in (1, 2):
        check_same(tmp_path / "run", two[0] / f"sft{fsdp_size}")


def test_published_lists_are_judged_once(two: tuple[Path, dict[str, Any]]) -> None:
    found = json.loads((two[0] / "lists" / "eval.json").read_text())
    assert found["lists"]["unknown"] == 0


def test_strata_of_two_ranks_are_those_of_one(
    walk: Path, tmp_path: Path, two: tuple[Path, dict[str, Any]]
) -> None:
    stratify(walk, tmp_path / "one")
    one, both = (
        json.loads((folder / "stratify.json").read_text())
        for folder in (tmp_path / "one", two[0] / "strata")
    )
    assert both | {"output": one["output"]} == one


def test_texts_of_two_ranks_have_the_vectors_of_one(two: tuple[Path, dict[str, Any]]) -> None:
    assert json.loads((two[0] / "texts.json").read_text()) is True


def test_a_list_of_cells_by_two_ranks_is_that_of_one(
    finished: tuple[Path, dict[str, Any]], two: tuple[Path, dict[str, Any]]
) -> None:
    """The first makes the data alone, the second follows it through the rest."""
    (root, returned), both = finished, two[0] / "list"
    found, followed = json.loads((two[0] / "list.json").read_text())
    assert followed == [[], NAMES[1:]]
    for name in NAMES:
        assert {file.name for file in (both / name).iterdir()} == {
            file.name for file in (root / name).iterdir()
        }
        one, other = (of[name] | {"cpu_s": 0.0} for of in (returned, found))
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
    for name in ("sft", "louder"):
        check_same(root / name, both / name)
    assert len(metric_lines(both)) == len(metric_lines(root))


@pytest.mark.parametrize(
    ("method", "workers", "line"),
    [
        (METHODS["recast"], 2, "workers is 2: several ranks run one cell after another: leave it"),
        (replace(METHODS["recast"], signal=lambda *_: None), 1, "method of cell 'rl' cannot be to"),
    ],
)
def test_a_list_that_ranks_cannot_share(
    walk: Path, tmp_path: Path, method: Method, workers: int, line: str
) -> None:
    cell = Cell(name="rl", config=rl_config(walk, tmp_path / "run" / "rl"), method=method)
    stand_in(World(led=World(size=2)))
    try:
        with pytest.raises(RecastError, match=f"^{line}"):
            run_cells(tmp_path / "run", [cell], workers=workers)
    finally:
        stand_in(World())
    with pytest.raises(
        RecastError, match=r"^output of cell 'rl' is .* which rank 0 does not see: "
    ):
        follow(cell)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_shared_is_refused(walk: Path, tmp_path: Path) -> None:
    with pytest.raises(RecastError, match=r"^fsdp_size is 2: start several, with torchrun$"):
        train_rl(rl_config(walk, tmp_path / "run", fsdp_size=2))
    policy = tiny.tiny_policy("t5", tiny.random_catalog(6, (2, 3)))
    with pytest.raises(RecastError, match=r"^fsdp_size is 2: the layers of a T5ForConditionalGen"):
        shard(policy.model, 2)
    assert list(tmp_path.iterdir()) == []


def check_same(one: Path, both: Path) -> None:
    """Everything is written once, and the numbers are those of one process."""
    names = {file.name for file in one.iterdir()}
    assert {file.name for file in both.iterdir()} == names
    lines, others = metric_lines(one), metric_lines(both)
    assert len(lines) == len(others)
    for line, other in zip(lines, others, strict=True):
        mine, its = (
            {name: x for name, x in numbers(of).items() if name not in ("actor/padding", "stage")}
            for of in (line, other)
        )
        assert its == pytest.approx(mine, rel=1e-5, abs=1e-6)
    check_weights(one, both)


def check_weights(one: Path, both: Path, policy: str = "policy") -> None:
    before, after = weights(one, policy), weights(both, policy)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-6) for name in before)
