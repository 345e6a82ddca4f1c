"""Every benchmark at tiny sizes, so that none rots; no threshold, nothing timed is asserted."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from checked import unchecked

from benchmarks.__main__ import MODULES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", MODULES)
def test_a_benchmark_yields_rows(module: str) -> None:
    with unchecked():  # as it is measured
        rows = import_module(f"benchmarks.{module}").run(True)
    assert rows or (module == "gpu" and not torch.cuda.is_available())
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    for row in rows:
        assert math.isfinite(row.value)
        assert row.value > 0
        assert row.what
        assert row.against


def test_a_smoke_run_of_some_writes_no_results() -> None:
    written = [ROOT / "benchmarks" / name for name in ("results.json", "RESULTS.md", "gpu.json")]
    before = [file.read_bytes() if file.is_file() else None for file in written]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "trie"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "== trie: " in done.stdout
    assert [file.read_bytes() if file.is_file() else None for file in written] == before
