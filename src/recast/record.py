"""What a cell leaves on disk: its folder in, what stands there of it and its record out.

A cell that has ended well leaves `cell.json` in its folder: its settings, the digest of every file
it read, and what it returned. While it runs, `.NAME.begun` stands beside its folder: that folder,
and no other, may be emptied and begun anew.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import Any

from recast.cell import Cell, default_of
from recast.run.files import CHECKPOINTS, remove_whole, staged_file
from recast.run.reading import read_json, reading
from recast.types import RecastError

MARK = "cell.json"
"""What a finished cell leaves in its folder."""

WRITTEN = (
    *("config.yaml", "env.json", "metrics.jsonl", "tb", "rollouts", "policy", MARK),
    *(CHECKPOINTS, "diverged.jsonl"),
    *("interactions.parquet", "users.parquet", "items.parquet", "data.json"),
    *("catalog.parquet", "sid.json", "card.json", "embeddings.safetensors"),
    *("rows.parquet", "eval.json", "drift.json", ".*.partial"),
    *("popularity", "item_knn", "sasrec", "catalog", "baselines.json"),
)
"""What verbs write into their folders; whatever else lies there is not ours to remove."""

Record = dict[str, Any]
"""What `cell.json` holds."""


def refuse_foreign(folder: Path) -> None:
    """Raise `RecastError` when an unfinished cell's folder holds what no verb writes."""
    for entry in folder.iterdir() if folder.exists() else ():
        if not any(fnmatch(entry.name, written) for written in WRITTEN):
            raise RecastError(
                f"{folder} was begun but not finished, and holds {entry.name}, which is not the "
                "cell's: move it elsewhere, then the cell begins anew"
            )


def empty(folder: Path) -> None:
    """Remove what an interrupted cell left, its temporary names beside the folder included."""
    refuse_foreign(folder)
    left = list(folder.iterdir()) if folder.exists() else []
    for path in [*left, *folder.parent.glob(f".{escape(folder.name)}.*.partial")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def read_record(cell: Cell) -> Record:
    """What a finished cell left. Raises `RecastError` where that is damaged."""
    file = mark_of(cell)
    with reading(file, f"remove {cell.folder} to run its cell again"):
        record = read_json(file, dict)
        kinds = {"settings": dict, "reads": dict, "returned": dict, "threads": int}
        for key, kind in kinds.items():
            if not isinstance(record[key], kind):
                raise ValueError(f"{key} is {record[key]!r}")
        if not all(isinstance(value, int | float) for value in record["returned"].values()):
            raise ValueError("returned is not all numbers")
        return dict(record)


def read_begun(file: Path) -> Record:
    """What a cell noted when it began; nothing where that is damaged."""
    with suppress(OSError, ValueError):
        record: Record = read_json(file, dict)
        return record
    return {}


def can_go_on(cell: Cell, then: Record, now: Record) -> bool:
    """Whether what is in a cell's folder is of the same cell, and can be gone on with."""
    is_same = all(then.get(key) == now[key] for key in ("settings", "reads"))
    is_same = is_same and "metrics_bytes" in then
    return is_same and any((cell.folder / CHECKPOINTS).glob("step-*"))


def write_record(file: Path, record: Record) -> None:
    """Whole or not at all."""
    with staged_file(file) as stage:
        stage.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def mark_of(cell: Cell) -> Path:
    """The file that says that it has ended well."""
    return cell.folder / MARK


def begun_of(cell: Cell) -> Path:
    """The file that says that it has begun."""
    return cell.folder.with_name(f".{cell.folder.name}.begun")


def tidy(cell: Cell) -> None:
    """Remove what only an unfinished cell needs."""
    for kept in list(cell.folder.rglob(CHECKPOINTS)):
        remove_whole(kept)
    begun_of(cell).unlink(missing_ok=True)


def leave(cell: Cell) -> None:
    """Forget a cell that has written nothing."""
    if not cell.folder.exists() or not any(cell.folder.iterdir()):
        begun_of(cell).unlink(missing_ok=True)


def refuse_other(cell: Cell, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `RecastError` for a finished cell that had other settings."""
    # A setting that did not exist then was at its default.
    old = {key: default_of(cell, key) for key in now} | then
    changed = [key for key in old | now if old[key] != now.get(key, ...)]
    if changed:
        was, is_now = (
            ", ".join(f"{key} {_shown(values.get(key, ...))}" for key in changed[:3])
            for values in (old, now)
        )
        raise RecastError(
            f"{cell.folder} is finished with {was}; this list has {is_now}: choose another "
            "output, or remove that folder to run its cell again"
        )


def refuse_changed(cell: Cell, then: dict[str, Any], now: dict[str, dict[str, str]]) -> None:
    """Raise `RecastError` for a finished cell that read other files."""
    for key, read in now.items():
        if key not in then or then[key]["sha256"] != read["sha256"]:
            raise RecastError(
                f"{cell.folder} is finished with another content of {key} ({read['path']}): choose "
                "another output, or remove that folder to run its cell again"
            )


def _shown(value: Any) -> str:
    return "unset" if value is ... else json.dumps(value)
