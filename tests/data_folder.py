"""Data folders that were edited on purpose: without the hashes that would tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def forget_hashes(folder: Path, **changes: Any) -> None:
    """Make it a folder as earlier releases wrote it, with other facts in `data.json`."""
    facts = json.loads((folder / "data.json").read_text())
    kept = {key: value for key, value in facts.items() if key not in ("files", "digest")}
    (folder / "data.json").write_text(json.dumps(kept | changes))
