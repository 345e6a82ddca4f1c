"""The folders of MiniOneRec (2510.24431) and ReRe (2510.12211): CSV of histories in, rows out.

`{train,valid,test}/NAME*.csv` (`user_id`, `history_item_id`, `item_id`; ReRe also `timestamp`),
`info/NAME*.txt` (TSV without a header: title and item id, of MiniOneRec the SID before them) and,
of MiniOneRec, `index/NAME.index.json` and `NAME.item.json`. The same files may lie in one folder,
with the split in their names. Other columns repeat what these say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from recast.data.columns import named
from recast.data.delimited import read_header
from recast.data.ids import read_ids
from recast.data.messages import is_whole
from recast.data.row_cells import read_list
from recast.data.row_tables import ITEM_SCHEMA, RowTables, make_batch, split_of, where
from recast.data.tables import read_columns, readable, refuse_swallowed
from recast.run.reading import read_json, reason_of
from recast.types import SPLITS, RecastError

_COLUMNS = {"user": "user_id", "text history": "history_item_id", "item": "item_id"}
_NAME = re.compile(r"<([a-z])_(\d{1,9})>", re.ASCII)
_INDEX = ".index.json"
_MARKS = {"history_item_id", "history_item_title", "history_item_sid"}
"""Columns of these CSVs and of no other rows."""
_BATCH = 50_000
_REMEDY = "use the files as they were published"


@dataclass(frozen=True)
class Folder:
    """The files of one data set."""

    name: str
    rows: dict[str, Path]
    """By split."""
    info: Path | None
    index: Path | None
    texts: Path | None


class _Known(NamedTuple):
    """Items by id: their numbers and SIDs, and the file that says so."""

    numbers: dict[str, int]
    sids: dict[str, list[int]]
    source: str


def find_folder(path: Path, files: list[Path], name: str | None = None) -> Folder | None:
    """What the files of a folder are, if it is one of these; `name` chooses one of several data
    sets.

    Raises `RecastError` for several of them and no `name`, and for two files of one split.
    """
    indices = {f.name.removesuffix(_INDEX): f for f in files if f.name.endswith(_INDEX)}
    infos = {
        re.sub(r"[._-]?info$", "", file.stem): file
        for file in files
        if file.suffix == ".txt"
        and (file.parent.name == "info" or re.search(r".[._-]info$", file.stem))
    }
    every = sorted(indices or infos)
    names = every if name is None else [own for own in every if own == name]
    if len(names) > 1:
        raise RecastError(
            f"{path} holds {len(names)} data sets, {', '.join(names)[:200]}: give one as "
            f"{path / names[0]}"
        )
    for own in names:
        rows: dict[str, Path] = {}
        for file in files:
            words = [file.parent.name, *re.split(r"[._-]", file.stem)]
            split = next((found for word in words if (found := split_of(word))), None)
            if file.suffix.lower() == ".csv" and split and _is_of(file.stem, own, every):
                if split in rows:
                    raise RecastError(
                        f"{rows[split]} and {file} are both {split}: remove one of them"
                    )
                rows[split] = file
        if any(_MARKS & set(_header(str(file))) for file in rows.values()):
            rows = {split: rows[split] for split in SPLITS if split in rows}
            info = next((file for key, file in infos.items() if _is_of(key, own, every)), None)
            texts = next((file for file in files if file.name == f"{own}.item.json"), None)
            return Folder(own, rows, info, indices.get(own), texts)
    return None


def _header(file: str) -> list[str]:
    with readable(file):
        return read_header(file)


def _is_of(stem: str, name: str, names: list[str]) -> bool:
    """Whether a file belongs to a data set: it is called so, or so and more, where no longer name
    fits it better; a file called by its split alone belongs to the only one."""
    if not stem.startswith(name):
        return len(names) == 1
    return not any(stem.startswith(other) and len(other) > len(name) for other in names)


def read_folder(folder: Folder) -> RowTables:
    """Raises `RecastError` for files that contradict each other."""
    titles, info_sids = _info(folder.info) if folder.info else ({}, {})
    sids = _index(folder.index) if folder.index else info_sids
    texts = {**titles, **(_texts(folder.texts) if folder.texts else {})}
    ids = sorted(sids.keys() | texts.keys(), key=int)
    index = {id: number for number, id in enumerate(ids)}
    known = _Known(index, sids, str(folder.index or folder.info))
    files = [*folder.rows.values(), folder.info, folder.index, folder.texts]
    items = pl.DataFrame(
        {
            "item_id": ids,
            "text": [texts.get(id, "") for id in ids],
            "domain": ["items"] * len(ids),
            "sid": [sids.get(id) for id in ids],
        },
        schema=ITEM_SCHEMA,
    )
    kind = "MiniOneRec" if sids else "ReRe"
    return RowTables(
        batches=lambda: chain.from_iterable(
            _batches(str(file), split, known) for split, file in folder.rows.items()
        ),
        items=items,
        splits=frozenset(folder.rows),
        files=[file for file in files if file],
        kind=f"{kind}, data set {folder.name}",
        sid_names={"pattern": "<{level}_{code}>", "begin": "", "end": ""} if sids else None,
        notes=[f"{split}: {file}" for split, file in folder.rows.items()],
    )


def _batches(file: str, split: str, known: _Known) -> Iterator[pl.DataFrame]:
    present = _header(file)
    for column in _COLUMNS.values():
        if column not in present:
            raise RecastError(f"{file} has no column {column!r} (it has {present}): {_REMEDY}")
    extra = {"time": "timestamp"} if "timestamp" in present else {}
    extra |= {"text sid": "item_sid"} if known.sids and "item_sid" in present else {}
    raw, suspects = read_columns(file, _COLUMNS | extra)
    refuse_swallowed(suspects, file, pl.Series(list(known.numbers), dtype=pl.String))
    if raw.is_empty():
        raise RecastError(f"{file} holds no row: give at least one, or remove the file")
    raw = raw.with_columns(
        read_ids(raw["user"], file, _COLUMNS["user"]), read_ids(raw["item"], file, _COLUMNS["item"])
    )
    for start in range(0, len(raw), _BATCH):
        cells = enumerate(raw[start : start + _BATCH].iter_rows(named=True), start)
        yield make_batch({"split": split} | _row(row, file, number, known) for number, row in cells)


def _row(cells: dict[str, Any], file: str, number: int, known: _Known) -> dict[str, Any]:
    history = read_list(cells["text history"] or "", where(file, number, "history_item_id"))
    target = cells["item"]
    for id, column in [*((id, "history_item_id") for id in history), (target, "item_id")]:
        if id not in known.numbers:
            raise RecastError(
                f"{where(file, number, column)}: the item {named(id)} is not in {known.source}: "
                f"{_REMEDY}"
            )
    if (text := cells.get("text sid")) is not None:
        written = [int(code) for _, code in _NAME.findall(text)]
        if written != known.sids.get(target):
            raise RecastError(
                f"{where(file, number, 'item_sid')} is {named(text)}, in {known.source} the item "
                f"{target} has {known.sids.get(target)}: {_REMEDY}, all of one version"
            )
    time = cells.get("time")
    if time is not None and not re.fullmatch(r"-?\d{1,18}", time.strip()):
        place = where(file, number, "timestamp")
        raise RecastError(f"{place} is {named(time)}, no whole number: {_REMEDY}")
    return {
        "user": cells["user"],
        "time": None if time is None else int(time),
        "history": [known.numbers[id] for id in history],
        "targets": [known.numbers[target]],
    }


def _info(file: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Titles by item id, and SIDs where the lines have three fields."""
    titles, sids = dict[str, str](), dict[str, list[int]]()
    for number, line in enumerate(_lines(file)):
        fields = line.split("\t")
        place = f"{file}, line {number + 1}"
        if len(fields) not in (2, 3) or not re.fullmatch(r"\d{1,18}", fields[-1].strip()):
            raise RecastError(
                f"{place} is {named(line)}, no title and item id behind a tab: {_REMEDY}"
            )
        id = str(int(fields[-1]))
        if id in titles:
            raise RecastError(f"{place}: the item {id} is there twice: {_REMEDY}")
        titles[id] = " ".join(fields[-2].split())
        if len(fields) == 3:
            sids[id] = _codes(re.findall(r"<[^<>]*>", fields[0]), f"{place}: the item {id}")
    return titles, _alike(sids, file)


def _lines(file: Path) -> list[str]:
    try:
        # Titles may hold what else Python takes for the end of a line.
        lines = file.read_text(encoding="utf-8").split("\n")
        return lines[:-1] if lines[-1] == "" else lines
    except (OSError, ValueError) as error:
        raise RecastError(f"{file} cannot be read ({reason_of(error)}): {_REMEDY}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(file, dict)
    except (OSError, ValueError, RecursionError) as error:
        raise RecastError(f"{file} cannot be read ({reason_of(error)}): {_REMEDY}") from error
    for key in content:
        if not re.fullmatch(r"0|[1-9]\d{0,17}", key):
            raise RecastError(f"{file}: the key {named(key)} is no item id, a number: {_REMEDY}")
    return content


def _index(file: Path) -> dict[str, list[int]]:
    found = {id: _codes(names, f"{file}: the item {id}") for id, names in _json(file).items()}
    if not found:
        raise RecastError(f"{file} holds no item: {_REMEDY}")
    return _alike(found, file)


def _codes(names: Any, place: str) -> list[int]:
    """Codes of an item's names, `<a_60>` of the first level, `<b_159>` of the second and so on."""
    codes = []
    for level, name in enumerate(names if isinstance(names, list) else [names]):
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or ord(match[1]) - ord("a") != level:
            wanted = f"<{chr(ord('a') + level)}_0> to <{chr(ord('a') + level)}_...>"
            raise RecastError(f"{place} has {named(name)} where {wanted} stands: {_REMEDY}")
        codes.append(int(match[2]))
    if not codes:
        raise RecastError(f"{place} has no names: {_REMEDY}")
    return codes


def _alike(sids: dict[str, list[int]], file: Path) -> dict[str, list[int]]:
    lengths = {len(codes): id for id, codes in sids.items()}
    if len(lengths) > 1:
        (one, first), (other, second) = list(lengths.items())[:2]
        raise RecastError(
            f"{file}: the item {first} has {one} names, the item {second} {other}: {_REMEDY}"
        )
    return sids


def _texts(file: Path) -> dict[str, str]:
    texts = {}
    for id, facts in _json(file).items():
        title = facts.get("title") if isinstance(facts, dict) else None
        if not (isinstance(title, str) and is_whole(title)):
            raise RecastError(f"{file}: the item {id} has no title in UTF-8: {_REMEDY}")
        texts[id] = " ".join(title.split())
    return texts
