"""A whole step over prompts that are rendered: rows of RecIF-Bench in a chat template.

A text is rendered and tokenized once, as a run does it; a row has several targets.
"""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import torch

from benchmarks.harness import Row, main, tiny_qwen3
from benchmarks.lengths import MixedStep, against_floor
from benchmarks.recif import ASKS, PERSONAS, World
from benchmarks.recif_world import Sizes
from benchmarks.tiny_chat import chat_tokenizer
from recast.config import PromptConfig
from recast.data.rows import Ragged, Rows
from recast.items.catalog import build_catalog
from recast.items.names import SidNames
from recast.policy.attention import ATTENTION
from recast.policy.chat import chat_task
from recast.policy.load import Policy
from recast.policy.tokenizer import add_names
from recast.types import SPLITS

NAMES = SidNames(pattern="<s_{level}_{code}>", begin="<|sid_begin|>", end="<|sid_end|>")
TARGETS = 4


def video_rows(world: World, counts: list[int]) -> Rows:
    """Rows of the task `video` whose histories have these numbers of items."""
    num_items, num_rows = len(world.items["video"].sids), len(counts)
    system = {"role": "system", "content": PERSONAS[0]}
    messages = []
    for count in counts:
        watched = world.sids("video", world.rng.integers(num_items, size=count).tolist())
        messages.append([system, {"role": "user", "content": ASKS["video"][0].format(watched)}])
    targets = [world.rng.choice(num_items, TARGETS, replace=False) for _ in counts]
    zeros = torch.zeros(num_rows, dtype=torch.long)
    nothing = Ragged(offsets=torch.zeros(num_rows + 1).long(), values=zeros[:0])
    return Rows(
        users=torch.arange(num_rows),
        splits=zeros + SPLITS.index("rl"),
        tasks=zeros,
        times=None,
        prompts=pl.Series(map(json.dumps, messages)),
        is_chat=zeros == 0,
        history=nothing,
        targets=Ragged(
            offsets=TARGETS * torch.arange(num_rows + 1),
            values=torch.from_numpy(np.concatenate(targets)),
        ),
        seen=nothing,
        task_names=("video",),
        task_domains=zeros[:1],
        domains=("items",),
        num_users=num_rows,
        num_items=num_items,
        exclude_seen=False,
        split_name="made up",
    )


def policy_of(world: World, hidden: int, layers: int) -> Policy:
    """The model of the CPU rows with a tokenizer that knows the videos' SIDs."""
    tokenizer = chat_tokenizer([*PERSONAS, *ASKS["video"]])
    codes = torch.tensor(world.items["video"].sids)
    sizes = tuple((codes.amax(0) + 1).tolist())
    first = len(tokenizer)
    add_names(tokenizer, NAMES.of(sizes), first, "the tokenizer")
    catalog = build_catalog(
        codes, sizes, names=NAMES, first_token=first, pad_token=tokenizer.pad_token_id
    )
    model = tiny_qwen3(len(tokenizer), ATTENTION, hidden, layers)
    prompt = PromptConfig(suffix="/no_think", prefix="<think></think>")
    return Policy(model=model, catalog=catalog, window=86, tokenizer=tokenizer, prompt=prompt)


def run(smoke: bool) -> list[Row]:
    """Histories of 2 to 585 items, evenly spread on a log scale, in mixed order."""
    hidden, layers, num_prompts, width, most, repeats = (
        (64, 2, 4, 4, 20, 1) if smoke else (256, 4, 8, 32, 585, 5)
    )
    counts = np.geomspace(2, most, num_prompts).round().astype(int).tolist()
    counts = [counts[(3 * place) % num_prompts] for place in range(num_prompts)]
    world = World(Sizes(users=2, videos=2000 if smoke else 20_000, history=1))
    policy = policy_of(world, hidden, layers)
    task = chat_task(video_rows(world, counts), policy)
    step = MixedStep(policy, task.prompts(task.rows("rl")), width)
    return [
        against_floor(
            "step_rendered_prompts", step, f"{hidden} x {layers}", repeats, kind="rendered "
        )
    ]


if __name__ == "__main__":
    main(run)
