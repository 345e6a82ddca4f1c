"""RecBole's atomic files: NAME/NAME.inter and NAME/NAME.item, tab-separated with typed names.

Source: https://recbole.io/docs/user_guide/data/atomic_files.html. All events are in one file, in
the order of the folder; RecBole splits them itself. `recast prepare` reads them back.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recast.data.folder import EVENTS
from recast.export.source import Source
from recast.types import RecastError


def write_recbole(source: Source, folder: Path) -> None:
    """Raises `RecastError` for an id that no field of a tab-separated file can hold."""
    home = folder / source.name
    home.mkdir()
    for kind, ids in (("user", source.user_ids), ("item", source.item_ids)):
        for id in ids:
            if any(c in id for c in "\t\n\r") or id.startswith('"'):
                raise RecastError(
                    f"{source.folder} has the {kind} id {id!r}: RecBole's fields hold no tab, no "
                    "line break and no quote in front: rename it, and prepare the data again"
                )
    events = pl.scan_parquet((source.folder / EVENTS).absolute(), glob=False)
    for kind, ids in (("user", source.user_ids), ("item", source.item_ids)):
        table = pl.LazyFrame({f"{kind}_id:token": ids}).with_row_index(kind)
        table = table.with_columns(pl.col(kind).cast(pl.Int32))
        events = events.join(table, on=kind, how="left", maintain_order="left")
    events = events.select(
        "user_id:token", "item_id:token", pl.col("time").alias("timestamp:float")
    )
    events.sink_csv(home / f"{source.name}.inter", separator="\t")
    texts = pl.DataFrame({"item_id:token": source.item_ids, "text:token_seq": source.texts})
    texts.write_csv(home / f"{source.name}.item", separator="\t")
