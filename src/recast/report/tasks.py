"""Evaluations of several tasks side by side: folders of `recast evaluate` in, a table out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recast.evaluation.disk import read_ranks
from recast.run.reading import read_json, reading
from recast.types import RecastError, require

RECIF = ("item/pass@1", "item/pass@32", "item/recall@32")
"""Columns of ReCast's Table 1 (arXiv 2604.22169)."""


def task_table(folders: Mapping[str, str | Path], metrics: Sequence[str] = RECIF) -> str:
    """In Markdown a line per task and method, the methods in the order of `folders`.

    Raises `RecastError` for a folder that is no evaluation of several tasks, for evaluations of
    other tasks or numbers of rows, and for a metric that one of them does not hold.
    """
    require(bool(folders), "folders", {}, "give a folder of `recast evaluate` for each method")
    found = {method: _tasks_of(folder) for method, folder in folders.items()}
    first = next(iter(found))
    sizes = {task: part["rows"] for task, part in found[first].items()}
    heads = ("task", "rows", "method", *(name.split("/")[-1] for name in metrics))
    lines = [f"| {' | '.join(heads)} |", "| --- | ---: | --- |" + " ---: |" * len(metrics)]
    for method, tasks in found.items():
        others = {task: part["rows"] for task, part in tasks.items()}
        if others != sizes:
            raise RecastError(
                f"{method} was judged on {others}, {first} on {sizes}: evaluate both on the same "
                "data and split"
            )
    for task, rows in sizes.items():
        for place, (method, tasks) in enumerate(found.items()):
            cells = [task, f"{rows:,}"] if place == 0 else ["", ""]
            cells += [method, *(_value(tasks[task], name, folders[method]) for name in metrics)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _tasks_of(folder: str | Path) -> dict[str, Any]:
    read_ranks(folder)  # whole, and of this or an earlier release
    file = Path(folder) / "eval.json"
    with reading(file, "make it again with `recast evaluate`"):
        tasks: dict[str, Any] | None = read_json(file, dict).get("tasks")
    if not tasks:
        raise RecastError(f"{folder} is an evaluation of one task: its eval.json holds the means")
    return tasks


def _value(part: dict[str, Any], name: str, folder: str | Path) -> str:
    if name not in part["metrics"]:
        known = ", ".join(part["metrics"])
        raise RecastError(f"{folder} holds no {name}: evaluate with --at and --levels, or {known}")
    return f"{part['metrics'][name]['value']:.4f}".removeprefix("0")
