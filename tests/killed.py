"""A command that is killed while it works, and the same command again.

It ends by SIGKILL from its own hand, so that a test knows where it was: `between` two parts, or
`within` the writing of its third.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recast import cli
from recast.evaluation import rank
from recast.items import encoder
from recast.run import parts

SMALL = ((rank, "_MAX_BATCH", 4), (encoder, "_BATCH_TEXTS", 4))
"""Batches."""

_SCRIPT = """
import os, signal, sys
from importlib import import_module
from recast import cli
from recast.run import checkpoint, parts

where, *args = sys.argv[1:]
for name, count in (("evaluation.rank:_MAX_BATCH", 4), ("items.encoder:_BATCH_TEXTS", 4)):
    module, _, setting = name.partition(":")
    setattr(import_module(f"recast.{module}"), setting, count)
parts._EVERY_S, parts._MOST = 0.0, 1e9
owner, name = {"between": (parts, "write_whole"), "within": (checkpoint, "save_tensors")}[where]
work, calls = getattr(owner, name), []

def until_killed(*given):
    work(*given)
    calls.append(given)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, until_killed)
cli.main(args)
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def check_goes_on(
    args: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
    line: str,
) -> None:
    """`args` make the folder `out` with the same bytes, killed or not; `line` is said."""
    for module, name, count in SMALL:
        monkeypatch.setattr(module, name, count)
    command = [*map(str, args), "--output", "out"]
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    cli.main(command)
    monkeypatch.chdir(tmp_path / "killed")
    killed = subprocess.run([sys.executable, "-c", _SCRIPT, where, *command], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [entry.name for entry in Path().iterdir()] == [".out.parts"]
    monkeypatch.setattr(parts, "_EVERY_S", 0.0)
    capsys.readouterr()
    cli.main(command)
    assert line in capsys.readouterr().out.splitlines()
    assert files_of(Path("out")) == files_of(tmp_path / "straight" / "out")
    assert [entry.name for entry in Path().iterdir()] == ["out"]
