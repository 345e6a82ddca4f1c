"""Places of several targets in beams and in scores, against a walk down plain lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_events import small_events
from torch import Tensor

from recast.evaluation import rank
from recast.evaluation.metrics import Ranks, row_metrics
from recast.evaluation.places import (
    FIELDS,
    check_targets,
    distinct,
    places_in_beams,
    places_in_scores,
    places_within_sids,
    shown_in_beams,
    shown_in_scores,
)
from recast.evaluation.rank import rank_policy, rank_scores
from recast.items.catalog import build_catalog
from recast.policy.tasks import HistoryTask, Task
from recast.types import Prompts, RecastError

# Items 0 and 1 share a SID, and 5, 6 and 7: SIDs a, b, c, d, e.
SHARED = build_catalog(
    torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]] + [[2, 2]] * 3), (3, 3)
)
SIDS = [[0, 1], [2], [3], [4], [5, 6, 7]]
SID_OF = {item: sid for sid, items in enumerate(SIDS) for item in items}


def padded(values: list[int], width: int) -> list[int]:
    return values + [-1] * (width - len(values))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_reference_places_in_beams(data: st.DataObject) -> None:
    popularity = data.draw(st.permutations(range(8)))
    beams, targets, seen, wanted = [], [], [], []
    shown: set[int] = set()
    most = data.draw(st.integers(1, 8))
    for _ in range(data.draw(st.integers(1, 3))):
        gone = data.draw(st.lists(st.integers(0, 7), max_size=5, unique=True))
        left = [item for item in range(8) if item not in gone]
        named = data.draw(st.lists(st.sampled_from(left), min_size=1, max_size=4))
        some = [sid for sid in range(5) if set(SIDS[sid]) - set(gone)]  # others are never listed
        listed = data.draw(st.permutations(some))[: data.draw(st.integers(0, 5))]
        beams.append(padded(list(listed), 5))
        targets.append(padded(named, 4))
        seen.append(padded(gone, 5))
        row = []
        for j, item in enumerate(once := list(dict.fromkeys(named))):
            candidates = [[i for i in SIDS[sid] if i not in gone] for sid in listed]
            own = [i for i in SIDS[SID_OF[item]] if i not in gone]
            place = listed.index(SID_OF[item]) if SID_OF[item] in listed else None
            before = candidates if place is None else candidates[:place]
            sid_rank = 0 if place is None else place + 1
            stands = max(own, key=lambda i: popularity[i]) == item
            earlier = [SID_OF[other] for other in once[:j]]
            is_new = SID_OF[item] not in earlier
            row.append((sid_rank, sum(map(len, before)), len(own), sid_rank * stands, 1, is_new))
        wanted.append(row)
        before = 0
        for sid in listed:
            left = set(SIDS[sid]) - set(gone)
            shown |= left if before < most else set()
            before += len(left)
    first = torch.tensor([[SIDS[sid][0] if sid >= 0 else -1 for sid in row] for row in beams])
    within = places_within_sids(SHARED, torch.tensor(popularity).double(), seed=0)
    named = distinct(torch.tensor(targets))
    found = places_in_beams(first, torch.tensor(seen), SHARED, named, within)
    assert shown_in_beams(first, torch.tensor(seen), SHARED, most).tolist() == sorted(shown)
    assert found.shape[:2] == (len(FIELDS), len(beams))
    for i, row in enumerate(wanted):
        assert found[:, i, : len(row)].T.tolist() == [list(map(int, place)) for place in row]
        assert not found[:, i, len(row) :].any()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_reference_places_in_scores(data: st.DataObject) -> None:
    scores = torch.tensor([data.draw(st.lists(st.integers(0, 3), min_size=8, max_size=8))])
    gone = data.draw(st.lists(st.integers(0, 7), max_size=5, unique=True))
    left = [item for item in range(8) if item not in gone]
    named = data.draw(st.lists(st.sampled_from(left), min_size=1, max_size=4))
    priority = torch.tensor(data.draw(st.permutations(range(8))))
    candidate = torch.tensor([[item in left for item in range(8)]])
    targets = distinct(torch.tensor([named]))
    found = places_in_scores(scores.double(), candidate, priority, targets, SHARED)[:, 0].T
    order = sorted(left, key=lambda item: (-int(scores[0, item]), int(priority[item])))
    sids = list(dict.fromkeys(SID_OF[item] for item in order))
    once = list(dict.fromkeys(named))
    for j, item in enumerate(once):
        is_new = SID_OF[item] not in [SID_OF[other] for other in once[:j]]
        place = order.index(item)
        expected = [sids.index(SID_OF[item]) + 1, place, 1, place + 1, 1, int(is_new)]
        assert found[j].tolist() == expected
    for most in (1, 3, 8):
        shown = shown_in_scores(scores.double(), candidate, priority, most)
        assert shown.tolist() == sorted(order[:most])


def test_equally_popular_items_stand_in_a_seeded_order() -> None:
    places = torch.stack([places_within_sids(SHARED, torch.ones(8), seed) for seed in range(60)])
    for items in SIDS:
        assert all(sorted(row) == list(range(len(items))) for row in places[:, items].tolist())
    assert len(places[:, 5].unique()) == 3
    again = places_within_sids(SHARED, torch.ones(8), 7)
    assert torch.equal(again, places[7])


def test_a_target_twice_is_one_target() -> None:
    assert distinct(torch.tensor([[4, 4, -1], [-1, 3, 3]])).tolist() == [[4], [3]]
    assert distinct(torch.empty(2, 0, dtype=torch.long)).tolist() == [[-1], [-1]]
    assert distinct(torch.empty(0, 3, dtype=torch.long)).shape == (0, 1)


@pytest.mark.parametrize(
    ("targets", "seen", "message"),
    [
        ([[3], [-1]], [[0], [0]], "row 9 has no target: leave it out of the rows that are ranked"),
        ([[3, 5], [1, 6]], [[4, -1], [2, 6]], "target item 6 of row 9 is among the row's seen"),
    ],
)
def test_targets_that_cannot_be_ranked(targets: list, seen: list, message: str) -> None:
    with pytest.raises(RecastError, match=message):
        check_targets(torch.tensor(targets), torch.tensor(seen), torch.tensor([8, 9]))
    check_targets(torch.tensor([[3, -1]]), torch.tensor([[4, -1]]), torch.tensor([8]))


@dataclass(frozen=True, kw_only=True)
class NextItems:
    """A task whose targets are the next items of the user, at most three, the first one twice."""

    inner: HistoryTask
    name: str = "next_items"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def targets(self, rows: Tensor) -> Tensor:
        events = self.inner.interactions
        named = []
        for row in rows.tolist():
            same = events.users[row : row + 3] == events.users[row]
            items = events.items[row : row + 3][same].tolist()
            named.append(padded([items[0], *items], 4))
        return torch.tensor(named).reshape(len(rows), 4)

    def prompts(self, rows: Tensor) -> Prompts:
        targets = self.targets(rows)
        prompts = self.inner.prompts(rows)
        return tiny.with_targets(SHARED, prompts, targets)


def several() -> tuple[Any, Any, Any]:
    draw = torch.Generator().manual_seed(1)
    events = small_events(
        [torch.randperm(8, generator=draw)[: 2 + user % 6].tolist() for user in range(12)],
        num_items=8,
    )
    policy = tiny.tiny_policy("qwen3", SHARED)
    return policy, NextItems(inner=tiny.task_of(events, policy)), events


def same_ranks(a: Ranks, b: Ranks) -> bool:
    names = [name for name in Ranks.__slots__ if isinstance(getattr(a, name), Tensor)]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_a_policy_ranks_several_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, task, events = several()
    assert isinstance(task, Task)
    rows, popular = events.rows("test"), torch.arange(8).double()
    ranks = rank_policy(policy, task, rows, 3, popularity=popular)
    counts = ranks.item_mask.sum(1)
    assert counts.tolist() == [
        min(3, int((events.users[r:] == events.users[r]).sum())) for r in rows
    ]
    assert sorted(counts.unique().tolist()) == [1, 2, 3]
    # The first target is the one of the plain task.
    single = rank_policy(policy, task.inner, rows, 3, popularity=popular)
    for name in ("sid_rank", "items_before", "num_sharing", "popular_rank"):
        assert torch.equal(getattr(ranks, name)[:, :1], getattr(single, name))
    first = row_metrics(single)["item/hr@1"]
    assert torch.equal(row_metrics(ranks)["item/first_pass@1"], first)
    assert bool((row_metrics(ranks)["item/pass@1"] >= first).all())
    # Neither batches nor how many targets the others have change anything.
    monkeypatch.setattr(rank, "_MAX_BATCH", 2)
    assert same_ranks(rank_policy(policy, task, rows, 3, popularity=popular), ranks)


def test_a_scorer_ranks_several_targets() -> None:
    _, task, events = several()
    rows = events.rows("test")
    table = torch.rand(len(events.items), 8, generator=torch.Generator().manual_seed(0))
    ranks = rank_scores(
        lambda data, chunk: table[chunk], events, SHARED, rows, targets=task.targets(rows)
    )
    for name in ("sid_rank", "items_before", "num_sharing", "popular_rank", "sid_mask"):
        assert not getattr(ranks, name)[~ranks.item_mask].any()
    for column in range(3):
        chosen = ranks.item_mask[:, column]
        moved = rows[chosen] + column
        order = rank_scores(
            lambda data, chunk: table[chunk],
            events,
            SHARED,
            rows[chosen],
            targets=events.items[moved][:, None],
        )
        assert torch.equal(ranks.items_before[chosen, column], order.items_before[:, 0])
        assert torch.equal(ranks.sid_rank[chosen, column], order.sid_rank[:, 0])
    assert ranks.facts.split == "test"
    assert ranks.facts.beam_width is None
    assert ranks.facts.ties == "random"


def test_a_row_without_a_target_is_refused() -> None:
    _, _, events = several()
    rows = events.rows("test")
    with pytest.raises(RecastError, match="has no target: leave it out"):
        rank_scores(
            lambda data, chunk: torch.zeros(len(chunk), 8),
            events,
            SHARED,
            rows,
            targets=torch.full((len(rows), 2), -1),
        )


def test_a_beam_of_all_sids_is_the_whole_catalogue() -> None:
    policy, task, events = several()
    rows = events.rows("test")
    widths = [rank_policy(policy, task, rows, width).facts.beam_width for width in (4, 5, 32)]
    assert widths == [4, None, None]
