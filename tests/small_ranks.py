"""Ranks of twenty made-up rows of six users, and their comparison."""

from __future__ import annotations

import torch

from recast.evaluation.compare import compare
from recast.evaluation.metrics import Ranks

USERS = torch.arange(20) % 6


def ranks_of(seed: int, sharing: int = 1) -> Ranks:
    place = torch.randint(0, 12, (20,), generator=torch.Generator().manual_seed(seed))
    return Ranks(
        row_ids=torch.arange(20) + 100,
        users=USERS,
        sid_rank=place,
        items_before=(place - 1).clamp(min=0),
        num_sharing=torch.full((20,), sharing),
    )


def compared(**changes: object) -> dict:
    settings: dict = {
        "methods": {"SFT": ranks_of(0), "GRPO": ranks_of(1), "ReCast": ranks_of(2)},
        "against": ("SFT", "GRPO"),
        "split": "test",
        "split_name": "by time",
        "training_seeds": [4],
        "extras": {"GRPO": {"rollouts": 320, "cpu_s": 1.5}},
        "draws": 200,
    } | changes
    return compare(settings.pop("methods"), settings.pop("against"), **settings)
