"""TRL's conversational prompt-completion rows: one JSON object a line, one file a split.

Source: https://huggingface.co/docs/trl/dataset_formats. `prompt` and `completion` are lists of
messages; `target` holds the indices of the target items, which `recast.integrations.trl` reads.
"""

from __future__ import annotations

import json
from pathlib import Path

from recast.export.source import Source
from recast.types import SPLITS


def write_trl(source: Source, folder: Path) -> None:
    """SPLIT.jsonl for every split that has rows."""
    words = source.words()
    for split in SPLITS:
        for turns in source.turns(split, words):
            with (folder / f"{split}.jsonl").open("a", encoding="utf-8") as file:
                for turn in turns:
                    fields = {
                        "prompt": turn.messages,
                        "completion": [{"role": "assistant", "content": turn.answer}],
                        "target": turn.targets,
                        "user_id": turn.user_id,
                        "item_ids": turn.item_ids,
                    }
                    file.write(json.dumps(fields) + "\n")
