"""Ranks of twenty made-up rows of six users, and their comparison."""

from __future__ import annotations

import torch

from recast.evaluation.compare import compare
from recast.evaluation.facts import Facts
from recast.evaluation.metrics import Ranks
from recast.evaluation.results import Results

USERS = torch.arange(20) % 6


FACTS = Facts(
    split="test", split_name="by time", num_candidates=30, exclude_seen=True, beam_width=50
)


def ranks_of(seed: int, sharing: int = 1) -> Ranks:
    place = torch.randint(0, 12, (20, 1), generator=torch.Generator().manual_seed(seed))
    return Ranks(
        row_ids=torch.arange(20) + 100,
        users=USERS,
        sid_rank=place,
        items_before=(place - 1).clamp(min=0),
        num_sharing=torch.full((20, 1), sharing),
        item_mask=torch.ones(20, 1, dtype=torch.bool),
        sid_mask=torch.ones(20, 1, dtype=torch.bool),
        facts=FACTS,
    )


def compared(**changes: object) -> Results:
    settings: dict = {
        "methods": {"SFT": ranks_of(0), "GRPO": ranks_of(1), "ReCast": ranks_of(2)},
        "against": ("SFT", "GRPO"),
        "training_seeds": [4],
        "extras": {"GRPO": {"rollouts": 320, "cpu_s": 1.5}},
        "draws": 200,
    } | changes
    return compare(settings.pop("methods"), settings.pop("against"), **settings)
