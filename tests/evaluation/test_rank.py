from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_events import small_events
from torch import Tensor

from recast.evaluation import rank as evaluate
from recast.evaluation.metrics import row_metrics
from recast.evaluation.rank import (
    batches_of,
    rank_policy,
    rank_scores,
    rows_to_rank,
    sample_rows,
)
from recast.evaluation.validation import validate
from recast.items.catalog import Catalog, build_catalog
from recast.policy.memory import cached_bytes
from recast.rollout.beam import beam_search
from recast.types import Interactions, RecastError

# Items 0 and 1 share a SID, and 5, 6 and 7.
SHARED = build_catalog(
    torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]] + [[2, 2]] * 3), (3, 3)
)


def fixed(table: Tensor) -> evaluate.Scorer:
    """A scorer that reads row r's scores from `table[r]`."""
    return lambda data, rows: table[rows]


def test_a_split_without_a_row_says_which_have_some() -> None:
    data = small_events([[2, 4]], num_items=8)
    with pytest.raises(RecastError, match="run/data has no row to rank in valid, only in test: "):
        rows_to_rank(data, "run/data", "valid")


def slow_place(order: list[int], catalog: Catalog, target: int) -> tuple[int, int]:
    """`sid_rank` and `items_before` of a target in a list of candidate items, best first."""
    sids = [tuple(catalog.codes[item].tolist()) for item in order]
    sid = tuple(catalog.codes[target].tolist())
    return list(dict.fromkeys(sids)).index(sid) + 1, order.index(target)


def test_places_by_hand() -> None:
    data = small_events([[2, 4], [0, 3]], num_items=8)
    scores = torch.tensor([9.0, 1, 8, 2, 3, 7, 6, 0])
    ranks = rank_scores(fixed(scores.expand(4, -1)), data, SHARED, torch.tensor([1, 3]))
    # Row 1 (2 is seen): 0 | 5 6 | 4. Row 3 (0 is seen): 2 | 5 6 | 4 | 3, and 1, 7 behind.
    assert ranks.items_before.tolist() == [[3], [4]]
    assert ranks.sid_rank.tolist() == [[3], [4]]
    assert ranks.num_sharing.tolist() == [[1], [1]]
    assert ranks.users.tolist() == [0, 1]
    assert ranks.row_ids.tolist() == [1, 3]


def test_a_sid_stands_where_its_best_item_stands() -> None:
    data = small_events([[2, 7]], num_items=8)
    scores = torch.tensor([[1.0, 9, 0, 3, 2, 8, 0, 0]])
    ranks = rank_scores(fixed(scores.expand(2, -1)), data, SHARED, torch.tensor([1]))
    # 7 itself comes after 1, 5, 3, 4, 0 at least; its SID's best item, 5, only after 1.
    assert ranks.sid_rank.tolist() == [[2]]
    assert ranks.items_before.item() >= 5


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_ranking_equals_a_sorted_list(draw: st.DataObject, shared: bool, exclude: bool) -> None:
    catalog = SHARED if shared else tiny.tiny_catalog()
    sequences = [draw.draw(st.permutations(range(8)))[: 2 + i] for i in range(3)]
    data = small_events(sequences, num_items=8, exclude_seen=exclude)
    rows = data.rows("test")
    table = torch.tensor(
        [draw.draw(st.lists(st.integers(0, 3), min_size=8, max_size=8)) for _ in data.items]
    ).double()
    ranks = rank_scores(fixed(table), data, catalog, rows, seed=3)
    priority = torch.randperm(8, generator=torch.Generator().manual_seed(3)).tolist()
    for i, row in enumerate(rows.tolist()):
        seen = set(data.items[data.starts[row] : row].tolist()) if exclude else set()
        scores = table[row].tolist()
        order = sorted(set(range(8)) - seen, key=lambda item: (-scores[item], priority[item]))
        place = slow_place(order, catalog, int(data.items[row]))
        assert (int(ranks.sid_rank[i]), int(ranks.items_before[i])) == place


def test_a_tie_favours_nobody() -> None:
    data = small_events([[0, 1]], num_items=8)
    level = fixed(torch.zeros(2, 8))
    rows = torch.tensor([1])
    places = [
        int(rank_scores(level, data, tiny.tiny_catalog(), rows, seed=seed).items_before)
        for seed in range(200)
    ]
    assert set(places) == set(range(7))
    assert sum(places) / len(places) == pytest.approx(3, abs=0.45)  # 3 standard errors


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_events([[2, 4, 1], [0, 3, 7, 5]], num_items=8)
    scorer = fixed(torch.randint(0, 3, (7, 8), generator=torch.Generator().manual_seed(0)).float())
    whole = rank_scores(scorer, data, SHARED, data.rows("test"))
    monkeypatch.setattr(evaluate, "_CELLS", 8)
    single = rank_scores(scorer, data, SHARED, data.rows("test"))
    assert torch.equal(whole.items_before, single.items_before)
    assert torch.equal(whole.sid_rank, single.sid_rank)


def test_a_score_that_is_no_number_is_refused() -> None:
    data = small_events([[0, 1], [2, 3]], num_items=8)
    table = torch.zeros(4, 8)
    table[3, 6] = torch.nan
    with pytest.raises(RecastError, match="gave NaN for row 3: give every item a number"):
        rank_scores(fixed(table), data, SHARED, torch.tensor([1, 3]))


def many_events(catalog: Catalog, exclude_seen: bool = True) -> Interactions:
    draw = torch.Generator().manual_seed(1)
    sequences = [
        torch.randperm(catalog.num_items, generator=draw)[: 2 + user % 6].tolist()
        for user in range(12)
    ]
    return small_events(sequences, num_items=catalog.num_items, exclude_seen=exclude_seen)


@pytest.mark.parametrize("catalog", [SHARED, tiny.tiny_catalog()], ids=["shared", "unique"])
@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("beam_width", [1, 3, 10])
def test_policy_places_equal_a_walk_down_its_beams(
    catalog: Catalog, exclude_seen: bool, beam_width: int
) -> None:
    data = many_events(catalog, exclude_seen)
    policy = tiny.tiny_policy("qwen3", catalog)
    rows = data.rows("test")
    ranks = rank_policy(policy, tiny.task_of(data, policy), rows, beam_width)
    assert torch.equal(ranks.row_ids, rows)
    codes = [tuple(code) for code in catalog.codes.tolist()]
    not_found = 0
    for i, row in enumerate(rows.tolist()):
        prompts = tiny.task_of(data, policy).prompts(torch.tensor([row]))
        beams = beam_search(policy, prompts, beam_width)
        seen = set(data.items[data.starts[row] : row].tolist()) if exclude_seen else set()
        listed = [codes[item] for item in beams.items[0].tolist() if item >= 0]
        left = [[j for j in range(len(codes)) if codes[j] == c and j not in seen] for c in listed]
        target = codes[int(data.items[row])]
        place = listed.index(target) if target in listed else len(listed)
        not_found += place == len(listed)
        assert int(ranks.sid_rank[i]) == (place + 1 if place < len(listed) else 0)
        assert int(ranks.items_before[i]) == sum(map(len, left[:place]))
        sharing = [j for j in range(len(codes)) if codes[j] == target and j not in seen]
        assert int(ranks.num_sharing[i]) == len(sharing)
    assert (not_found > 0) == (beam_width < 10)


def test_policy_places_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data = many_events(SHARED)
    policy = tiny.tiny_policy("qwen3", SHARED)
    whole = rank_policy(policy, tiny.task_of(data, policy), data.rows("test"), 4)
    monkeypatch.setattr(evaluate, "_MAX_BATCH", 3)
    few = rank_policy(policy, tiny.task_of(data, policy), data.rows("test"), 4)
    assert torch.equal(whole.sid_rank, few.sid_rank)
    assert torch.equal(whole.items_before, few.items_before)


def test_a_device_of_much_memory_takes_more_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of one row are all that a CPU takes at once, of 8 another device; an eighth of its
    memory for the keys and values of 3."""
    data, policy = many_events(SHARED), tiny.tiny_policy("qwen3", SHARED)
    task, rows = tiny.task_of(data, policy), data.rows("test")
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    monkeypatch.setattr(evaluate, "_CELLS", 256 * vocabulary)

    def sizes() -> list[int]:
        return [len(batch) for batch in batches_of(policy, task, rows, 256)]

    assert sizes() == [1] * len(rows)
    monkeypatch.setattr(Catalog, "device", torch.device("cuda"))
    monkeypatch.setattr(evaluate, "all_bytes", lambda device: float("inf"))
    assert max(sizes()) == 8
    longest = int(task.lengths(rows).max()) + 256 * SHARED.max_length
    room = 8 * 3 * longest * cached_bytes(policy)
    monkeypatch.setattr(evaluate, "all_bytes", lambda device: float(room))
    assert sizes()[0] == 3


def test_no_rows_give_no_ranks() -> None:
    data = many_events(SHARED)
    nothing = torch.empty(0, dtype=torch.long)
    policy = tiny.tiny_policy("qwen3", SHARED)
    assert len(rank_policy(policy, tiny.task_of(data, policy), nothing, 4).sid_rank) == 0
    assert len(rank_scores(fixed(torch.zeros(1, 8)), data, SHARED, nothing).sid_rank) == 0


def test_validation_reads_the_same_numbers_and_leaves_the_mode() -> None:
    data, policy = many_events(SHARED), tiny.tiny_policy("qwen3", SHARED)
    rows = data.rows("test")
    expected = row_metrics(rank_policy(policy, tiny.task_of(data, policy), rows, 32))
    policy.model.train()
    found = validate(policy, tiny.task_of(data, policy), rows)
    assert policy.model.training
    assert found == {
        "valid/ndcg@10": float(expected["item/ndcg@10"].mean()),
        "valid/hr@10": float(expected["item/hr@10"].mean()),
    }
    policy.model.eval()
    # More beams than 32 where a cut needs them: all 8 items here.
    chosen = validate(policy, tiny.task_of(data, policy), rows, ["recall@3", "hr@50"])
    places = row_metrics(rank_policy(policy, tiny.task_of(data, policy), rows, 50), at=[3, 50])
    assert chosen == {
        "valid/recall@3": pytest.approx(float(places["item/hr@3"].mean())),  # of one target
        "valid/hr@50": float(places["item/hr@50"].mean()),
    }


def test_a_sample_of_rows_is_fixed() -> None:
    data = many_events(SHARED)
    rows = data.rows("test")
    few = sample_rows(data.rows("test"), 5)
    assert len(few) == 5
    assert torch.equal(few, few.unique())
    assert torch.isin(few, rows).all()
    assert torch.equal(few, sample_rows(data.rows("test"), 5))
    assert torch.equal(sample_rows(data.rows("test"), 10_000), rows.sort().values)
