"""Data of RecIF-Bench's schema (2512.24762), made up: sizes in, the files of a release out.

    python -m benchmarks.recif --output FOLDER --users 2000 --history 512

Nothing of the release can be downloaded everywhere; `recast prepare --rows FOLDER` takes its files
and these alike. A folder holds the maps of pids, `pid2caption.parquet`, the rows of the five tasks
(`sft_*.parquet`, users of split 0) and `benchmark_data/TASK/TASK_test.parquet` (split 1); with
`--raw` the table of users that OpenOneRec's scripts make both of, in their place. `reachable.json`
says what the best policy and a list of the most popular items reach on the test rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.recif_world import (
    KEYWORDS,
    KINDS,
    LABELS,
    TASKS,
    Items,
    Sizes,
    User,
    best_policy,
    carries,
    keyword_pool,
    label_pool,
    make_items,
    make_users,
    most_popular,
    of_list,
)
from recast.errors import RecastError
from recast.run.files import refuse_existing, staged_folder

SOURCES = {
    "video": ("RecIF_VideoRec", "sft_video_rec"),
    "ad": ("RecIF_AdRec", "sft_ad_rec"),
    "product": ("RecIF_ProductRec", "sft_product_rec"),
    "interactive": ("RecIF_InteractiveRec", "sft_interactive_rec"),
    "label_cond": ("RecIF_LabelCondRec", "sft_label_cond_rec"),
}
PERSONAS = (
    "You are a recommendation assistant: you read what a user did and say what comes next.",
    "You are an expert in what people watch, click and buy.",
)
ASKS = {
    "video": ("The user watched: {}\nWhich videos come next?", "{}\nPredict the next videos."),
    "ad": ("Which ads will the user click?", "Predict the ads that are clicked next."),
    "product": ("Which products will the user click?", "Predict the next products."),
    "interactive": (
        "About the user:\n{}\n\nThe user searches for: {}\n\nRecommend what fits.",
        "{}\n\nKeyword: {}\n\nWhich videos suit the user?",
    ),
}
LONGVIEW, SHOWN, CLICKS, PER_LABEL, PROFILE = 0, 100, {"ad": 200, "product": 100}, 10, 20
"""Label of the videos beside clicks, how many of them, and of clicks, of a behaviour, of a profile
(OpenOneRec, `data/onerec_data/sft`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A prompt, its targets and how many items they were drawn from."""

    task: str
    user: User
    prompt: str
    targets: list[int]
    pool: int
    metadata: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.task if self.task in KINDS else "video"


class World:
    """Items, users and the rows of all tasks."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.rng = sizes, np.random.default_rng(sizes.seed)
        self.items: dict[str, Items] = {kind: make_items(sizes, kind, self.rng) for kind in KINDS}
        self.users = make_users(sizes, self.items, self.rng)
        self.rows = [row for user in self.users for row in self._rows(user)]

    def sids(self, kind: str, items: Iterable[int]) -> str:
        """How a prompt and an answer write items."""
        codes = (self.items[kind].sids[item] for item in items)
        names = (f"<s_a_{a}><s_b_{b}><s_c_{c}>" for a, b, c in codes)
        return "".join(f"<|sid_begin|>{name}<|sid_end|>" for name in names)

    def labelled(self, items: Iterable[int], label: int) -> list[int]:
        size = self.items["video"].per_category
        return [item for item in items if carries(self.sizes, item, size)[0] == label]

    def profile(self, user: User) -> str:
        return f"Somebody who often watches {self.sids('video', user.history['video'][-PROFILE:])}"

    def choice(self, texts: tuple[str, ...]) -> str:
        return texts[int(self.rng.integers(len(texts)))]

    def _rows(self, user: User) -> Iterable[Row]:
        videos = self.items["video"]

        def row(task: str, prompt: str, targets: list[int], pool: int, **more: Any) -> Row:
            facts = {"uid": user.uid} | more
            return Row(
                task=task, user=user, prompt=prompt, targets=targets, pool=pool, metadata=facts
            )

        watched = self.sids("video", user.history["video"])
        ask = self.choice(ASKS["video"]).format(watched)
        yield row("video", ask, user.targets["video"], videos.per_category)
        shown = self.labelled(user.history["video"], LONGVIEW)[-SHOWN:]
        for kind, count in CLICKS.items():
            parts = [f"Videos watched to the end: {self.sids('video', shown)}"] if shown else []
            clicks = self.sids(kind, user.history[kind][-count:])
            parts += [f"Clicked {kind}s: {clicks}", self.choice(ASKS[kind])]
            yield row(kind, "\n".join(parts), user.targets[kind], self.items[kind].per_category)
        for word, targets in user.keywords.items():
            ask = self.choice(ASKS["interactive"]).format(self.profile(user), word)
            pool = keyword_pool(self.sizes, videos, user.taste, KEYWORDS.index(word))
            yield row("interactive", ask, targets, len(pool), keyword=word)
        found = {label: self.labelled(user.targets["video"], label) for label in self._labels()}
        asked = int(self.rng.choice([label for label, targets in found.items() if targets]))
        parts = []
        for label in self._labels():
            if acts := self.labelled(user.history["video"], label)[-PER_LABEL:]:
                parts.append(f"Videos of {LABELS[label]}: {self.sids('video', acts)}")
        parts.append(f"Predict videos of {LABELS[asked]}.")
        pool = label_pool(self.sizes, videos, user.taste, asked)
        chosen = {"target_interaction": LABELS[asked]}
        yield row("label_cond", "\n".join(parts), found[asked], len(pool), **chosen)

    def _labels(self) -> range:
        return range(self.sizes.labels)

    def of_task(self, task: str, *, is_test: bool) -> list[Row]:
        return [row for row in self.rows if row.task == task and row.user.is_test == is_test]


def reachable(world: World) -> dict[str, dict[str, Any]]:
    """By task: test rows, what the best policy expects of them, what a popularity list gets."""
    found: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        popular = most_popular([row.targets for row in world.of_task(task, is_test=False)])
        rows = world.of_task(task, is_test=True)
        best = [best_policy(row.pool, len(row.targets)) for row in rows]
        listed = [of_list(popular, row.targets) for row in rows]
        found[task] = {"rows": len(rows), "best": _means(best), "popularity": _means(listed)}
    return found


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in (rows or [{}])[0]}


def write(world: World, folder: Path, *, raw: bool) -> dict[str, dict[str, Any]]:
    """All files of the release, and `reachable.json`, whose content is returned."""
    items = world.items
    maps = {"video_ad_pid2sid": ("video", "ad"), "product_pid2sid": ("product",)}
    for name, kinds in maps.items():
        pids = [pid for kind in kinds for pid in items[kind].pids]
        sids = [list(sid) for kind in kinds for sid in items[kind].sids]
        pl.DataFrame({"pid": pids, "sid": sids}).write_parquet(folder / f"{name}.parquet")
    pids = [pid for kind in KINDS for pid in items[kind].pids]
    captions = [text for kind in KINDS for text in items[kind].captions]
    captioned = pl.DataFrame({"pid": pids, "dense_caption": captions})
    captioned.write_parquet(folder / "pid2caption.parquet")
    if raw:
        pl.DataFrame(raw_columns(world)).write_parquet(folder / "onerec_bench_release.parquet")
    else:
        for task, (_, name) in SOURCES.items():
            rows = world.of_task(task, is_test=False)
            pl.DataFrame(row_columns(world, rows)).write_parquet(folder / f"{name}.parquet")
            (folder / "benchmark_data" / task).mkdir(parents=True)
            rows = world.of_task(task, is_test=True)
            file = folder / "benchmark_data" / task / f"{task}_test.parquet"
            pl.DataFrame(test_columns(world, rows)).write_parquet(file)
    found = reachable(world)
    (folder / "reachable.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def _messages(world: World, row: Row, answer: str | None) -> str:
    texts = {"system": world.choice(PERSONAS), "user": row.prompt}
    texts |= {} if answer is None else {"assistant": answer}
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()
    ]
    return json.dumps(messages)


def row_columns(world: World, rows: list[Row]) -> dict[str, list[str]]:
    """Of the rows that SFT and RL read; the last message is the answer."""
    answers = [world.sids(row.kind, row.targets) for row in rows]
    return {
        "source": [SOURCES[row.task][0] for row in rows],
        "uuid": [str(uuid.UUID(bytes=world.rng.bytes(16), version=4)) for _ in rows],
        "messages": [_messages(world, row, text) for row, text in zip(rows, answers, strict=True)],
        "metadata": [json.dumps(row.metadata) for row in rows],
    }


def test_columns(world: World, rows: list[Row]) -> dict[str, list[str]]:
    """Of RecIF-Bench: the answer stands in `metadata`, as SIDs and as pids."""
    metadata = []
    for row in rows:
        pids = [world.items[row.kind].pids[item] for item in row.targets]
        answer = {"answer": world.sids(row.kind, row.targets), "answer_pid": pids}
        metadata.append(json.dumps(row.metadata | answer))
    return {"messages": [_messages(world, row, None) for row in rows], "metadata": metadata}


def raw_columns(world: World) -> dict[str, Any]:
    """Of the table of users; what the five tasks do not read is empty."""
    users = world.users
    names = {"video": "video", "ad": "ad", "product": "goods"}

    def pids(kind: str, lists: Iterable[Sequence[int]]) -> list[list[int]]:
        numbers = world.items[kind].pids
        return [[numbers[item] for item in items] for items in lists]

    def flags(of: Callable[[User], list[int]], label: int) -> list[list[int]]:
        size = world.items["video"].per_category
        return [
            [int(carries(world.sizes, item, size)[0] == label) for item in of(user)]
            for user in users
        ]

    columns: dict[str, Any] = {
        "uid": [user.uid for user in users],
        "split": [int(user.is_test) for user in users],
    }
    for kind, name in names.items():
        columns[f"hist_{name}_pid"] = pids(kind, (user.history[kind] for user in users))
        columns[f"target_{name}_pid"] = pids(kind, (user.targets[kind] for user in users))
    for number, label in enumerate(LABELS):
        columns[f"hist_video_{label}"] = flags(lambda user: user.history["video"], number)
        columns[f"target_video_{label}"] = flags(lambda user: user.targets["video"], number)
    longview = pids("video", (world.labelled(user.history["video"], LONGVIEW) for user in users))
    keywords = [
        {word: [world.items["video"].pids[item] for item in items] for word, items in asked.items()}
        for asked in (user.keywords for user in users)
    ]
    empty = ("reco_cot", "reco_gsu_caption", "reco_target_caption")
    return columns | {
        "hist_longview_video_list": longview,
        "inter_user_profile_with_sid": [world.profile(user) for user in users],
        "inter_keyword_to_items": [json.dumps(asked) for asked in keywords],
        **{name: [""] * len(users) for name in empty},
        "target_pid": [user_pids[0] for user_pids in columns["target_video_pid"]],
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """`reachable.json` on the screen."""
    keys = ("pass@1", "pass@32", "recall@32")
    lines = [f"{'test rows':<12} {'rows':>6}  " + "  ".join(f"{key:>9}" for key in keys * 2)]
    lines.insert(0, f"{'':<21}{'the best policy':<33}the most popular items")
    for task, facts in found.items():
        values = [facts[who].get(key, 0.0) for who in ("best", "popularity") for key in keys]
        lines.append(
            f"{task:<12} {facts['rows']:>6}  " + "  ".join(f"{value:>9.4f}" for value in values)
        )
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """Write the folder, print what can be reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recif")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--raw", action="store_true", help="the table of users in place of rows")
    for field in fields(Sizes):
        kind = float if field.name == "test_frac" else int
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    arguments = parser.parse_args(given)
    sizes = Sizes(**{field.name: getattr(arguments, field.name) for field in fields(Sizes)})
    if fault := sizes.fault():
        parser.error(fault)
    try:
        refuse_existing(arguments.output)
        world = World(sizes)
        with staged_folder(arguments.output) as stage:
            found = write(world, stage, raw=arguments.raw)
    except RecastError as error:
        sys.exit(f"benchmarks.recif: {error}")
    print(table(found))


if __name__ == "__main__":
    main()
