"""Every benchmark at tiny sizes, so that none rots; no threshold, nothing timed is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import MODULES

ROOT = Path(__file__).parents[2]


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_benchmark_yields_rows(module: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = _python("-m", f"benchmarks.{module}", "--smoke", "--json", str(file))
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert rows or (module == "gpu" and not torch.cuda.is_available())
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    for row in rows:
        assert math.isfinite(row["value"])
        assert row["value"] > 0
        assert row["what"]
        assert row["against"]
        assert f"{row['name']}: " in done.stdout


def test_a_smoke_run_of_some_writes_no_results() -> None:
    written = [ROOT / "benchmarks" / name for name in ("results.json", "RESULTS.md", "gpu.json")]
    before = [file.read_bytes() if file.is_file() else None for file in written]
    done = _python("-m", "benchmarks", "--smoke", "rollout")
    assert done.returncode == 0, done.stderr
    assert "rollout: " in done.stdout.splitlines()[-1]
    assert [file.read_bytes() if file.is_file() else None for file in written] == before
