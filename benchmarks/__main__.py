"""All benchmarks, each in a process of its own; writes `results.json` and `RESULTS.md` beside it.

python -m benchmarks                     # everything
python -m benchmarks rollout trie        # these, into the results that are there
python -m benchmarks --smoke             # tiny sizes, writes nothing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.harness import Row
from recast.run.environment import environment

MODULES = (
    "rollout",
    "update",
    "step",
    "lengths",
    "rendered",
    "titles",
    "thoughts",
    "evaluation",
    "trl",
    "trie",
    "semantic_ids",
    "gpu",
)
PACKAGES = ("torch", "transformers", "trl", "faiss-cpu", "numpy")
FOLDER = Path(__file__).parent
RESULTS, GPU = FOLDER / "results.json", FOLDER / "gpu.json"


def main() -> int:
    """Run what was asked for; the exit status is 1 when a benchmark failed, whatever the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("module", nargs="*", choices=["all", *MODULES], default="all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, writes nothing")
    arguments = parser.parse_args()
    whole = "all" in arguments.module
    if not arguments.smoke:
        _check_results()
    found = {name: _run(name, arguments.smoke) for name in (MODULES if whole else arguments.module)}
    failed = [name for name, rows in found.items() if rows is None]
    if not arguments.smoke:
        _write(found, failed, whole=whole)
    rows = [row for rows in found.values() for row in rows or []]
    print(*rows, *(f"{name}: FAILED" for name in failed), sep="\n")
    return 1 if failed else 0


def _check_results() -> None:
    """Leave with one line, before anything is measured, where the results could not be written."""
    for file in (RESULTS, GPU):
        try:
            rows = _read(file)
            rows = rows["rows"] if file == GPU and rows else rows
            assert all(set(row) >= {field.name for field in fields(Row)} for row in rows)
        except (ValueError, TypeError, KeyError, AssertionError):
            sys.exit(f"benchmarks: {file} is damaged: remove it")
    if not os.access(FOLDER, os.W_OK):
        sys.exit(f"benchmarks: {FOLDER} cannot be written to")


def _run(module: str, smoke: bool) -> list[Row] | None:
    """The rows of one benchmark in a fresh process; None when it failed."""
    print(f"== {module}", flush=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{module}", "--json", str(file)]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command + ["--smoke"] * smoke, cwd=FOLDER.parent, env=one_thread, check=False
        )
        print(f"== {module}: {time.perf_counter() - started:.0f} s", flush=True)
        return None if done.returncode else [Row(**row) for row in json.loads(file.read_text())]


def _write(found: dict[str, list[Row] | None], failed: list[str], *, whole: bool) -> None:
    """Replace the rows of the same name, or all of them after a whole run; GPU rows stand apart.

    A run without a GPU has no GPU rows and leaves those of an earlier run as they are.
    """
    here = [row for name, rows in found.items() if name != "gpu" for row in rows or []]
    assert len({row.name for row in here}) == len(here), "two rows have one name"
    results = {} if whole and not failed else {row["name"]: row for row in _read(RESULTS)}
    results |= {row.name: _plain(row) for row in here}
    RESULTS.write_text(json.dumps(list(results.values()), indent=2) + "\n")
    if found.get("gpu"):
        gpu = {"machine": _machine(), "rows": [_plain(row) for row in found["gpu"] or []]}
        GPU.write_text(json.dumps(gpu, indent=2) + "\n")
    (FOLDER / "RESULTS.md").write_text(_page(list(results.values()), failed))


def _plain(row: Row) -> dict[str, Any]:
    return asdict(row) | {"met": row.met}


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else []


def _machine() -> list[str]:
    here = environment()
    cpu = f"{here['cpu']}, {here['cpu_count']} cores, {here['memory_gib']} GiB"
    versions = ", ".join(map(_versioned, PACKAGES))
    return [
        ", ".join([here["date"][:10], *here["gpus"], cpu]),
        f"Python {here['python']}, {versions}",
    ]


def _page(results: list[dict[str, Any]], failed: list[str]) -> str:
    gpu = _read(GPU)
    lines = [
        "# Benchmarks",
        "",
        "`make bench` writes this page and `benchmarks/results.json`. Both sides of a row run in",
        "one process on the same model object, with one torch thread; times are medians of CPU",
        "seconds. Unless a row says otherwise the model is a Qwen3 of hidden 128 x 4 layers with",
        "random weights, in float32. Recast does not compute the last layer's attention over the",
        "prompt, which nobody reads: a pass can be below the floor, which computes it.",
        "",
        *(f"- {line}" for line in _machine()),
        *(f"- `{name}` failed: its rows are missing or old" for name in failed),
        "",
        *_table(results),
        "",
        "## GPU",
        "",
        *(f"- {line}" for line in (gpu["machine"] if gpu else ["Not run: no GPU was at hand."])),
        "",
        *(_table(gpu["rows"]) if gpu else []),
    ]
    return "\n".join(lines) + "\n"


def _table(results: list[dict[str, Any]]) -> list[str]:
    lines = ["| what | against | value | bar | met | details |", "| --- " * 6 + "|"]
    for result in results:
        unit = "" if result["unit"] == "x" else " "
        value, bar = (f"{result[key]:.4g}{unit}{result['unit']}" for key in ("value", "bar"))
        sign = ">=" if result["at_least"] else "<="
        met = "yes" if result["met"] else "**missed**"
        cells = (result["what"], result["against"], value, f"{sign} {bar}", met, result["details"])
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _versioned(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


if __name__ == "__main__":
    sys.exit(main())
