"""Several processes that are killed, lost or told different things: `make cluster-test`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

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


HURRIED = """
from recast import cli
from recast.run import launched

launched._MEET_S = 3
cli.main()
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


def compare(walk: Path, folder: Path, *more: str, count: int = 2) -> list[subprocess.Popen[str]]:
    port = free_port()
    args = ["compare", "--data", walk / "data", "--policy", walk / "sft" / "policy"]
    args += ["--output", folder, "--methods=recast", "--seeds=1", "--lrs=1e-3", "--steps=60"]
    args += ["--group_sizes=4", "--prompts_per_step=4", "--valid_rows=30", *more]
    return [start(rank, port, "-m", "recast", *args, size=count) for rank in range(count)]


def test_what_the_first_rank_refuses_while_the_others_wait(walk: Path, tmp_path: Path) -> None:
    first, second = ended(compare(walk, tmp_path / "out", "--workers=2"))
    assert first[0] == second[0] == 2
    [line] = [line for _, _, err in (first, second) for line in lines_of(err)]
    assert "workers is 2: several ranks run one cell after another" in line
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_that_is_killed_goes_on(walk: Path, tmp_path: Path) -> None:
    """Twice in its second run, of two ranks, then by one; the table is that of one process."""
    both, name, says = tmp_path / "both", "rl/sft_continued/lr_0.001_seed_0", "begins anew"
    for killed, lines in ((1, 12), (0, 30)):
        processes = compare(walk, both)
        metrics = both / name / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < lines:
            assert processes[0].poll() is None
            time.sleep(0.02)
        processes[killed].send_signal(signal.SIGKILL)
        since = time.monotonic()
        codes = ended(processes)
        assert time.monotonic() - since < 60
        assert codes.pop(killed)[0] == -signal.SIGKILL
        [(code, out, err)] = codes
        assert code == 2
        assert "lost another one" in "".join(lines_of(err))
        if killed == 1:  # the first keeps its last step, unless it was in the middle of one
            says = "goes on" if "kept behind optimizer step" in out else says
    [(code, out, _)] = ended(compare(walk, both, "--workers=1", count=1))
    assert code == 0
    assert "rl/recast/lr_0.001_seed_0: finished before, not run again" in out
    assert f"{name}: was begun but not finished, {says}" in out
    assert ended(compare(walk, tmp_path / "one", "--workers=1", count=1))[0][0] == 0
    ours, theirs = (
        json.loads((folder / "results.json").read_text())["methods"]
        for folder in (both, tmp_path / "one")
    )
    for row, of_one in theirs.items():
        assert ours[row]["compared"]["metrics"] == of_one["compared"]["metrics"]


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
    [(code, _, err)] = ended([start(0, free_port(), "-c", HURRIED, *args)])
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


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of this machine without a node, whose processes carry `tmp_path`."""
    ray = pytest.importorskip("ray.cluster_utils", reason="pip install 'recast-rl[ray]'")
    monkeypatch.setenv("MARK", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    nodes = ray.Cluster()
    yield nodes
    nodes.shutdown()


@pytest.mark.parametrize(
    ("cpus", "loss", "sizes"),
    [
        ((2,), "worker", [2, 2]),
        ((1, 1), "node", [2, 1]),
        ((1,), "worker behind a new node", [1, 2]),
    ],
)
def test_ray_goes_on_with_the_workers_that_there_are(
    walk: Path,
    tmp_path: Path,
    straight: Path,
    cluster: Any,
    cpus: tuple[int, ...],
    loss: str,
    sizes: list[int],
) -> None:
    """Nodes of so many cores lose what is said; `sizes` are the workers before and after."""
    nodes = [cluster.add_node(num_cpus=count, include_dashboard=False) for count in cpus]
    folder, log = tmp_path / "run", tmp_path / "log"
    args = rl_args(walk, folder, *STEPS, "--launcher=ray", "--workers=1:2")
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "recast", *map(str, args)],
            env=os.environ | {"RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
        )
    while not any(folder.glob("checkpoints/step-*")):
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    if loss == "node":
        cluster.remove_node(nodes[1], allow_graceful=False)
    else:
        lost = max(worker_pids(tmp_path))
        os.kill(lost, signal.SIGSTOP)
        if "new node" in loss:
            cluster.add_node(num_cpus=1)
            time.sleep(21)  # Ray counts its nodes every 20 s
        os.kill(lost, signal.SIGKILL)
    assert process.wait(timeout=300) == 0, log.read_text()
    said = log.read_text()
    assert list(map(int, re.findall(r"Started training worker group of size (\d)", said))) == sizes
    assert "goes on behind optimizer step" in said
    mine, its = weights(folder), weights(straight)
    if sizes == [2, 2]:
        assert same(mine, its)
    assert all(torch.allclose(mine[name], its[name], rtol=0, atol=1e-6) for name in mine)
    assert len(metric_lines(folder)) == len(metric_lines(straight))
    assert set(os.listdir(folder)) == set(os.listdir(straight))


def worker_pids(mark: Path) -> list[int]:
    """The processes of Ray's workers that carry the mark."""
    found = []
    for of in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended by now
            is_worker = of.joinpath("cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
            if is_worker and str(mark).encode() in of.joinpath("environ").read_bytes():
                found.append(int(of.name))
    return found
