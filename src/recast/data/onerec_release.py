"""OpenOneRec's raw release (2512.24762): a row per user in, rows of the five tasks out.

The tasks are those of `data/onerec_data/sft/*.py` (1f4a99e): the same columns, lengths and order;
the words around the items are ours, in English and always the same, where OpenOneRec draws one of
several in Chinese.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from recast.data.columns import named
from recast.data.messages import write_prompt
from recast.data.pids import Domain
from recast.data.row_tables import batches_of, columns_of, make_batch, where
from recast.draws import uniforms
from recast.types import RecastError

RELEASE = "onerec_bench_release.parquet"
TASKS = ("video", "ad", "product", "interactive", "label_cond")
_BEHAVIOURS = {
    "longview": "watched to the end",
    "like": "liked",
    "follow": "followed the author of",
    "forward": "forwarded",
    "not_interested": "marked as not interesting",
}
_MOST_TARGETS, _MOST_WATCHED, _MOST_LONGVIEW, _MOST_ADS, _MOST_PRODUCTS = 10, 512, 100, 200, 100
_PER_BEHAVIOUR = 10
_SYSTEM = "You recommend what a user will like next. Answer with items alone, the likeliest first."
_REMEDY = "use the file as it was published"
_COLUMNS = (
    *("uid", "split", "hist_video_pid", "target_video_pid", "hist_longview_video_list"),
    *(f"{part}_video_{name}" for part in ("hist", "target") for name in _BEHAVIOURS),
    *("hist_ad_pid", "target_ad_pid", "hist_goods_pid", "target_goods_pid"),
    *("inter_user_profile_with_sid", "inter_keyword_to_items"),
)
_BATCH = 256
"""Users that are read at once: each has up to 1,000 items in its prompts."""


class _User:
    """A row of the release: lists of pids by column, an absent one empty."""

    def __init__(self, cells: dict[str, Any], file: Path, number: int) -> None:
        self.cells, self.file, self.number = cells, file, number

    def pids(self, column: str) -> np.ndarray:
        return self._numbers(self.cells[column], column)

    def labelled(self, part: str, behaviour: str) -> np.ndarray:
        """Videos whose flag is 1; none where there are not as many flags as videos."""
        videos = self.pids(f"{part}_video_pid")
        flags = self.pids(f"{part}_video_{behaviour}")
        return videos[flags == 1] if len(flags) == len(videos) else videos[:0]

    def keywords(self) -> dict[str, np.ndarray]:
        column = "inter_keyword_to_items"
        text = self.cells[column]
        if not text or not self.cells["inter_user_profile_with_sid"]:
            return {}
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            place = where(self.file, self.number, column)
            raise RecastError(f"{place} is {named(text)}, no JSON object: {_REMEDY}")
        return {
            word: self._numbers(pids, column)
            for word, pids in content.items()
            if word.strip() and pids
        }

    def _numbers(self, values: Any, column: str) -> np.ndarray:
        values = [] if values is None else values
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            place = where(self.file, self.number, column)
            raise RecastError(f"{place} is {named(values)}, no list of pids: {_REMEDY}")
        return np.array(values, dtype=np.int64)


def release_batches(
    file: Path,
    domains: dict[str, Domain],
    dropped: Counter[str],
    seed: int,
    *,
    without_test: set[str],
) -> Iterator[pl.DataFrame]:
    """Rows of the release; test rows of the tasks `without_test` are in other files."""
    present = columns_of(str(file), _COLUMNS)
    missing = [name for name in _COLUMNS if name not in present]
    if missing:
        raise RecastError(f"{file} has no column {missing[0]!r}: {_REMEDY}")
    number = 0
    for raw in batches_of(str(file), {name: name for name in _COLUMNS})[0]:
        for part in raw.iter_slices(_BATCH):
            draws = uniforms(seed, 0, torch.arange(number, number + len(part)), "behaviour", 1)
            rows: list[dict[str, Any]] = []
            for cells, draw in zip(part.iter_rows(named=True), draws[:, 0].tolist(), strict=True):
                user = _User(cells, file, number)
                number += 1
                rows += _rows(user, draw, domains, dropped, without_test)
            if rows:
                yield make_batch(rows)


def _rows(
    user: _User,
    draw: float,
    domains: dict[str, Domain],
    dropped: Counter[str],
    without_test: set[str],
) -> Iterator[dict[str, Any]]:
    uid, split = user.cells["uid"], user.cells["split"]
    if uid is None or split is None:
        place = where(user.file, user.number, "uid" if uid is None else "split")
        raise RecastError(f"{place} is empty: {_REMEDY}")
    for task, prompt, pids in _asks(user, draw, domains):
        if split != 0 and task in without_test:
            continue
        if not prompt:
            dropped[f"{task}: users without a history"] += 1
            continue
        items = domains[task].by_pid(pids[:_MOST_TARGETS])
        dropped["targets whose pid is not in the map"] += int((items < 0).sum())
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": prompt}]
        yield {
            "user": str(uid),
            "split": "train" if split == 0 else "test",
            "task": list(domains).index(task),
            "prompt": write_prompt(messages, f"{user.file}, row {user.number + 1}"),
            "is_chat": True,
            "targets": items[items >= 0].tolist(),
        }


def _asks(
    user: _User, draw: float, domains: dict[str, Domain]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Task, prompt ("" without a history) and pids of the targets, of all rows of a user."""
    videos = domains["video"]

    def line(words: str, pids: np.ndarray, domain: Domain = videos) -> list[str]:
        items = domain.by_pid(pids)
        text = domain.spell(items[items >= 0])
        return [f"{words}: {text}"] if text else []

    def ask(parts: list[str], question: str) -> str:
        return "\n".join([*parts, question]) if parts else ""

    watched = line("Videos the user watched", user.pids("hist_video_pid")[-_MOST_WATCHED:])
    question = "Which videos will the user watch next?"
    yield "video", ask(watched, question), user.pids("target_video_pid")
    longview = user.pids("hist_longview_video_list")[-_MOST_LONGVIEW:]
    shown = line("Videos the user watched to the end", longview)
    ads = line("Ads the user clicked", user.pids("hist_ad_pid")[-_MOST_ADS:], domains["ad"])
    question = "Which ads will the user click next?"
    yield "ad", ask(shown + ads, question), user.pids("target_ad_pid")
    clicked = user.pids("hist_goods_pid")[-_MOST_PRODUCTS:]
    products = line("Products the user clicked", clicked, domains["product"])
    question = "Which products will the user click next?"
    yield "product", ask(shown + products, question), user.pids("target_goods_pid")
    profile = user.cells["inter_user_profile_with_sid"]
    for word, pids in user.keywords().items():
        prompt = f"{profile}\nThe user searches for: {word}\nWhich items will the user choose?"
        yield "interactive", prompt, pids
    parts = []
    for behaviour, words in _BEHAVIOURS.items():
        acts = user.labelled("hist", behaviour)[-_PER_BEHAVIOUR:]
        parts += line(f"Videos the user {words}", acts)
    targets = {name: user.labelled("target", name) for name in _BEHAVIOURS}
    names = [name for name, pids in targets.items() if len(pids)]
    if names:
        chosen = names[int(draw * len(names))]
        question = f"Which videos will be {_BEHAVIOURS[chosen]} next?"
        if chosen == "follow":
            question = "Of which videos will the user follow the author next?"
        yield "label_cond", ask(parts, question), targets[chosen]
