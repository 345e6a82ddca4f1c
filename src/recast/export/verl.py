"""verl's Parquet: one file a split, one row a prompt.

Source: https://verl.readthedocs.io/en/latest/preparation/prepare_data.html. `prompt` is a list of
messages, `reward_model.ground_truth` the target as the policy writes it; `extra_info` names the row
(`index`), its user and the ids of its targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recast.export.source import Source, write_parquet
from recast.types import SPLITS


def write_verl(source: Source, folder: Path) -> None:
    """SPLIT.parquet for every split that has rows."""
    words = source.words()
    for split in SPLITS:
        write_parquet(folder / f"{split}.parquet", _tables(source, split, words))


def _tables(source: Source, split: str, words: list[str]) -> Iterator[pl.DataFrame]:
    for turns in source.turns(split, words):
        yield pl.DataFrame(
            [
                {
                    "data_source": source.name,
                    "prompt": turn.messages,
                    "ability": "recommendation",
                    "reward_model": {"style": "rule", "ground_truth": turn.answer},
                    "extra_info": {
                        "split": split,
                        "index": turn.id,
                        "user_id": turn.user_id,
                        "item_ids": turn.item_ids,
                    },
                }
                for turn in turns
            ]
        )
