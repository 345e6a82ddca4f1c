"""Lists that others published: the files of two evaluators in, texts by row out.

`evaluate.py` of github.com/AkaliKong/MiniOneRec, which ReRe shares, writes a list of `{"input",
"output", "predict": [text, ...]}`. The benchmark of github.com/Kuaishou-OneRec/OpenOneRec writes
`TASK/SPLIT_generated.json` for each task: `{"task_name", "split", "samples": {id: {"prompt",
"generations", "ground_truth", "logprobs", "metadata": {"answer_pid", ...}}}}`. Both as of the
commits that docs/log.md compares with (2026-11-25).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from recast.run.reading import read_json, reason_of
from recast.types import RecastError, in_short, require

_MOST = 2**34
"""Bytes of a file; prompts of 512 items make RecIF-Bench's largest one of about 2**30."""
_REMEDY = (
    "give what MiniOneRec's evaluate.py wrote, or OpenOneRec's benchmark (TASK/test_generated.json "
    "or the folder of all tasks), as it is"
)

Format = Literal["MiniOneRec", "OpenOneRec"]


class Entry(NamedTuple):
    """One row of a file, as texts."""

    place: str
    """Where it stands, for errors."""
    prompt: str
    answer: str
    """What names the targets."""
    answer_ids: list[str] | None
    """Ids of the target items, where the file says them."""
    lists: list[str]
    """Predictions, best first."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file: the entries of one task."""

    path: Path
    format: Format
    task: str | None
    """None where the format has none."""
    entries: list[Entry]


def read_published(path: str | Path, split: str) -> list[Published]:
    """A file, or the files of every task in a folder of OpenOneRec's benchmark.

    Raises `RecastError` for what is in neither format, with the file, the entry and the remedy.
    """
    path = Path(path)
    if not path.is_dir():
        return [_read(path, split)]
    files = sorted(path.glob(f"*/{split}_generated.json"))
    if not files:
        raise RecastError(f"{path} holds no TASK/{split}_generated.json: {_REMEDY}")
    return [_read(file, split) for file in files]


def _read(file: Path, split: str) -> Published:
    try:
        content = read_json(file, object, _MOST)
    except (OSError, ValueError, RecursionError) as error:
        raise RecastError(f"{file} cannot be read ({reason_of(error)}): {_REMEDY}") from error
    if isinstance(content, list):
        entries = [_minionerec(f"{file}, row {n}", entry) for n, entry in enumerate(content)]
        return _some(Published(path=file, format="MiniOneRec", task=None, entries=entries))
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, dict):
        held = f"a {type(content).__name__}"
        if isinstance(content, dict):
            held = f"an object of {in_short(list(content))} without samples"
        raise RecastError(f"{file} holds {held}: {_REMEDY}")
    task, stated = content.get("task_name"), content.get("split", split)
    require(isinstance(task, str), f"task_name of {file}", task, _REMEDY)
    remedy = f"{split} is to be judged: give its file, or --split"
    require(stated == split, f"split of {file}", stated, remedy)
    entries = [_openonerec(f"{file}, sample {name!r}", entry) for name, entry in samples.items()]
    return _some(Published(path=file, format="OpenOneRec", task=task, entries=entries))


def _some(published: Published) -> Published:
    if not published.entries:
        raise RecastError(f"{published.path} holds no row: {_REMEDY}")
    return published


def _minionerec(place: str, entry: Any) -> Entry:
    cells = _cells(place, entry, ("input", "output", "predict"))
    answer = cells["output"]
    if isinstance(answer, list) and answer:  # as calc.py takes it
        answer = answer[0]
    return Entry(
        place=place,
        prompt=_text(place, "input", cells["input"]),
        answer=_text(place, "output", answer),
        answer_ids=None,
        lists=_texts(place, "predict", cells["predict"]),
    )


def _openonerec(place: str, entry: Any) -> Entry:
    cells = _cells(place, entry, ("prompt", "ground_truth", "generations"))
    lists = _texts(place, "generations", cells["generations"])
    scores = cells.get("logprobs") or []
    fits = isinstance(scores, list) and all(
        isinstance(score, int | float) and math.isfinite(score) for score in scores
    )
    if not fits or len(scores) not in (0, len(lists)):
        raise RecastError(
            f"{place}: logprobs are {in_short(scores)}: give {len(lists)} finite numbers, one for "
            "each of the generations, or none"
        )
    return Entry(
        place=place,
        prompt=_text(place, "prompt", cells["prompt"]),
        answer=_text(place, "ground_truth", cells["ground_truth"]),
        answer_ids=_ids(place, cells.get("metadata")),
        lists=lists,
    )


def _ids(place: str, metadata: Any) -> list[str] | None:
    """`answer_pid`, or `answer_iid`; a list, or JSON text of one, without the 0 that is no item."""
    if not isinstance(metadata, dict | None):
        raise RecastError(f"{place}: metadata is {in_short(metadata)}: {_REMEDY}")
    stated = [(metadata or {}).get(name) for name in ("answer_pid", "answer_iid")]
    ids = next((value for value in stated if value not in (None, [])), None)
    with suppress(ValueError, RecursionError):  # refused below
        ids = json.loads(ids) if isinstance(ids, str) else ids
    ids = ids if isinstance(ids, list | None) else [ids]
    if ids is not None and not all(type(value) is int for value in ids):
        raise RecastError(f"{place}: answer_pid is {in_short(ids)}: give a list of whole numbers")
    return None if ids is None else [str(value) for value in ids if value]


def _cells(place: str, entry: Any, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise RecastError(f"{place} is {in_short(entry)}, no object: {_REMEDY}")
    for name in names:
        if name not in entry:
            raise RecastError(
                f"{place} has no {name!r} (it has {in_short(list(entry))}): {_REMEDY}"
            )
    return entry


def _text(place: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RecastError(f"{place}: {name} is {in_short(value)}, no text: {_REMEDY}")
    return value


def _texts(place: str, name: str, values: Any) -> list[str]:
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise RecastError(f"{place}: {name} is {in_short(values)}, no list of texts: {_REMEDY}")
    return values
