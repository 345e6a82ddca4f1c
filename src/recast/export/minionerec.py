"""MiniOneRec's files, which ReRe reads as well: CSVs, info, index and texts of the items.

Source: the files of github.com/AkaliKong/MiniOneRec, data/Amazon. An item's id is its index in the
data folder; `item_id` in NAME.item.json is the id that it had. The training file holds the rows of
`train` and of `rl`: MiniOneRec's RL draws from the same.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from recast.export.source import Source

_COLUMNS = (
    *("user_id", "history_item_title", "item_title"),
    *("history_item_id", "item_id", "history_item_sid", "item_sid"),
)
_SPLITS = {"train": ("train", "rl"), "valid": ("valid",), "test": ("test",)}


def write_minionerec(source: Source, folder: Path) -> None:
    """{train,valid,test}/NAME.csv, info/NAME.txt, index/NAME.index.json and NAME.item.json."""
    assert source.catalog is not None
    source.words()  # every item needs its codes
    titles, name = source.texts, source.name
    names = source.catalog.names
    codes = [
        [names.name(*part) for part in enumerate(item)] for item in source.catalog.codes.tolist()
    ]
    sids = ["".join(item) for item in codes]
    for split, parts in _SPLITS.items():
        (folder / split).mkdir()
        with (folder / split / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_COLUMNS)
            for chunk in source.rows(*parts):
                for row in chunk:
                    past = row.history
                    title, sid = titles[row.target], sids[row.target]
                    past_titles, past_sids = ([words[i] for i in past] for words in (titles, sids))
                    user = source.user_ids[row.user]
                    rows.writerow((user, past_titles, title, past, row.target, past_sids, sid))
    (folder / "info").mkdir()
    with (folder / "info" / f"{name}.txt").open("w", encoding="utf-8") as file:
        for index, (sid, title) in enumerate(zip(sids, titles, strict=True)):
            file.write(f"{sid}\t{title}\t{index}\n")
    (folder / "index").mkdir()
    _write_json(folder / "index" / f"{name}.index.json", dict(enumerate(codes)))
    items = zip(source.item_ids, titles, strict=True)
    texts = {
        str(index): {"title": title, "description": "", "item_id": item_id}
        for index, (item_id, title) in enumerate(items)
    }
    _write_json(folder / "index" / f"{name}.item.json", texts)


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
