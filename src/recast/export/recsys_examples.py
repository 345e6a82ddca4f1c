"""NVIDIA recsys-examples, `examples/sid_gr`: sequences in Parquet and the codes of all items.

Source: examples/sid_gr/training/README.md and data/disk_sequence_dataset.py of
github.com/NVIDIA/recsys-examples. An item is its index in the data folder (items.parquet has the
ids), a sequence is a history and, last, its target. The codes are a tensor [levels, items] of
`torch.save`, which that example reads; nothing here ever does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import torch

from recast.export.source import Source, write_parquet
from recast.types import SPLITS


def write_recsys_examples(source: Source, folder: Path) -> None:
    """SPLIT.parquet, item-sid-mapping.pt, items.parquet, and dataset.gin, which names them."""
    assert source.catalog is not None
    source.words()  # every item needs its codes
    for split in SPLITS:
        write_parquet(folder / f"{split}.parquet", _tables(source, split))
    torch.save(source.catalog.codes.long().T.contiguous(), folder / "item-sid-mapping.pt")
    pl.DataFrame({"item_id": source.item_ids}).write_parquet(folder / "items.parquet")
    settings = {
        "dataset_name": source.name,
        "dataset_type_str": "disk_sequence_dataset",
        "max_history_length": source.window,
        "sequence_features_training_data_path": "train.parquet",
        "sequence_features_testing_data_path": "test.parquet",
        "item_to_sid_mapping_path": "item-sid-mapping.pt",
        "num_hierarchies": len(source.catalog.codebook_sizes),
        "codebook_sizes": list(source.catalog.codebook_sizes),
    }
    lines = [f"DatasetArgs.{name} = {value!r}" for name, value in settings.items()]
    (folder / "dataset.gin").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _tables(source: Source, split: str) -> Iterator[pl.DataFrame]:
    for rows in source.rows(split):
        sequences = [[*row.history, row.target] for row in rows]
        columns = {
            "user_id": [row.user for row in rows],
            "sequence_data": sequences,
            "sequence_length": [len(sequence) for sequence in sequences],
        }
        yield pl.DataFrame(columns)
