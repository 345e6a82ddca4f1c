"""OpenOneRec's rows and RecIF-Bench (2512.24762): a folder of its Parquet files in, rows out.

`*_pid2sid.parquet` (`pids`), `pid2caption.parquet` (texts of items) and the rows: `train.parquet`
and `test.parquet`, or `sft_*.parquet` (`source`, `uuid`, `messages`, `metadata`; the last message
is the answer), `TASK/TASK_test.parquet` of RecIF-Bench (`messages`, `metadata` with `answer`,
`answer_pid` or `answer_iid`), or the release that all of them are made of (`onerec_release`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from recast.data.columns import named
from recast.data.messages import is_whole, read_chat, read_literal, without_answer
from recast.data.onerec_release import RELEASE, TASKS, release_batches
from recast.data.pids import CAPTIONS, NAMES, SUFFIX, Domain, read_captions, read_domains
from recast.data.row_tables import (
    MOST_TASKS,
    TASK_NAME,
    RowTables,
    batches_of,
    columns_of,
    make_batch,
    where,
)
from recast.types import RecastError

_SOURCES = {
    "RecIF_VideoRec": "video",
    "RecIF_AdRec": "ad",
    "RecIF_ProductRec": "product",
    "RecIF_InteractiveRec": "interactive",
    "RecIF_LabelCondRec": "label_cond",
}
"""Tasks as the column `source` calls them and as RecIF-Bench calls its folders."""
_WITHOUT_ITEMS = ("item_understand", "label_pred", "rec_reason", "reco_reason")
"""Tasks of RecIF-Bench whose answers are no items."""
_COLUMNS = ("messages", "metadata")
_PYTHON = "messages or metadata that are Python, no JSON, read all the same"


class _File(NamedTuple):
    path: Path
    split: str
    task: str | None
    """None: the column `source` says it."""
    columns: tuple[str, ...] = ()
    """Those that are read, once they were looked for."""


class _Row(NamedTuple):
    """What a row is, besides its messages."""

    task: str
    user: str
    metadata: dict[str, Any]


def has_maps(files: list[Path]) -> bool:
    return any(file.name.endswith(SUFFIX) for file in files)


def read_folder(path: Path, every: list[Path], seed: int) -> RowTables:
    """Rows of `every` file of a folder; `seed` is of what the release leaves to chance. Raises
    `RecastError`."""
    domains = read_domains(every)
    captions = next((file for file in every if file.name == CAPTIONS), None)
    texts = None if captions is None else read_captions(captions)
    prefixes = [f"{domain.name}:" if len(domains) > 1 else "" for domain in domains]
    tables = [domain.table(prefix, texts) for domain, prefix in zip(domains, prefixes, strict=True)]
    files, release, notes = _files(path, every)
    files = [_checked(file) for file in files]
    dropped: Counter[str] = Counter()
    names = _tasks(files, release)
    by_task = {name: _domain_of(name, domains) for name in names}

    def batches() -> Iterator[pl.DataFrame]:
        counts: Counter[str] = Counter()
        for file in files:
            yield from _batches(file, by_task, counts, dropped)
        if release is not None:
            tests = {file.task for file in files if file.task}
            yield from release_batches(release, by_task, dropped, seed, without_test=tests)
        notes.extend(f"{what}: {count:,}" for what, count in counts.items() if count)

    for domain in domains:
        if domain.num_shared:
            notes.append(
                f"{domain.file.name}: {domain.num_shared:,} items share the SID of an earlier one, "
                "which stands for all of them where a text alone names it"
            )
        if domain.num_copies:
            notes.append(f"{domain.file.name}: {domain.num_copies:,} rows are there twice")
    splits = {file.split for file in files} | ({"train", "test"} if release else set())
    read = [file.path for file in files] + [domain.file for domain in domains]
    return RowTables(
        batches=batches,
        items=pl.concat(tables),
        splits=frozenset(splits),
        files=[*read, *(file for file in (release, captions) if file)],
        kind=f"OpenOneRec, {len(names)} tasks",
        tasks={name: domain.name for name, domain in by_task.items()},
        sid_names=NAMES,
        notes=notes,
        dropped=dropped,
    )


def _domain_of(task: str, domains: list[Domain]) -> Domain:
    """Products are of the map called so, all else is of the other one."""
    is_product = "product" in task.lower()
    fitting = [domain for domain in domains if ("product" in domain.name) == is_product]
    if len(fitting) != 1 and len(domains) > 1:
        raise RecastError(
            f"the task {task!r} is of {'product' if is_product else 'video and ad'} items, with "
            f"{len(fitting)} of the maps ({', '.join(d.file.name for d in domains)}): give one "
            "called product_pid2sid.parquet and one called video_ad_pid2sid.parquet"
        )
    return fitting[0] if len(fitting) == 1 else domains[0]


def _files(path: Path, every: list[Path]) -> tuple[list[_File], Path | None, list[str]]:
    """Files of rows by split, the release where nothing else holds train rows, and what to say.

    `train.parquet` is what OpenOneRec merges of `sft_*.parquet`, and its `test.parquet` a part of
    them: beside RecIF-Bench's files it is `valid`.
    """
    tests = [
        file
        for file in every
        if file.name.endswith("_test.parquet")
        and file.stem.removesuffix("_test") == file.parent.name
    ]
    parts = [file for file in every if re.fullmatch(r"sft_.*\.parquet", file.name)]
    mute = [file for file in (*tests, *parts) if any(n in file.stem for n in _WITHOUT_ITEMS)]
    files = [_File(file, "test", file.parent.name) for file in tests if file not in mute]
    has_bench = bool(files)
    for split in ("train", "valid", "test"):
        copies = [file for file in every if file.name == f"{split}.parquet"]
        if len(copies) > 1:
            raise RecastError(f"{copies[0]} and {copies[1]} are both {split}: remove one of them")
        kept = "valid" if has_bench and split == "test" else split
        files += [_File(file, kept, None) for file in copies]
    is_merged = any(file.split == "train" for file in files)
    files += [_File(f, "train", None) for f in parts if f not in mute and not is_merged]
    releases = [file for file in every if file.name == RELEASE]
    release = releases[0] if releases and not any(f.split == "train" for f in files) else None
    if not files and release is None:
        raise RecastError(
            f"{path} holds maps of pids and no rows: add train.parquet and test.parquet, "
            f"sft_*.parquet, TASK/TASK_test.parquet or {RELEASE}"
        )
    notes = [f"{file.split}: {file.path}" for file in files]
    notes += [f"train and test: {release}"] if release else []
    notes += [f"left out, its answers are no items: {file}" for file in mute]
    if is_merged and len(parts) > len(mute):
        notes.append(f"left out, train.parquet is made of them: {len(parts)} files sft_*.parquet")
    if releases and release is None:
        notes.append(f"left out, other files hold its rows: {releases[0]}")
    return files, release, notes


def _checked(file: _File) -> _File:
    """Raises `RecastError` for a file without the columns of rows."""
    wanted = (*_COLUMNS, *(() if file.task else ("source",)))
    present = columns_of(str(file.path), (*wanted, "uuid"))
    for name in wanted:
        if name not in present:
            raise RecastError(
                f"{file.path} has no column {name!r} as OpenOneRec's rows have (it has "
                f"{named(', '.join(present))}): use the file as it was published, or give rows of "
                "your own without the maps of pids beside them"
            )
    return file._replace(columns=(*wanted, *(("uuid",) if "uuid" in present else ())))


def _tasks(files: list[_File], release: Path | None) -> list[str]:
    """Tasks of all files, in the order of the paper, others behind."""
    found = dict.fromkeys(TASKS if release else ())
    for file in files:
        if file.task:
            found[file.task] = None
            continue
        row = 0
        for batch in batches_of(str(file.path), {"source": "source"})[0]:
            for source in batch["source"].unique(maintain_order=True):
                if not isinstance(source, str) or not TASK_NAME.fullmatch(source):
                    at = row + batch["source"].to_list().index(source)
                    place = where(file.path, at, "source")
                    raise RecastError(f"{place} is {named(source)}, no name of a task: name it")
                found[_SOURCES.get(source, source)] = None
            row += len(batch)
        if not row:
            raise RecastError(f"{file.path} holds no row: use the file as it was published")
    if len(found) > MOST_TASKS:
        raise RecastError(f"source names {len(found)} tasks, {MOST_TASKS} are read at most")
    return list(dict.fromkeys(task for task in (*TASKS, *found) if task in found))


def _batches(
    file: _File, domains: dict[str, Domain], counts: Counter[str], dropped: Counter[str]
) -> Iterator[pl.DataFrame]:
    tasks = list(domains)
    row = 0
    for raw in batches_of(str(file.path), {name: name for name in file.columns})[0]:
        rows = []
        for number, cells in enumerate(raw.iter_rows(named=True), row):
            head = _head(file, cells, number, counts)
            place = where(file.path, number, "messages")
            chat = read_chat(cells["messages"], place)
            counts[_PYTHON] += chat.is_python
            prompt, answer = without_answer(chat.messages, place)
            rows.append(
                {
                    "user": head.user,
                    "split": file.split,
                    "task": tasks.index(head.task),
                    "prompt": prompt,
                    "is_chat": True,
                    "targets": _targets(head, answer, domains[head.task], place, counts, dropped),
                }
            )
        yield make_batch(rows)
        row += len(raw)


def _head(file: _File, cells: dict[str, Any], number: int, counts: Counter[str]) -> _Row:
    place = where(file.path, number, "metadata")
    metadata = cells["metadata"]
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except (ValueError, RecursionError):
            metadata = read_literal(metadata)
            counts[_PYTHON] += 1
    if not isinstance(metadata, dict):
        raise RecastError(f"{place} is {named(cells['metadata'])}: give a JSON object")
    uid = metadata.get("uid", cells.get("uuid"))
    if isinstance(uid, str) and not is_whole(uid):
        raise RecastError(f"{place}: uid holds half a character: write it anew")
    user = (
        str(uid)
        if isinstance(uid, int | str) and str(uid).strip()
        else f"{file.path.stem}:{number}"
    )
    return _Row(file.task or _SOURCES.get(cells["source"], cells["source"]), user, metadata)


def _targets(
    row: _Row,
    answer: str | None,
    domain: Domain,
    place: str,
    counts: Counter[str],
    dropped: Counter[str],
) -> list[int]:
    """Items of an answer in its order, behind its thought if it has one; `answer_pid` wins over
    SIDs, which pids may share."""
    stated = answer if row.metadata.get("answer") is None else row.metadata["answer"]
    if isinstance(stated, list) and all(isinstance(part, str) for part in stated):
        stated = "".join(stated)
    found = [row.metadata.get(name) for name in ("answer_pid", "answer_iid")]
    pids = next((value for value in found if value not in (None, [])), None)
    if not isinstance(stated, str | None):
        raise RecastError(f"{place}: answer in metadata is {named(stated)}: give a text")
    if stated is None and pids is None:
        raise RecastError(
            f"{place} end without an answer, and metadata has none: give the assistant's message "
            "last"
        )
    said = "" if stated is None else stated.rpartition("</think>")[2]
    items, num_broken = domain.by_sid(said)
    if pids is not None:
        values = pids if isinstance(pids, list) else [pids]
        if not all(type(value) is int and abs(value) < 2**63 for value in values):
            raise RecastError(f"{place}: answer_pid is {named(pids)}: give a list of whole numbers")
        by_pid = domain.by_pid(np.array(values, dtype=np.int64)).tolist()
        if items and _sids(domain, by_pid) != _sids(domain, items):
            counts["warning: rows whose answer_pid has other SIDs than their answer"] += 1
        dropped["targets whose pid is not in the map"] += by_pid.count(-1)
        return [item for item in by_pid if item >= 0]
    dropped["targets whose SID no pid has"] += items.count(-1)
    dropped["targets whose SID is broken off"] += num_broken
    return [item for item in items if item >= 0]


def _sids(domain: Domain, items: list[int]) -> set[int]:
    return {int(domain.keys[item - domain.start]) for item in items if item >= 0}
