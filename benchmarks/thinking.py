"""A tiny policy learns to think: a world whose prompts hide the category, RL with and without
thoughts, a table and a curve out.

    python -m benchmarks.thinking --output FOLDER --seeds 0 1 2

A user clicked three videos, of categories c1, c2, c3 of 7. What is asked for next is of category
(c1 + c2 + c3) mod 7: two items of its pool of four, so the best policy has Pass@1 1/2, and one that
does not know the category 1/14. No triple of a test row is in a row of training, so the sum must be
worked out; a thought may do it one step at a time: `<think>c1 c1+c2 c1+c2+c3</think>`.

Chats to start from hold no thought in half of the rows, the right one in a quarter, one with a
guess for its last step in a quarter. From them one policy learns thoughts and items, another, which
reads an empty thought in every prompt, items alone, in as many optimizer steps. RL goes on from
both in as many steps again, on prompts that neither has seen, with a reward on items alone; two
controls spend them on the chats: more SFT of either.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from benchmarks.recif import World
from benchmarks.recif_world import Sizes
from benchmarks.tiny_chat import chat_model, chat_tokenizer
from recast import PrepareConfig, RLConfig, SFTConfig, TokenizeConfig
from recast import prepare, tokenize, train_rl, train_sft
from recast.config import ModelConfig, PromptConfig
from recast.errors import RecastError
from recast.policy.load import Policy, load_policy
from recast.policy.tasks import load_task
from recast.rollout.beam import beam_search
from recast.rollout.think import think
from recast.run.files import refuse_existing
from recast.types import Draw, Prompts

TASTES, CLICKS, POOL, TARGETS = 7, 3, 4, 2
ITEMS = TASTES * POOL
CHATS, PROMPTS, TEST = 1600, 600, 300
"""Rows to start from, rows of RL, rows of the table."""
TEST_TRIPLES = 80
"""Of the 343."""
NO_THOUGHT, RIGHT = 0.5, 0.25
"""Shares of the chats."""
SFT_STEPS, RL_STEPS, SAVE_EVERY = 600, 120, 30
BATCH, PROMPTS_PER_STEP = 32, 16
SFT_LR, RL_LR = 3e-3, 3e-4
THOUGHTS, MOST = 7, 8
"""Of a row in RL, and tokens of each."""
READ = {"temperature": 0.6, "top_p": 0.95, "top_k": 50}
"""How OpenOneRec draws thoughts to be judged (arXiv 2512.24762)."""
EMPTY = "<think></think>\n"


class Row(NamedTuple):
    """What was clicked, by category and by item, and what is asked for."""

    clicks: list[int]
    items: list[int]
    targets: list[int]

    @property
    def sums(self) -> list[int]:
        """What a right thought says."""
        return [int(total) % TASTES for total in np.cumsum(self.clicks)]


class HiddenWorld:
    """RecIF's items; rows whose category is a sum."""

    def __init__(self, seed: int) -> None:
        small = {"ads": 2 * (TASTES + 1), "products": 2 * (TASTES + 1), "keywords": 1, "labels": 1}
        sizes = Sizes(users=2, videos=POOL * (TASTES + 1), tastes=TASTES, seed=seed, **small)
        self.world, self.rng = World(sizes), np.random.default_rng(seed)
        self.videos = self.world.items["video"]
        triples = self.rng.permutation(TASTES**CLICKS)
        self.test = self._rows(triples[:TEST_TRIPLES], TEST)
        self.train = self._rows(triples[TEST_TRIPLES:], CHATS + PROMPTS)

    def _rows(self, triples: np.ndarray, count: int) -> list[Row]:
        found = []
        for triple in self.rng.choice(triples, count).tolist():
            clicks = [triple // TASTES**place % TASTES for place in range(CLICKS)]
            items = [int(self.rng.choice(self.videos.pool(click))) for click in clicks]
            pool = self.videos.pool(sum(clicks) % TASTES)
            found.append(Row(clicks, items, self.rng.choice(pool, TARGETS, False).tolist()))
        return found

    def messages(self, row: Row, thought: str = "") -> str:
        """JSON of the question and the answer, behind a thought if there is one."""
        said = {
            "user": f"Clicked videos: {self.world.sids('video', row.items)}\nWhat next?",
            "assistant": thought + self.world.sids("video", row.targets),
        }
        return json.dumps([{"role": role, "content": text} for role, text in said.items()])

    def thoughts(self, rows: Sequence[Row]) -> Iterator[str]:
        """None, right or guessed at the end, as `NO_THOUGHT` and `RIGHT` say."""
        for row, kind in zip(rows, self.rng.random(len(rows)).tolist(), strict=True):
            steps = [] if kind < NO_THOUGHT else row.sums
            if kind >= NO_THOUGHT + RIGHT:
                steps = [*steps[:-1], int(self.rng.integers(TASTES))]
            yield f"<think>{' '.join(map(str, steps))}</think>\n"

    def write(self, folder: Path) -> None:
        """`files` for `recast prepare`, the chats, and a model of random weights."""
        files = folder / "files"
        files.mkdir(parents=True)
        sids = {"pid": self.videos.pids, "sid": [list(sid) for sid in self.videos.sids]}
        pl.DataFrame(sids).head(ITEMS).write_parquet(files / "video_ad_pid2sid.parquet")
        for name, rows in {"train": self.train[CHATS:], "test": self.test}.items():
            columns = {"messages": [self.messages(row) for row in rows]}
            metadata = [json.dumps({"uid": number}) for number in range(len(rows))]
            sources = ["RecIF_VideoRec"] * len(rows)
            frame = pl.DataFrame({"source": sources, **columns, "metadata": metadata})
            frame.write_parquet(files / f"{name}.parquet")
        chats = self.train[:CHATS]
        kinds = {"thoughts": list(self.thoughts(chats)), "items": [EMPTY] * CHATS}
        for name, thoughts in kinds.items():
            texts = [self.messages(*pair) for pair in zip(chats, thoughts, strict=True)]
            lines = [f'{{"messages": {text}}}\n' for text in texts]
            (folder / f"{name}.jsonl").write_text("".join(lines))
        words = ["user", "assistant", "Clicked videos: ", "What next?"] * 9
        tokenizer = chat_tokenizer(words + kinds["thoughts"], vocab_size=320)
        tokenizer.save_pretrained(folder / "qwen3")
        chat_model(tokenizer).save_pretrained(folder / "qwen3")


class Score(NamedTuple):
    """Of a policy on the test rows."""

    pass_at_1: float
    """Rows whose first item hits; behind thoughts the mean over four of a row."""
    right: float
    """Thoughts that say the three sums and nothing else."""
    tokens: float
    """Of a thought."""


def score(folder: Path, policy_folder: Path) -> Score:
    """Pass@1 behind a thought, or without one where the prompts hold an empty one."""
    policy = load_policy(policy_folder)
    task = load_task(folder / "data", policy)
    prompts = task.prompts(task.rows("test"))
    if policy.prompt.prefix is not None:
        groups = beam_search(policy, prompts, 1, Draw())
        return Score(_hits(groups.items, prompts), 0.0, 0.0)
    groups = think(policy, prompts, 4, Draw(), thoughts=4, max_thought_tokens=MOST, **READ)
    assert groups.thoughts is not None
    written = groups.thoughts
    right = torch.tensor(
        [
            policy.tokenizer.decode(tokens[:length]) == expected
            for expected, row, lengths in zip(
                right_thoughts(policy, prompts),
                written.tokens.tolist(),
                written.num_written.tolist(),
                strict=True,
            )
            for tokens, length in zip(row, lengths, strict=True)
        ]
    )
    tokens = float(written.num_written.float().mean())
    return Score(_hits(groups.items, prompts), float(right.float().mean()), tokens)


def _hits(items: torch.Tensor, prompts: Prompts) -> float:
    return float((items[..., None] == prompts.target_items[:, None]).any(-1).float().mean())


def right_thoughts(policy: Policy, prompts: Prompts) -> list[str]:
    """What follows from the categories that each prompt names."""
    start, end = policy.catalog.level_tokens(0)
    named = [[t - start for t in row if start <= t < end] for row in prompts.tokens.tolist()]
    rows = (Row(clicks, [], []) for clicks in named)
    return [f"<think>{' '.join(map(str, row.sums))}</think>" for row in rows]


def run_seed(folder: Path, seed: int, methods: Sequence[str]) -> list[dict[str, Any]]:
    """All runs of a seed; a line for every policy that was kept."""
    HiddenWorld(seed).write(folder)
    data, catalog, lines = str(folder / "data"), str(folder / "catalog"), []
    prepare(PrepareConfig(rows=str(folder / "files"), output=data, seed=seed))
    tokenize(TokenizeConfig(data=data, output=catalog))

    def keep(name: str, kind: str, started: float, **policies: Path) -> None:
        for step, policy in policies.items():
            facts = {"seed": seed, "run": name, "kind": kind, "step": int(step[1:])}
            cpu_s = round(time.process_time() - started)
            lines.append(facts | {"cpu_s": cpu_s} | score(folder, policy)._asdict())
            print(json.dumps(lines[-1]), flush=True)

    for kind, prefix in {"thoughts": None, "items": EMPTY}.items():
        begun = {"seed": seed, "threads": 1, "valid_rows": 16}
        chats = begun | {
            "data": data,
            "catalog": catalog,
            "plain_text": str(folder / f"{kind}.jsonl"),
            "task_weights": {"video": 0, "plain_text": 1},
            "batch_windows": BATCH,
            "dropout": 0.0,
            "epochs": 1000,
            "patience": 1000,
            "keep": "last",
        }
        sft, started = folder / f"sft_{kind}", time.process_time()
        model = ModelConfig(path=str(folder / "qwen3"))
        prompt = PromptConfig(prefix=prefix)
        steps = {"max_steps": SFT_STEPS, "lr": SFT_LR}
        train_sft(SFTConfig(output=str(sft), model=model, prompt=prompt, **chats, **steps))
        keep("SFT", kind, started, _0=sft / "policy")
        more, started = folder / f"more_{kind}", time.process_time()
        model = ModelConfig(path=str(sft / "policy"))
        steps = {"max_steps": RL_STEPS, "lr": RL_LR}
        train_sft(SFTConfig(output=str(more), model=model, prompt=prompt, **chats, **steps))
        keep("more SFT", kind, started, **{f"_{RL_STEPS}": more / "policy"})
        sampler = {"sampler": "beam", "sampler_args": {}}
        if kind == "thoughts":
            limits = {"thoughts": THOUGHTS, "max_thought_tokens": MOST}
            sampler = {"sampler": "think", "sampler_args": limits}
        for method in methods:
            run, started = folder / f"{method}_{kind}", time.process_time()
            config = RLConfig(
                output=str(run),
                data=data,
                policy=str(sft / "policy"),
                method=method,
                **sampler,
                group_size=ITEMS,
                steps=RL_STEPS,
                prompts_per_step=PROMPTS_PER_STEP,
                lr=RL_LR,
                eval_every=RL_STEPS,
                save_every=SAVE_EVERY,
                **begun,
            )
            train_rl(config)
            steps = range(SAVE_EVERY, RL_STEPS + 1, SAVE_EVERY)
            keep(method, kind, started, **{f"_{s}": run / "steps" / str(s) for s in steps})
    return lines
