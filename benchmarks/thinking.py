"""A tiny policy learns to think: a world whose prompts hide the category, RL with and without
thoughts from the same weights, every policy's Pass@1 out.

    python -m benchmarks.thinking --output FOLDER --seeds 0 1 2

A user clicked four videos, of categories c1 to c4 of 7, and asks for one of (c1 + c2 + c3 + c4)
mod 7: two items of its pool of four, so the best policy has Pass@1 1/2, one that does not know the
category 1/14. Test rows have orders of categories that no other row has, so the sum must be worked
out; a thought may do it a step at a time, by naming the sum of the first one, two, three and four.

The first run of SFT reads right thoughts alone: the policy can work the sum out. The second gives
it habits by seed: half of its chats hold no thought, a quarter the right one, a quarter one that
goes wrong at some step. RL goes on from there on prompts that SFT has not seen, with a reward on
items alone: once with thoughts, once with an empty one in every prompt (`mute`). A third run of SFT
spends as many optimizer steps on the chats (`more`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

import recast
from benchmarks.recif import World
from benchmarks.recif_world import Sizes
from benchmarks.tiny_chat import chat_model, chat_tokenizer
from recast.config import ModelConfig, PromptConfig
from recast.errors import RecastError
from recast.policy.load import Policy, load_policy
from recast.policy.tasks import load_task
from recast.rollout.beam import beam_search
from recast.rollout.think import think
from recast.run.files import refuse_existing
from recast.types import Draw, Prompts

TASTES, CLICKS, POOL, TARGETS, ITEMS = 7, 4, 4, 2, 28
CHATS, PROMPTS, TEST, TEST_CLICKS = 1600, 600, 300, 400
"""Rows of SFT, of RL and of the table, which has so many of the 2,401 orders of categories."""
NO_THOUGHT, RIGHT = 0.5, 0.25
"""Shares of the chats that give habits."""
FIRST_STEPS, SFT_STEPS, RL_STEPS, SFT_LR, RL_LR = 1200, 150, 120, 3e-3, 3e-4
SFT: dict[str, Any] = {"batch_windows": 32, "dropout": 0.0, "schedule": "constant"}
SFT |= {"epochs": 1000, "patience": 1000, "keep": "last"}  # until max_steps
RL: dict[str, Any] = {"group_size": ITEMS, "prompts_per_step": 16, "steps": RL_STEPS, "lr": RL_LR}
RL |= {"eval_every": RL_STEPS, "save_every": RL_STEPS // 4}
LIMITS = {"thoughts": 7, "max_thought_tokens": 8}
READ: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "top_k": 50}
"""How OpenOneRec draws thoughts to be judged (arXiv 2512.24762)."""
EMPTY = "<think></think>\n"


class Row(NamedTuple):
    """What was clicked, by category and by item, and what is asked for."""

    clicks: list[int]
    items: list[int]
    targets: list[int]


def thought(clicks: Sequence[int]) -> str:
    """The right one.

    >>> thought([6, 3, 5, 1])
    '<think>6 2 0 1</think>'
    """
    return f"<think>{' '.join(str(total % TASTES) for total in accumulate(clicks))}</think>"


class HiddenWorld:
    """RecIF's items; rows whose category is a sum."""

    def __init__(self, seed: int) -> None:
        small = {"ads": 2 * (TASTES + 1), "products": 2 * (TASTES + 1), "keywords": 1, "labels": 1}
        sizes = Sizes(users=2, videos=POOL * (TASTES + 1), tastes=TASTES, seed=seed, **small)
        self.world, self.rng = World(sizes), np.random.default_rng(seed)
        self.videos = self.world.items["video"]
        orders = self.rng.permutation(TASTES**CLICKS)
        self.test = self._rows(orders[:TEST_CLICKS], TEST)
        self.train = self._rows(orders[TEST_CLICKS:], CHATS + PROMPTS)

    def _rows(self, orders: np.ndarray, count: int) -> list[Row]:
        found = []
        for order in self.rng.choice(orders, count).tolist():
            clicks = [order // TASTES**place % TASTES for place in range(CLICKS)]
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

    def habit(self, row: Row) -> str:
        """No thought, right or wrong from some step on, as `NO_THOUGHT` and `RIGHT` say."""
        kind = self.rng.random()
        if kind < NO_THOUGHT:
            return EMPTY
        clicks = list(row.clicks)
        if kind >= NO_THOUGHT + RIGHT:
            clicks[self.rng.integers(CLICKS)] += int(self.rng.integers(1, TASTES))
        return thought(clicks) + "\n"

    def write(self, folder: Path) -> None:
        """`files` for `recast prepare`, the chats, and a model of random weights."""
        files = folder / "files"
        files.mkdir(parents=True)
        sids = {"pid": self.videos.pids, "sid": [list(sid) for sid in self.videos.sids]}
        pl.DataFrame(sids).head(ITEMS).write_parquet(files / "video_ad_pid2sid.parquet")
        for name, rows in {"train": self.train[CHATS:], "test": self.test}.items():
            columns = {
                "source": ["RecIF_VideoRec"] * len(rows),
                "messages": [self.messages(row) for row in rows],
                "metadata": [json.dumps({"uid": number}) for number in range(len(rows))],
            }
            pl.DataFrame(columns).write_parquet(files / f"{name}.parquet")
        chats = self.train[:CHATS]
        kinds = {
            "right": [thought(row.clicks) + "\n" for row in chats],
            "habits": [self.habit(row) for row in chats],
        }
        for name, thoughts in kinds.items():
            lines = [f'{{"messages": {text}}}\n' for text in map(self.messages, chats, thoughts)]
            (folder / f"{name}.jsonl").write_text("".join(lines))
        words = ["user", "assistant", "Clicked videos: ", "What next?"] * 9
        tokenizer = chat_tokenizer(words + kinds["right"], vocab_size=320)
        tokenizer.save_pretrained(folder / "qwen3")
        chat_model(tokenizer).save_pretrained(folder / "qwen3")


class Score(NamedTuple):
    """Of a policy on the test rows, behind four thoughts each if it thinks: shares of first items
    that hit, of thoughts that say nothing, of those that say the four sums and nothing else, and
    of first items behind thoughts that say nothing that hit (None without such a thought)."""

    pass_at_1: float
    empty: float
    right: float
    pass_of_empty: float | None


def score(folder: Path, policy_folder: Path) -> Score:
    """Behind thoughts, or without one where the prompts hold an empty one."""
    policy = load_policy(policy_folder)
    task = load_task(folder / "data", policy)
    prompts = task.prompts(task.rows("test"))
    if policy.prompt.prefix is not None:
        pass_at_1 = float(_hits(beam_search(policy, prompts, 1, Draw()).items, prompts).mean())
        return Score(pass_at_1, 1.0, 0.0, pass_at_1)
    groups = think(policy, prompts, 4, Draw(), thoughts=4, max_thought_tokens=8, **READ)
    assert groups.thoughts is not None
    hits, lengths = _hits(groups.items, prompts), groups.thoughts.num_written
    is_right = torch.zeros_like(hits)
    for row, expected in enumerate(right_thoughts(policy, prompts)):
        for place, tokens in enumerate(groups.thoughts.tokens[row]):
            said = policy.tokenizer.decode(tokens[: lengths[row, place]])
            is_right[row, place] = said == expected
    is_empty = lengths == 2  # the tags alone
    without = float(hits[is_empty].mean()) if bool(is_empty.any()) else None
    hit, empty, right = (float(x.float().mean()) for x in (hits, is_empty, is_right))
    return Score(hit, empty, right, without)


def _hits(items: torch.Tensor, prompts: Prompts) -> torch.Tensor:
    is_hit: torch.Tensor = items[..., None] == prompts.target_items[:, None]
    return is_hit.any(-1).float()


def right_thoughts(policy: Policy, prompts: Prompts) -> list[str]:
    """What follows from the categories that each prompt names."""
    start, end = policy.catalog.level_tokens(0)
    return [
        thought([t - start for t in row if start <= t < end]) for row in prompts.tokens.tolist()
    ]


def run(folder: Path, seeds: Sequence[int], methods: Sequence[str]) -> None:
    """All runs, the first of SFT once, what follows by seed."""
    HiddenWorld(0).write(folder)
    data = str(folder / "data")
    recast.prepare(recast.PrepareConfig(rows=str(folder / "files"), output=data))
    recast.tokenize(recast.TokenizeConfig(data=data, output=str(folder / "catalog")))
    shared: dict[str, Any] = {"data": data, "threads": 1, "valid_rows": 16}

    def sft(name: str, start: str, **settings: Any) -> recast.SFTConfig:
        model, catalog = ModelConfig(path=str(folder / start)), str(folder / "catalog")
        both: dict[str, Any] = {"model": model, "catalog": catalog, "output": str(folder / name)}
        return recast.SFTConfig(**shared | both | settings)

    def learned(chats: str, steps: int, lr: float) -> dict[str, Any]:
        weights, file = {"video": 0, "plain_text": 1}, str(folder / f"{chats}.jsonl")
        return SFT | {"plain_text": file, "task_weights": weights, "max_steps": steps, "lr": lr}

    def rl(name: str, start: str, **settings: Any) -> recast.RLConfig:
        both: dict[str, Any] = {"policy": str(folder / start), "output": str(folder / name)}
        return recast.RLConfig(**shared | RL | both | settings)

    runs: list[recast.SFTConfig | recast.RLConfig] = [
        sft("right", "qwen3", **learned("right", FIRST_STEPS, SFT_LR))
    ]
    mute, thinks = PromptConfig(prefix=EMPTY), {"sampler": "think", "sampler_args": LIMITS}
    for seed in seeds:
        shared["seed"] = seed
        start = f"{seed}/sft/policy"
        runs += [
            sft(f"{seed}/sft", "right/policy", **learned("habits", SFT_STEPS, SFT_LR)),
            sft(f"{seed}/sft-mute", start, epochs=0, prompt=mute),
            sft(f"{seed}/more", start, **learned("habits", RL_STEPS, RL_LR)),
        ]
        for name in methods:
            beams = {"method": name, "sampler": "beam"}
            runs.append(rl(f"{seed}/{name}", start, method=name, **thinks))
            runs.append(rl(f"{seed}/{name}-mute", f"{seed}/sft-mute/policy", **beams))
    for config in runs:
        started = time.process_time()
        if isinstance(config, recast.RLConfig):
            recast.train_rl(config)
        else:
            recast.train_sft(config)
        cpu_s, output = round(time.process_time() - started), Path(config.output)
        kept = sorted(output.glob("steps/*"), key=lambda path: int(path.name))
        for policy in kept or [output / "policy"]:
            facts = {"policy": str(policy.relative_to(folder)), "cpu_s": cpu_s}
            print(json.dumps(facts | score(folder, policy)._asdict()), flush=True)


def main(given: Sequence[str] | None = None) -> None:
    """Write the folder, print a line for every policy."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thinking")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["openonerec_rl"])
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    try:
        refuse_existing(arguments.output)
        run(arguments.output, arguments.seeds, arguments.methods)
    except RecastError as error:
        sys.exit(f"benchmarks.thinking: {error}")


if __name__ == "__main__":
    main()
