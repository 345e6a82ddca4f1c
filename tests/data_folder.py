"""Data folders that were edited on purpose: without the hashes that would tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def forget_hashes(folder: Path, name: str = "data.json", /, **changes: Any) -> None:
    """Make it a folder as earlier releases wrote it, with other facts in this file of it."""
    facts = json.loads((folder / name).read_text())
    kept = {key: value for key, value in facts.items() if key not in ("files", "digest")}
    (folder / name).write_text(json.dumps(kept | changes))
