"""Rows written by hand, for the tests of this folder."""

from __future__ import annotations

from itertools import accumulate

import polars as pl
import torch

from recast.data.rows import Ragged, Rows
from recast.types import SPLITS


def ragged(lists: list[list[int]]) -> Ragged:
    values = [value for some in lists for value in some]
    return Ragged(
        offsets=torch.tensor([0, *accumulate(map(len, lists))]),
        values=torch.tensor(values, dtype=torch.long),
    )


def small_rows(
    targets: list[list[int]],
    *,
    prompts: list[str | None] | None = None,
    history: list[list[int]] | None = None,
    seen: list[list[int]] | None = None,
    splits: list[str] | None = None,
    tasks: list[int] | None = None,
    task_names: tuple[str, ...] = ("rows",),
    task_domains: tuple[int, ...] = (0,),
    domains: tuple[str, ...] = ("items",),
    is_chat: bool = False,
    num_items: int = 12,
) -> Rows:
    """Row n is user n's and asks for `targets[n]`; all in `test` unless said otherwise."""
    num = len(targets)
    texts = [None] * num if prompts is None else prompts
    names = ["test"] * num if splits is None else splits
    return Rows(
        users=torch.arange(num),
        splits=torch.tensor([SPLITS.index(name) for name in names]),
        tasks=torch.tensor([0] * num if tasks is None else tasks),
        times=None,
        prompts=pl.Series("prompt", texts, dtype=pl.String),
        is_chat=torch.tensor([is_chat and text is not None for text in texts]),
        history=ragged([[]] * num if history is None else history),
        targets=ragged(targets),
        seen=ragged([[]] * num if seen is None else seen),
        task_names=task_names,
        task_domains=torch.tensor(task_domains),
        domains=domains,
        num_users=num,
        num_items=num_items,
        exclude_seen=seen is not None,
        split_name="by hand",
    )
