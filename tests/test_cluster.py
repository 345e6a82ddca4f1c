"""Several processes that are killed, lost or told different things: `make cluster-test`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_walk import metric_lines, numbers, rl_args, same, weights
from test_ranks import ended, free_port, start

pytestmark = pytest.mark.skipif(
    "RECAST_CLUSTER" not in os.environ, reason="minutes: make cluster-test"
)

STEPS = ("--steps=30", "--lr=1e-3", "--checkpoint_s=0.05", "--method=dapo", "--eval_every=10")

PART_OF_A_USER = """
import os, torch

def loss(logprobs, advantages):
    if os.environ["RANK"] == "1" and len(advantages):
        raise KeyError("mine")
    return -logprobs * advantages
"""


def run(walk: Path, output: Path, *more: str, count: int = 2) -> list[subprocess.Popen[str]]:
    port = free_port()
    args = rl_args(walk, output, *STEPS, *more)
    return [start(rank, port, "-m", "recast", *args, size=count) for rank in range(count)]


def lines_of(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("recast: error: ")]


@pytest.fixture(scope="module")
def straight(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nobody ended."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert [code for code, _, _ in ended(run(walk, folder))] == [0, 0]
    return folder


@pytest.mark.parametrize(
    ("counts", "killed", "sizes"),
    [
        ((2, 2), 1, (1, 1)),
        ((2, 2), 0, (1, 1)),
        ((2, 1), 1, (1, 1)),
        ((1, 2), 0, (1, 1)),
        ((2, 1), 1, (2, 1)),
        ((1, 2), 0, (1, 2)),
        ((4, 2), 3, (2, 2)),
    ],
)
def test_killed_and_gone_on_with_by_as_many_or_not(
    walk: Path,
    tmp_path: Path,
    straight: Path,
    counts: tuple[int, int],
    killed: int,
    sizes: tuple[int, int],
) -> None:
    """As many ranks or not, each with all weights or, by `sizes`, with shards of them."""
    before, after = counts
    folder = tmp_path / "run"
    processes = run(walk, folder, f"--fsdp_size={sizes[0]}", count=before)
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 12:
        assert processes[0].poll() is None
        time.sleep(0.05)
    processes[killed].send_signal(signal.SIGKILL)
    since = time.monotonic()
    codes = ended(processes)
    assert time.monotonic() - since < 60
    assert codes.pop(killed)[0] == -signal.SIGKILL
    if codes:
        assert {code for code, _, _ in codes} == {2}
        [line] = [line for _, _, err in codes for line in lines_of(err)]
        assert f"rank {int(killed == 0)} of {before} lost another one" in line
    assert not (folder / "policy").exists()
    again = run(walk, folder, "--resume=true", f"--fsdp_size={sizes[1]}", count=after)
    assert [code for code, _, _ in ended(again)] == [0] * after
    mine, its = weights(folder), weights(straight)
    if (before, after, *sizes) == (2, 2, 1, 1):
        assert same(mine, its)
    assert all(torch.allclose(mine[name], its[name], rtol=0, atol=1e-6) for name in mine)
    assert not (folder / "checkpoints").exists()
    for line, other in zip(metric_lines(folder), metric_lines(straight), strict=True):
        one, two = ({k: x for k, x in numbers(of).items() if k != "stage"} for of in (line, other))
        one, two = ({k: x for k, x in of.items() if k != "actor/padding"} for of in (one, two))
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)


def test_torchrun_and_the_line_of_the_rank_that_failed(walk: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PART_OF_A_USER)
    args = rl_args(walk, tmp_path / "run", "--method=openonerec_rl", "--loss=mine:loss")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "recast"]
        + [str(arg) for arg in args],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    [line] = lines_of(done.stderr)
    assert "loss mine:loss" in line
    assert "mine" in line


def test_ranks_that_were_told_different_things(walk: Path, tmp_path: Path) -> None:
    port, args = free_port(), rl_args(walk, tmp_path / "run")
    both = [
        start(0, port, "-m", "recast", *args),
        start(1, port, "-m", "recast", *args, "--seed=3"),
    ]
    first, second = ended(both)
    assert first[0] == second[0] == 2
    assert lines_of(first[2]) == [
        "recast: error: seed is 0 on rank 0 and 3 on rank 1: start all ranks with the same "
        "command, files and versions"
    ]
    assert lines_of(second[2]) == []
    other = tmp_path / "data"
    shutil.copytree(walk / "data", other)
    assert list(tmp_path.iterdir()) == [other]


def test_a_rank_that_never_comes_and_a_port_in_use(walk: Path, tmp_path: Path) -> None:
    args = rl_args(walk, tmp_path / "run")
    [(code, _, err)] = ended([start(0, free_port(), "-m", "recast", *args)])
    assert code == 2
    [line] = lines_of(err)
    assert "1/2 clients joined" in line
    assert "check both, that the port is free and that all 2 were started" in line
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        [(code, _, err)] = ended([start(0, port, "-m", "recast", *args)])
    assert code == 2
    [line] = lines_of(err)
    assert f"localhost:{port}" in line
    assert "check both, that the port is free and" in line
    assert list(tmp_path.iterdir()) == []


def test_a_worker_of_ray_that_is_killed(walk: Path, tmp_path: Path, straight: Path) -> None:
    pytest.importorskip("ray")
    args = rl_args(walk, tmp_path / "run", *STEPS, "--launcher=ray", "--workers=1:2")
    surroundings = {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", "MARK": str(tmp_path)}
    surroundings["PYTHONPATH"] = os.pathsep.join(sys.path)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "recast", *map(str, args)],
            env=os.environ | surroundings,
            stdout=log,
            stderr=log,
        )
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 12:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        workers = [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_mine(pid)
        ]
        os.kill(max(workers), signal.SIGKILL)
        assert process.wait(timeout=600) == 0, (tmp_path / "log").read_text()
    assert len(workers) == 2
    mine, its = weights(tmp_path / "run"), weights(straight)
    assert all(torch.allclose(mine[name], its[name], rtol=0, atol=1e-6) for name in mine)
    assert len(metric_lines(tmp_path / "run")) == len(metric_lines(straight))

    def names(run: Path) -> set[str]:
        return {file.name for file in run.iterdir()}

    assert names(tmp_path / "run") == names(straight)


def is_mine(pid: int) -> bool:
    """Whether a process is a worker of this test's."""
    try:
        of = Path("/proc") / str(pid)
        is_worker = of.joinpath("cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
        return is_worker and b"test_a_worker_of_ray" in of.joinpath("environ").read_bytes()
    except OSError:
        return False
