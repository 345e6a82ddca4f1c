"""A disk that is full, read-only or failing at any one write of a run: one line, nothing lost.

Here a few of the writes of `rl`; with RECAST_TORTURE=1 all of them, of `sft` too.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
from faults import failing
from small_walk import failure, metric_lines, rl_args, same, sft_args, weights

from recast import cli
from recast.run.checkpoint import Checkpoint, read_checkpoints

KINDS = {"sft": sft_args, "rl": rl_args}
FAULTS = [
    (errno.ENOSPC, sys.maxsize, ("metrics.jsonl", ".policy.")),
    (errno.EROFS, sys.maxsize, ("tensors",)),
    (errno.ENOSPC, 0, ("rollouts", "recast.json")),
]
"""What the disk says, how many of the calls behind the first one fail too, and the few."""
IS_WHOLE = os.environ.get("RECAST_TORTURE") == "1"


def args_of(kind: str, walk: Path, run: Path, *more: str) -> list[str]:
    few = ["--steps=2", "--valid_rows=8"] if kind == "rl" else ["--valid_rows=8"]
    return [*map(str, KINDS[kind](walk, run)), *few, "--checkpoint_s=0", *more]


@pytest.fixture(scope="module", params=KINDS if IS_WHOLE else ["rl"])
def straight(
    request: pytest.FixtureRequest, walk: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[str]]:
    """A run that nothing happens to, and its writes."""
    folder = tmp_path_factory.mktemp("straight")
    with failing(folder, 0, sys.maxsize) as disk:
        cli.main(args_of(request.param, walk, folder / "run"))
    return request.param, folder / "run", disk.calls


@pytest.mark.parametrize(("code", "more", "few"), FAULTS)
def test_a_disk_that_fails(
    walk: Path,
    straight: tuple[str, Path, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    more: int,
    few: tuple[str, ...],
) -> None:
    """Its run ends whole, or in one line with its policy elsewhere or to be gone on with."""
    kind, reference, calls = straight
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    places = list(range(len(calls)))
    if not IS_WHOLE:
        places = [next(i for i, call in enumerate(calls) if name in call) for name in few]
    for place in places:
        disk = tmp_path / "disk"
        disk.mkdir()
        with failing(disk, code, place + 1, place + 1 + more):
            line, left = outcome(capsys, args_of(kind, walk, disk / "run"))
        assert left in (0, 2), calls[place]
        assert "bug" not in line
        assert not list(disk.rglob("*.partial"))
        kept = list(read_checkpoints(disk / "run"))
        assert all(isinstance(checkpoint, Checkpoint) for checkpoint in kept)
        for rescued in (tmp_path / "home").iterdir():
            assert f"; the policy is in {rescued}, whole" in line
            assert same(weights(rescued.parent, rescued.name), weights(reference))
            shutil.rmtree(rescued)
        if left:
            goes_on = ["--resume=true"] if (disk / "run" / "checkpoints").is_dir() else []
            assert outcome(capsys, args_of(kind, walk, disk / "run", *goes_on)) == ("", 0)
            steps = [entry["step"] for entry in metric_lines(disk / "run")]
            assert steps == [entry["step"] for entry in metric_lines(reference)]
        assert same(weights(disk / "run"), weights(reference))
        shutil.rmtree(disk)


def outcome(capsys: pytest.CaptureFixture[str], args: list[str]) -> tuple[str, int]:
    """The line of a failure and its code; nothing and 0 for a run that ends well."""
    try:
        return failure(capsys, *args)
    except pytest.fail.Exception:
        return capsys.readouterr().err, 0
