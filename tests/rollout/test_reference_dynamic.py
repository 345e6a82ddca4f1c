"""ReRe's dynamic sampling against its definition in plain Python."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.rollout.dynamic import dynamic, select_dynamic
from recast.rollout.sample import draw_items, sample
from recast.types import Draw, RecastError

ROW = Draw(seed=3, step=2)


def _reference(drawn: list[int], targets: set[int], group_size: int) -> list[int]:
    """Items kept, in order: the released code, with the copies of several targets first."""
    kept = [item for item in drawn if item in targets][:group_size]
    left = Counter(item for item in drawn if item not in targets)
    by_count = [item for item, _ in sorted(left.items(), key=lambda pair: -pair[1])]
    while len(kept) < group_size:
        for item in by_count:
            if left[item] > 0 and len(kept) < group_size:
                kept.append(item)
                left[item] -= 1
    return kept


def _kept(drawn: str, target: str, group_size: int) -> str:
    items = torch.tensor([[ord(letter) for letter in drawn]])
    chosen = select_dynamic(items, items == ord(target), group_size)
    return "".join(drawn[i] for i in chosen[0].tolist())


def test_worked_examples() -> None:
    assert _kept("aabTca", "T", 4) == "Tabc"
    assert _kept("aaaabb", "T", 4) == "abab"


def test_ties_and_copies_of_the_target() -> None:
    assert _kept("cbbaac", "T", 3) == "cba"  # twice each: as first drawn
    assert _kept("cbbaca", "T", 5) == "cbacb"
    assert _kept("aTTaTT", "T", 4) == "TTTT"
    assert _kept("TaTbTcTd", "T", 3) == "TTT"
    assert _kept("aaaaaa", "T", 4) == "aaaa"
    assert _kept("T", "T", 1) == "T"


def test_of_equal_draws_the_earlier_is_kept() -> None:
    items = torch.tensor([[5, 7, 5, 9, 7, 5]])
    assert select_dynamic(items, items == 9, 5).tolist() == [[3, 0, 1, 2, 4]]


def test_a_missing_draw_is_taken_last() -> None:
    items = torch.tensor([[-1, 4, -1, 4], [-1, -1, -1, -1]])
    chosen = select_dynamic(items, torch.zeros_like(items, dtype=torch.bool), 3)
    assert items.gather(1, chosen).tolist() == [[4, 4, -1], [-1, -1, -1]]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_batch_equals_the_definition(data: st.DataObject) -> None:
    group_size = data.draw(st.integers(1, 6))
    num_draws = data.draw(st.integers(group_size, 12))
    row = st.lists(st.integers(0, 5), min_size=num_draws, max_size=num_draws)
    drawn = data.draw(st.lists(row, min_size=1, max_size=4))
    targets = data.draw(st.sets(st.integers(0, 6), max_size=2))
    items = torch.tensor(drawn)
    is_target = torch.isin(items, torch.tensor(sorted(targets), dtype=torch.long))
    chosen = select_dynamic(items, is_target, group_size)
    wanted = [_reference(one, targets, group_size) for one in drawn]
    assert items.gather(1, chosen).tolist() == wanted
    assert all(len(set(index)) == group_size for index in chosen.tolist())


def test_the_group_is_the_selection_of_the_draws_of_sample_most_probable_first() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0, 1], [2]] * 20, [[7, 4], [5]] * 20)
    for oversample, num_draws in ((1.5, 7), (1.0, 5), (2.9, 14)):
        groups = dynamic(policy, prompts, 5, ROW, oversample=oversample)
        drawn = draw_items(policy, prompts, num_draws, ROW)
        for row in range(40):
            targets = {7, 4} if row % 2 == 0 else {5}
            wanted = _reference(drawn.items[row].tolist(), targets, 5)
            assert sorted(groups.items[row].tolist()) == sorted(wanted)
        total = groups.rollout_logprobs.sum(-1)
        assert (total[:, 1:] <= total[:, :-1]).all()
        assert torch.equal(catalog.tokens_of(groups.items), groups.tokens)
        assert groups.weights is None
    first = draw_items(policy, prompts, 5, ROW).items
    assert torch.equal(first, drawn.items[:, :5])
    assert torch.equal(first.sort().values, sample(policy, prompts, 5, ROW).items.sort().values)


def test_it_has_more_distinct_items_than_sampling_and_not_fewer_hits() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0, 1]] * 200, [[7]] * 200)
    kept, plain = (f(policy, prompts, 4) for f in (dynamic, sample))

    def distinct(items: torch.Tensor) -> int:
        return sum(len(set(row)) for row in items.tolist())

    assert distinct(kept.items) > distinct(plain.items)
    assert ((kept.items == 7).sum(1) >= (plain.items == 7).sum(1)).all()
    assert (kept.items == 7).sum() > (plain.items == 7).sum()


def test_a_row_without_a_candidate_has_no_rollout() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    seen = [list(range(8)), [0, 1, 2, 3, 4, 5, 6]]
    prompts = tiny.make_prompts(catalog, [[1], [2]], [[0], [7]], seen)
    groups = dynamic(policy, prompts, 3)
    assert groups.items.tolist() == [[-1] * 3, [7] * 3]
    assert groups.exists.tolist() == [[False] * 3, [True] * 3]


def test_an_oversample_out_of_range_is_refused() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[1]], [[2]])
    for value in (0.9, float("inf"), float("nan")):
        with pytest.raises(RecastError, match=f"oversample is {value}: give a number from 1 to 16"):
            dynamic(policy, prompts, 2, oversample=value)
