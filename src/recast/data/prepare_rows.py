"""Rows in, a data folder out: what `recast prepare --rows` does, whatever wrote the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import polars as pl
import torch

from recast.config import PrepareConfig
from recast.config.check import refuse_set
from recast.data import minionerec, openonerec
from recast.data.columns import named
from recast.data.folder import ROWS, save_facts
from recast.data.plain_rows import read_plain
from recast.data.row_facts import count_items, count_rows
from recast.data.row_tables import SUFFIXES, RowTables, files_under, split_of
from recast.data.rows import SCHEMA, Rows, load_rows
from recast.draws import uniforms
from recast.run.files import staged_folder
from recast.run.fingerprint import sha256_of
from recast.run.reading import kind_of
from recast.types import RecastError

_VALID_FRAC = 0.05
"""Of the train rows' users, where nobody has published validation rows."""

_KNOWN = (
    "a file for each split (train, valid, test; .parquet, .csv or .jsonl), MiniOneRec or ReRe "
    "(info/*.txt, *.index.json and CSVs), OpenOneRec or RecIF-Bench (*_pid2sid.parquet and rows)"
)
_COLUMNS = (
    *("user", "item", "time", "items", "items_id", "text", "category"),
    *("prompt", "targets", "seen", "task", "split_column"),
)


def prepare_rows(config: PrepareConfig) -> Rows:
    """Read rows, divide the train rows if asked, write `config.output` and load it.

    Raises `RecastError` for bad input; nothing is left of the folder then.
    """
    tables = read_rows(config)
    exclude_seen = tables.has_seen if config.exclude_seen is None else config.exclude_seen
    has_valid = "valid" in tables.splits or "train" not in tables.splits
    valid_frac = (
        (0.0 if has_valid else _VALID_FRAC) if config.valid_frac is None else config.valid_frac
    )
    is_own = config.valid_frac is not None
    config = replace(config, valid_frac=valid_frac)
    writer = _Writer(tables, config, exclude_seen=exclude_seen)
    with staged_folder(config.output) as stage:
        parts = stage / "parts"
        parts.mkdir()
        for number, batch in enumerate(tables.batches()):
            writer.convert(batch).write_parquet(parts / f"{number:09}.parquet")
        rows = pl.scan_parquet(sorted(parts.iterdir()), glob=False)
        if valid_frac and not is_own:
            rows = _with_valid(rows, config.seed, tables.notes)
        rows.sink_parquet(stage / ROWS)
        rmtree(parts)
        pl.DataFrame({"user_id": list(writer.users)}).write_parquet(stage / "users.parquet")
        tables.items.write_parquet(stage / "items.parquet")
        facts = {
            "kind": "rows",
            "source": config.rows,
            "found": tables.kind,
            "sha256": [sha256_of(file) for file in tables.files],
            "split_name": _split_name(config),
            "exclude_seen": exclude_seen,
            "seed": config.seed,
            "users": len(writer.users),
            "items": len(tables.items),
            "domains": tables.items["domain"].unique(maintain_order=True).to_list(),
            "tasks": tables.tasks,
            "sid_names": tables.sid_names,
            **count_rows(stage / ROWS, tables, config, len(writer.users)),
            "item_counts": count_items(tables.items),
            "notes": tables.notes,
            "dropped": +tables.dropped,
        }
        save_facts(config, stage, facts)
    return load_rows(config.output)


def _with_valid(rows: pl.LazyFrame, seed: int, notes: list[str]) -> pl.LazyFrame:
    """Of few users the default part can be nobody: then the one who is drawn first is kept."""
    pairs = rows.select("user", "split").unique().collect()
    users = pairs.filter(pl.col("split") == "train")["user"].sort()
    if "valid" in pairs["split"] or len(users) < 2:
        return rows
    draw = uniforms(seed, 0, users.cast(pl.Int64).to_torch(), "rows", 1)[:, 0]
    one = users[int(draw.argmin())]
    notes.append("valid_frac, unset, draws nobody of so few train users: valid is one of them")
    is_his = (pl.col("user") == one) & (pl.col("split") == "train")
    valid = pl.lit("valid", SCHEMA["split"])
    return rows.with_columns(split=pl.when(is_his).then(valid).otherwise("split"))


def read_rows(config: PrepareConfig) -> RowTables:
    """The reader that fits a file or a folder. Raises `RecastError` where none does."""
    assert config.rows is not None
    path, name = Path(config.rows), None
    if path.is_file() or (not path.exists() and path.suffix):
        return read_plain(config, {None: config.rows})
    if not path.exists() and path.parent.is_dir():
        path, name = path.parent, path.name  # of several data sets
    if not path.is_dir():
        what = "is a pipe or a device" if path.exists() else "no such file or folder"
        raise RecastError(f"{config.rows}: {what}: check the path")
    every = files_under(path)
    folder = minionerec.find_folder(path, every, name)
    if folder is not None and openonerec.has_maps(every):
        raise RecastError(
            f"{path} holds files of MiniOneRec ({folder.index or folder.info}) and of OpenOneRec "
            "(*_pid2sid.parquet): give a folder of one of them"
        )
    if folder is not None:
        _refuse_columns(config)
        return minionerec.read_folder(folder)
    if name is not None:
        raise RecastError(f"{config.rows}: no such file, folder or data set: check the path")
    if openonerec.has_maps(every):
        _refuse_columns(config)
        return openonerec.read_folder(path, every, config.seed)
    files: dict[str | None, str] = {}
    for file in sorted(path.iterdir()):
        split = split_of(file.stem)
        if split is None or file.suffix.lower() not in SUFFIXES:
            continue
        if split in files:
            raise RecastError(f"{files[split]} and {file} are both {split}: remove one of them")
        files[split] = str(file)
    if not files:
        found = [named(str(file.relative_to(path))) for file in every[:5]]
        some = ", ".join(found) + (", ..." if len(every) > 5 else "")
        holds = f"holds {len(every):,} files ({some})" if every else "is empty"
        raise RecastError(f"{path}{kind_of(path)} {holds}, no rows that are known: give {_KNOWN}")
    tables = read_plain(config, files)
    read = {file.resolve() for file in tables.files}
    other = [named(str(file.relative_to(path))) for file in every if _might_be_rows(file, read)]
    if other:
        some = ", ".join(other[:5]) + (", ..." if len(other) > 5 else "")
        tables.notes.append(f"left out, called by no split: {len(other):,} files ({some})")
    return tables


def _might_be_rows(file: Path, read: set[Path]) -> bool:
    is_hidden = file.name.startswith(".")
    return file.suffix.lower() in SUFFIXES and not is_hidden and file.resolve() not in read


def _refuse_columns(config: PrepareConfig) -> None:
    remedy = f"the format of {config.rows} is known by its files, leave it out"
    refuse_set(config, _COLUMNS, remedy)


class _Writer:
    """Batches of a reader in, those of `rows.parquet` out: users as numbers, targets that can be
    asked for, splits as they were asked for."""

    def __init__(self, tables: RowTables, config: PrepareConfig, *, exclude_seen: bool) -> None:
        self.tables, self.config, self.exclude_seen = tables, config, exclude_seen
        self.dropped, self.users = tables.dropped, dict[str, int]()

    def convert(self, batch: pl.DataFrame) -> pl.DataFrame:
        batch = self._exclude(self._distinct(batch))
        is_empty = batch["prompt"].is_null() & (batch["history"].list.len() == 0)
        self.dropped["rows without a history"] += int(is_empty.sum())
        batch = batch.filter(~is_empty)
        is_lost = batch["targets"].list.len() == 0
        self.dropped["rows without a target"] += int(is_lost.sum())
        batch = batch.filter(~is_lost)
        users = np.array([self.users.setdefault(u, len(self.users)) for u in batch["user"]], int)
        batch = batch.with_columns(user=pl.Series(users, dtype=pl.Int64))
        return batch.with_columns(self._splits(batch["split"], users)).select(
            pl.col(name).cast(kind) for name, kind in SCHEMA.items()
        )

    def _splits(self, splits: pl.Series, users: np.ndarray) -> pl.Series:
        """A user's train rows go to `valid` or `rl` together."""
        draw = uniforms(self.config.seed, 0, torch.from_numpy(users), "rows", 1)[:, 0].numpy()
        valid = self.config.valid_frac or 0.0
        rl = valid + (self.config.rl_frac or 0.0)
        part = np.where(draw < valid, "valid", np.where(draw < rl, "rl", "train"))
        is_train = (splits == "train").to_numpy()
        return pl.Series("split", np.where(is_train, part, splits.to_numpy()), dtype=pl.String)

    def _distinct(self, batch: pl.DataFrame) -> pl.DataFrame:
        """A target that a row names again is one target, at its first place."""
        lists = batch["targets"]
        once = lists.list.unique(maintain_order=True)
        num_repeats = int((lists.list.len() - once.list.len()).sum())
        self.dropped["targets that their row names twice"] += num_repeats
        return batch.with_columns(once)

    def _exclude(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Seen items of rows that have any; no target is one of them."""
        empty = pl.lit([], dtype=SCHEMA["seen"]).alias("seen")
        if not self.exclude_seen:
            return batch.with_columns(empty)
        if not self.tables.has_seen:
            if batch["prompt"].null_count() < len(batch):
                raise RecastError(
                    f"exclude_seen is true: {self.config.rows} does not say which items a row has "
                    "seen, give a column seen or leave it out"
                )
            batch = batch.with_columns(seen=pl.col("history"))
        rows = batch.with_row_index("row")
        long = rows.select("row", "targets").explode("targets").drop_nulls()
        seen = rows.select("row", targets="seen").explode("targets").drop_nulls()
        kept = long.join(seen, on=["row", "targets"], how="anti", maintain_order="left")
        self.dropped["targets that their row has seen (exclude_seen)"] += len(long) - len(kept)
        kept = kept.group_by("row", maintain_order=True).agg("targets")
        rows = rows.drop("targets").join(kept, on="row", how="left", maintain_order="left")
        lists = pl.col("targets").fill_null(pl.lit([], dtype=SCHEMA["targets"]))
        return rows.with_columns(lists).drop("row")


def _split_name(config: PrepareConfig) -> str:
    parts = {"valid": config.valid_frac, "rl": config.rl_frac}
    drawn = [f"{name} {part:.0%}" for name, part in parts.items() if part]
    return "as published" + (f", of the train users {', '.join(drawn)}" if drawn else "")
