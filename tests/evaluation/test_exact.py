"""Exact scores against a beam search that drops nothing."""

from __future__ import annotations

import pytest
import tiny
import torch
from small_events import small_events

from recast.evaluation.exact import affordable_rows, exact_scores, is_elsewhere, places_of
from recast.evaluation.rank import rank_policy
from recast.items.catalog import Catalog, build_catalog
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.types import Draw, LogprobSpace, Prompts

# Two leaves are shared; of one of them both items are seen below.
CODES = tiny.random_catalog(40, (4, 4, 5)).codes.clone()
CODES[1], CODES[3] = CODES[0], CODES[2]
SHARED = build_catalog(CODES, (4, 4, 5))
ITEMS, LEAVES = SHARED.num_items, SHARED.trie.num_leaves
SCORES = 4 * torch.randn(2, 40, generator=torch.Generator().manual_seed(3))


def some_scores(prompts: Prompts, items: torch.Tensor) -> torch.Tensor:
    return SCORES[:, : items.shape[1]]


GUIDES = {
    "none": Decoder(),
    "d3": Decoder(guide=some_scores, alpha=0.4),
    "mixture": Decoder(guide=some_scores, alpha=0.4, kind="mixture"),
}


@pytest.mark.parametrize(
    ("catalog", "space", "guide"),
    [
        (SHARED, "full", "none"),
        (SHARED, "level", "d3"),
        (SHARED, "trie", "mixture"),
        (tiny.random_texts(40), "full", "mixture"),
        (tiny.random_texts(40), "trie", "none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_is_what_beams_as_wide_as_the_catalogue_are_ranked_by(
    catalog: Catalog, space: LogprobSpace, guide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recast.policy.logprobs._TOKENS", 21)
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0, 1, 5], [2]], [[4], [7]], [[0, 1, 5], [2]])
    scores = exact_scores(policy, prompts, GUIDES[guide], space)
    leaves = catalog.trie.num_leaves
    beams = beam_search(policy, prompts, leaves, Draw(logprob_space=space), GUIDES[guide])
    for row in range(2):
        items = beams.items[row][beams.items[row] >= 0]
        order = scores[row].argsort(descending=True)[: len(items)]
        assert order.tolist() == catalog.trie.leaves[items].tolist()
        assert int((scores[row] > -torch.inf).sum()) == len(items)
        if guide == "none":
            own = beams.rollout_logprobs[row].sum(1)[: len(items)]
            torch.testing.assert_close(scores[row][order], own)


@pytest.mark.parametrize("width", [2, 5, LEAVES])
def test_targets_that_the_beams_lose_are_found(width: int) -> None:
    draw = torch.Generator().manual_seed(1)
    users = [torch.randperm(ITEMS, generator=draw)[:5].tolist() for _ in range(60)]
    policy = tiny.tiny_policy("qwen3", SHARED)
    task = tiny.task_of(small_events(users, num_items=ITEMS), policy)
    rows = task.rows("test")
    narrow, whole = (rank_policy(policy, task, rows, k).sid_rank for k in (width, LEAVES))
    exact = places_of(policy, task, rows, Decoder(), "full")
    assert bool(((exact[0] <= whole) & (whole <= exact[1])).all())
    sure = exact[0] == exact[1]
    assert float(sure.float().mean()) > 0.9  # others are as good as equal to another item
    wanted = narrow != whole.where(whole <= width, 0)
    assert torch.equal(is_elsewhere(narrow, exact, width)[sure], wanted[sure])
    assert bool(wanted.any()) == (width < LEAVES)


def test_rows_for_a_tenth_of_what_the_beams_cost() -> None:
    """40 items of one level above the last: 8 clusters and 40 // 8 = 5 for the leaves, 13 a row.
    100 rows of 30 tokens and 10 beams of 2 tokens are 5,000: a tenth of them is 38 rows."""
    catalog = build_catalog(torch.stack([torch.arange(40) // 5, torch.arange(40)], 1), (8, 40))
    lengths = torch.full((100,), 30)
    assert affordable_rows(catalog, lengths, 10) == 38
    assert affordable_rows(catalog, lengths[:1], 1) == 1
    assert affordable_rows(catalog, lengths.repeat(100), 10) == 500


def test_three_items_of_a_token_each_cost_a_token() -> None:
    """(100 * 30 + 100 * 10) // (10 * 1): 3 // 8 of a token would be none."""
    catalog = build_catalog(torch.arange(3)[:, None], (3,))
    assert affordable_rows(catalog, torch.full((100,), 30), 10) == 400
    policy = tiny.tiny_policy("qwen3", catalog)
    task = tiny.task_of(small_events([[0, 1, 2]] * 4, num_items=3), policy)
    assert places_of(policy, task, task.rows("test")[:2], Decoder(), "full").shape == (2, 2, 1)
