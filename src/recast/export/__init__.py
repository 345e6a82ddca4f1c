"""`recast export`: a data folder, and its catalogue, in; the files of another tool out.

`WRITERS` is the table; docs/formats.md has the columns and where they are documented.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recast.config.export import ExportConfig
from recast.data.folder import load_data, load_facts, load_items
from recast.data.rows import has_rows, load_rows
from recast.export.flashrec import write_flashrec
from recast.export.minionerec import write_minionerec
from recast.export.recbole import write_recbole
from recast.export.recsys_examples import write_recsys_examples
from recast.export.source import Source, load_user_ids, name_of
from recast.export.trl import write_trl
from recast.export.verl import write_verl
from recast.items.catalog import load_catalog
from recast.policy.tasks import check_catalog
from recast.run.doors import enter
from recast.run.files import staged_folder
from recast.types import RecastError

WRITERS: dict[str, Callable[[Source, Path], None]] = {
    "verl": write_verl,
    "trl": write_trl,
    "minionerec": write_minionerec,
    "recbole": write_recbole,
    "recsys_examples": write_recsys_examples,
    "flashrec": write_flashrec,
}


def export_data(config: ExportConfig) -> str:
    """Write `config.output`, whole or not at all; returns what was written, one file a line.

    Raises `RecastError` for a catalogue of other items or without semantic IDs, and for items that
    the format cannot write.
    """
    enter(config, ExportConfig)
    holds_rows = has_rows(config.data)
    if holds_rows and config.format == "recbole":
        raise RecastError(
            f"format is 'recbole', which is made of events, and {config.data} holds rows: choose "
            "another one"
        )
    catalog = None
    if config.catalog is not None:
        catalog = load_catalog(config.catalog)
        check_catalog(config.data, catalog)
        if not catalog.codebook_sizes:
            raise RecastError(
                f"catalog is {config.catalog!r}: its items write texts, no semantic IDs: give a "
                "catalogue of these, or none to verl, trl and recbole, which then write the texts"
            )
    items = load_items(config.data)
    source = Source(
        folder=Path(config.data),
        name=name_of(load_facts(config.data)),
        interactions=None if holds_rows else load_data(config.data),
        given=load_rows(config.data) if holds_rows else None,
        user_ids=load_user_ids(config.data),
        item_ids=items["item_id"].to_list(),
        texts=items["text"].to_list(),
        catalog=catalog,
        window=config.window,
        template=config.template,
    )
    with staged_folder(config.output) as stage:
        WRITERS[config.format](source, stage)
        files = sorted(file for file in stage.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(stage)}  {file.stat().st_size:,} bytes" for file in files]
    return "\n".join(lines)
