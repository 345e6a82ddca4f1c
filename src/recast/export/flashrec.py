"""FlashRec's file of valid semantic IDs (`--sid-vocab-file`), and whose they are.

Source: docs/configuration.md and python/flashrec/catalog.py of github.com/sohu-mptc/FlashRec: an
object whose keys are codes with commas, such as "60,159,203"; the values are not read. The engine
finds the policy's tokens by their names, which are to be OpenOneRec's, such as <s_a_60>.
"""

from __future__ import annotations

import json
from pathlib import Path

from recast.export.source import Source


def write_flashrec(source: Source, folder: Path) -> None:
    """sid_vocab.json, and sid2items.json with the item ids of every semantic ID."""
    assert source.catalog is not None
    items = dict[str, list[str]]()
    written = zip(source.catalog.codes.tolist(), source.catalog.lengths.tolist(), strict=True)
    for (codes, length), item_id in zip(written, source.item_ids, strict=True):
        if length:
            items.setdefault(",".join(map(str, codes)), []).append(item_id)
    for name, content in (("sid_vocab", dict.fromkeys(items, 1)), ("sid2items", items)):
        (folder / f"{name}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
