"""From a data folder to the files of other tools: `export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recast.config.check import check_settings, within
from recast.errors import require

ExportFormat = Literal["verl", "trl", "minionerec", "recbole", "recsys_examples", "flashrec"]

_SIDS = ("minionerec", "recsys_examples", "flashrec")
"""Formats of semantic IDs, which a catalogue holds."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`recast export`: a data folder in, the files of another tool out."""

    data: str
    """Folder made by `recast prepare`."""
    output: str
    """Folder to create."""
    format: ExportFormat
    """Whose files: verl, trl, minionerec, recbole, recsys_examples (NVIDIA's) or flashrec."""
    catalog: str | None = None
    """Folder made by `recast tokenize`: items are written by their semantic IDs. Unset: by their
    texts, where the format has any."""
    window: int = 20
    """Latest items of a history that a row holds."""
    template: str = "Items that a user chose, the oldest first: {history}\nThe next item is:"
    """For verl and trl: what the user says; `{history}` stands for the items, with commas."""

    def __post_init__(self) -> None:
        check_settings(self)
        within(self, 1, 100_000, "window")
        need = "these are files of semantic IDs, make them with `recast tokenize`"
        require(self.catalog is not None or self.format not in _SIDS, "catalog", None, need)
        remedy = "recbole has no place for semantic IDs, leave it out"
        require(self.format != "recbole" or self.catalog is None, "catalog", self.catalog, remedy)
        remedy = "write {history} in it, once"
        require(self.template.count("{history}") == 1, "template", self.template, remedy)
