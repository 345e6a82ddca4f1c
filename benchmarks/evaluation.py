"""Evaluation: the targets' ranks in the 50 best items, against transformers' beam search."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.harness import Row, cpu_seconds, main, random_catalog, tiny_policy
from benchmarks.rollout import Prefixes, prefixes_of, transformers_beams
from recast.evaluation.rank import rank_policy
from recast.policy.load import Policy
from recast.policy.tasks import HistoryTask, Task
from recast.types import Interactions

ROWS_AT_A_TIME = 8


def random_interactions(num_users: int, num_items: int, history: int) -> Interactions:
    """Users of `history` random events and one more, the row to rank."""
    draw = torch.Generator().manual_seed(0)
    users = torch.arange(num_users).repeat_interleave(history + 1)
    events = torch.arange(len(users))
    return Interactions(
        users=users,
        items=torch.randint(num_items, (len(users),), generator=draw),
        times=events,
        starts=users * (history + 1),
        splits=torch.where(events % (history + 1) == history, 3, 0),
        num_users=num_users,
        num_items=num_items,
        exclude_seen=False,
        split_name="made up",
    )


def transformers_lists(
    policy: Policy,
    task: Task,
    rows: Int[Tensor, " N"],
    width: int,
    prefixes: Prefixes,
) -> Int[Tensor, "N G"]:
    """The items of transformers' beam search, best first."""
    found = []
    for chunk in rows.split(ROWS_AT_A_TIME):
        prompts = task.prompts(chunk)
        sequences, _ = transformers_beams(policy, prompts, width, prefixes)
        found.append(policy.catalog.items_of(sequences))
    return torch.cat(found)


def run(smoke: bool) -> list[Row]:
    """One row: seconds per row of both sides."""
    num_rows, subset, width, history, num_items, codes = (
        (40, 4, 4, 5, 60, 8) if smoke else (5000, 32, 50, 85, 100_000, 256)
    )
    catalog = random_catalog(num_items, codes)
    policy, prefixes = tiny_policy(catalog), prefixes_of(catalog)
    interactions = random_interactions(num_rows, num_items, history)
    rows = interactions.rows("test")
    task = HistoryTask(interactions=interactions, catalog=policy.catalog, window=policy.window)
    few = rows[:subset]

    # A random target is in no list: the subset's are put at ranks 1, 2, .. of transformers' lists.
    lists = transformers_lists(policy, task, few, width, prefixes)
    place = torch.arange(len(few)) % width
    items = interactions.items.clone()
    items[few] = lists[torch.arange(len(few)), place]
    task = replace(task, interactions=replace(interactions, items=items))
    found = rank_policy(policy, task, few, width).sid_rank[:, 0]
    equal = float((found == place + 1).float().mean())
    assert equal > 0.9, f"{equal:.1%} of the ranks are equal"

    repeats = 1 if smoke else 2
    slow = cpu_seconds(
        lambda: transformers_lists(policy, task, few, width, prefixes), repeats, warmups=0
    )
    fast = cpu_seconds(lambda: rank_policy(policy, task, rows, width), 1, warmups=0)
    slow, fast = slow / len(few), fast / len(rows)
    return [
        Row(
            name="evaluation",
            what=f"evaluation, {num_rows:,} rows, beam {width}, prompt "
            f"{1 + history * catalog.num_levels}, {num_items:,} items: time per row",
            against=f"transformers' beam search with the constraint, on {len(few)} of the rows, "
            f"{ROWS_AT_A_TIME} at a time",
            value=slow / fast,
            bar=20,
            at_least=True,
            details=f"transformers {1000 * slow:.0f} ms, Recast {1000 * fast:.1f} ms a row, all "
            f"{num_rows:,} in {fast * num_rows:.0f} s; {equal:.1%} of the {len(few)} targets at "
            "the same rank",
        )
    ]


if __name__ == "__main__":
    main(run)
