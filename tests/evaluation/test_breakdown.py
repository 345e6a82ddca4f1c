from __future__ import annotations

from dataclasses import replace
from math import log2

import pytest
import torch
from small_events import small_events
from small_ranks import FACTS

from recast.evaluation.breakdown import breakdown
from recast.evaluation.ranks import Ranks
from recast.types import SPLITS


def test_groups_by_hand() -> None:
    """Item 7 has 3 events in train and 1 in rl, item 8 has 1 in train; the targets of three rows
    are 7, 8 and 8, at places 1, 3 and none, behind histories of 5, 1 and 10 events."""
    users = [[7, 0, 1, 2, 3, 7], [0, 8], [7, 8, 7, 0, 1, 2, 3, 4, 5, 7, 8]]
    data = small_events(users, num_items=9, exclude_seen=False)
    splits = torch.full_like(data.splits, SPLITS.index("train"))
    splits[[5, 7, 18]] = SPLITS.index("test")
    splits[17] = SPLITS.index("rl")  # the last 7 of the third user
    data = replace(data, splits=splits)
    place, yes = torch.tensor([[1], [3], [0]]), torch.ones(3, 1, dtype=torch.bool)
    rows = torch.tensor([5, 7, 18])
    ranks = Ranks(
        row_ids=rows,
        users=data.users[rows],
        sid_rank=place,
        items_before=(place - 1).clamp(min=0),
        num_sharing=torch.ones_like(place),
        item_mask=yes,
        sid_mask=yes,
        facts=FACTS,
    )
    found = breakdown(ranks, data, ("train", "rl"))
    half = pytest.approx(1 / log2(4) / 2)
    none = {"hr@10": None, "ndcg@10": None}
    assert found["events_of"] == ["train", "rl"]
    assert found["by_events"] == [
        {"least": 0, "most": 2, "rows": 2, "hr@10": 0.5, "ndcg@10": half},
        {"least": 3, "most": 9, "rows": 1, "hr@10": 1.0, "ndcg@10": 1.0},
        {"least": 10, "most": 29, "rows": 0} | none,
        {"least": 30, "most": 99, "rows": 0} | none,
        {"least": 100, "most": None, "rows": 0} | none,
    ]
    assert found["by_history"] == [
        {"least": 1, "most": 3, "rows": 1, "hr@10": 1.0, "ndcg@10": pytest.approx(0.5)},
        {"least": 4, "most": 5, "rows": 1, "hr@10": 1.0, "ndcg@10": 1.0},
        {"least": 6, "most": 9, "rows": 0} | none,
        {"least": 10, "most": None, "rows": 1, "hr@10": 0.0, "ndcg@10": 0.0},
    ]
    # Lists of two: the third place is none of them.
    short = replace(ranks, sid_rank=place.where(place < 3, 0), facts=replace(FACTS, beam_width=2))
    by_history = breakdown(short, data, ("train",))["by_history"]
    assert [group["hr@2"] for group in by_history] == [0.0, 1.0, None, 0.0]
