"""Lists without replacement against the exact Plackett-Luce distribution."""

from __future__ import annotations

from collections import Counter
from math import exp

import naive
import pytest
import tiny
import torch

from recast.groups import select
from recast.items.catalog import build_catalog
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.rollout.lists import sample_lists
from recast.types import Draw, Prompts, RecastError

MANY = 6000


def _exact(policy: Policy, prompts: Prompts, row: int) -> dict[int, float]:
    plain = tiny.twin(policy.model)
    found = naive.item_logprobs(plain, policy.catalog, prompts, row, "trie")
    return {item: exp(sum(values)) for item, values in found.items()}


def _statistic(counts: Counter[tuple[int, ...]], wanted: dict[tuple[int, ...], float]) -> float:
    """Chi-square of counts; cells that expect fewer than 5 are counted as one."""
    total = sum(counts.values())
    rare = [cell for cell, p in wanted.items() if p * total < 5]
    expected = {cell: p * total for cell, p in wanted.items() if p * total >= 5}
    statistic = sum((counts[cell] - e) ** 2 / e for cell, e in expected.items())
    left = total - sum(expected.values())
    if left > 1e-6:
        statistic += (sum(counts[cell] for cell in rare) - left) ** 2 / left
    assert set(counts) <= set(wanted)
    return statistic


@pytest.mark.parametrize("seen", [[], [0, 1, 6]])
def test_order_follows_plackett_luce_and_lists_are_independent(seen: list[int]) -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0, 1]] * MANY, [[7]] * MANY, [seen] * MANY)
    groups = sample_lists(policy, prompts, 2, Draw(seed=2), list_length=3)
    lists = groups.items.view(MANY, 2, 3)
    p = _exact(policy, prompts, 0)
    ordered = {
        (a, b, c): p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b])
        for a in p
        for b in p
        for c in p
        if len({a, b, c}) == 3
    }
    assert sum(ordered.values()) == pytest.approx(1)
    counts = Counter(tuple(one) for one in lists.flatten(0, 1).tolist())
    assert _statistic(counts, ordered) < naive.chi_square_limit(len(ordered) - 1)
    first = Counter((item,) for item in lists[:, 0, 0].tolist())
    marginal = {(item,): value for item, value in p.items()}
    assert _statistic(first, marginal) < naive.chi_square_limit(len(marginal) - 1)
    both = Counter(tuple(one) for one in lists[:, :, 0].tolist())
    product = {(a, b): p[a] * p[b] for a in p for b in p}
    assert _statistic(both, product) < naive.chi_square_limit(len(product) - 1)


def test_items_are_distinct_within_a_list_and_recorded_as_the_update_sees_them() -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("qwen3", catalog)
    histories = [[1, 2, 3], [7], [], [8, 9]]
    prompts = tiny.make_prompts(catalog, histories, [[20], [21], [22], [23]], histories)
    drawn = []
    for space in ("full", "level", "trie"):
        groups = sample_lists(policy, prompts, 4, Draw(logprob_space=space), list_length=5)
        lists = groups.items.view(4, 4, 5)
        assert all(len(set(one)) == 5 for one in lists.flatten(0, 1).tolist())
        assert groups.exists.all()
        assert torch.equal(catalog.tokens_of(groups.items), groups.tokens)
        with torch.no_grad():
            again = branch_logprobs(policy, prompts, groups.tokens, space)
        assert (groups.rollout_logprobs - again).abs().max() <= 1e-5
        for row, seen in enumerate(histories):
            assert not set(groups.items[row].tolist()) & set(seen)
        drawn.append(groups.items)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    total = groups.rollout_logprobs.sum(-1)
    assert not (total[:, 1:] <= total[:, :-1]).all()  # lists keep the order drawn


def test_draws_depend_neither_on_the_batch_nor_on_its_order() -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("mistral", catalog)
    histories = [[1, 2, 3, 4, 5, 6], [7], [], [8, 9, 10]]
    prompts = tiny.make_prompts(catalog, histories, [[20], [21], [22], [23]], histories)
    whole = sample_lists(policy, prompts, 3, Draw(seed=3, step=4), list_length=4)
    for row in range(4):
        one = select(prompts, torch.tensor([row]))
        alone = sample_lists(policy, one, 3, Draw(seed=3, step=4), list_length=4)
        assert torch.equal(alone.tokens[0], whole.tokens[row])
    for other in (Draw(seed=4, step=4), Draw(seed=3, step=5)):
        changed = sample_lists(policy, prompts, 3, other, list_length=4)
        assert not torch.equal(changed.tokens, whole.tokens)


def test_fewer_items_than_ranks_leave_the_last_ranks_empty() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    seen = [[0, 1, 2, 3, 4, 5], list(range(8)), []]
    prompts = tiny.make_prompts(catalog, [[1], [2], [3]], [[6], [7], [5]], seen)
    for length in (3, 10):
        groups = sample_lists(policy, prompts, 2, list_length=length)
        exists = groups.exists.view(3, 2, length)
        wanted = [[i < n for i in range(length)] for n in (2, 0, 8)]
        assert exists.tolist() == [[row] * 2 for row in wanted]
        lists = groups.items.view(3, 2, length)
        assert all(set(one) == {6, 7} for one in lists[0, :, :2].tolist())
        assert (groups.items[~groups.exists] == -1).all()
        assert (groups.rollout_logprobs[~groups.exists] == 0).all()
        assert (groups.tokens[~groups.exists] == catalog.pad_token).all()
        assert groups.weights is None


def test_a_list_has_a_length() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[1]], [[2]])
    assert sample_lists(policy, prompts, 3, list_length=1).items.shape == (1, 3)
    with pytest.raises(RecastError, match="list_length is 0: give the number"):
        sample_lists(policy, prompts, 3, list_length=0)


def test_a_wide_node_of_another_row_does_not_move_the_draws() -> None:
    """Row 0 has seen all below the widest node, so its own search is narrower than row 1's."""
    leaves = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    codes = torch.tensor([[a, b, c] for a, b in leaves for c in range(3)])
    catalog = build_catalog(codes, (3, 4, 3))
    policy = tiny.tiny_policy("qwen3", catalog)
    seen = [list(range(6, 18)), []]
    prompts = tiny.make_prompts(catalog, [[7], [1]], [[0], [9]], seen)
    whole = sample_lists(policy, prompts, 5, list_length=6)
    alone = sample_lists(policy, select(prompts, torch.tensor([0])), 5, list_length=6)
    assert torch.equal(alone.items[0], whole.items[0])
    assert set(whole.items[0].tolist()) == set(range(6))
