"""Killed and gone on with, in real processes: a short form of `make torture`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_runs_that_are_killed(tmp_path: Path) -> None:
    runs = ["sft", "dapo"]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("torture.py"), "--kills=3", "--runs", *runs],
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("3 kills, ")
    assert last.endswith(" rows lost: 0")
