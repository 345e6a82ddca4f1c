"""Constrained sampling against the exact distribution of a tiny catalogue."""

from __future__ import annotations

from collections import Counter
from math import exp

import naive
import pytest
import tiny
import torch

from recast.groups import select
from recast.policy.logprobs import branch_logprobs
from recast.rollout.dynamic import dynamic
from recast.rollout.sample import sample
from recast.types import Draw, RecastError


@pytest.mark.parametrize("seen", [None, [[0, 1, 6], [2, 3]]])
@pytest.mark.parametrize("space", ["full", "trie"])
def test_samples_follow_the_exact_distribution(space: str, seen: list[list[int]] | None) -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0, 1, 6], [2, 3]], [[7], [5]], seen)
    counts: list[Counter[int]] = [Counter(), Counter()]
    steps, group_size = 40, 50
    for step in range(steps):
        groups = sample(
            policy, prompts, group_size, Draw(logprob_space=space, seed=step % 4, step=step)
        )
        for row in range(2):
            counts[row].update(groups.items[row].tolist())
    plain = tiny.twin(policy.model)
    for row in range(2):
        exact = naive.item_logprobs(plain, catalog, prompts, row, "trie")
        expected = {i: steps * group_size * exp(sum(values)) for i, values in exact.items()}
        assert sum(expected.values()) == pytest.approx(steps * group_size)
        assert set(counts[row]) <= set(expected)
        assert min(expected.values()) >= 5  # the approximation behind the test holds
        statistic = sum((counts[row][i] - e) ** 2 / e for i, e in expected.items())
        assert statistic < naive.chi_square_limit(len(expected) - 1)


def cut_by_hand(shares: list[float], top_k: int, top_p: float) -> list[float]:
    """One candidate after the other, the most probable first, until enough are there."""
    kept, total = [0.0] * len(shares), 0.0
    order = sorted(range(len(shares)), key=lambda place: -shares[place])
    most = sum(shares[place] for place in order[: top_k or len(order)])
    for place in order[: top_k or len(order)]:
        if total >= top_p * most:
            break
        kept[place], total = shares[place], total + shares[place]
    return [share / sum(kept) for share in kept]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.5, 0, 1.0), (3.0, 0, 1.0), (2.0, 2, 1.0), (1.0, 0, 0.7), (3.0, 2, 0.6)],
)
def test_what_shapes_the_draws_does_not_shape_what_is_recorded(
    temperature: float, top_k: int, top_p: float
) -> None:
    """Item by item, level by level: softmax of log p / temperature among the allowed children."""
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0, 1, 6]], [[7]])
    counts: Counter[int] = Counter()
    shape = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for step in range(40):
        groups = sample(policy, prompts, 50, Draw(step=step), **shape)
        counts.update(groups.items[0].tolist())
    exact = naive.item_logprobs(tiny.twin(policy.model), catalog, prompts, 0, "trie")
    weights: dict[tuple[int, ...], float] = {}
    for item, values in exact.items():
        codes = tuple(catalog.codes[item].tolist())
        for level, value in enumerate(values):
            weights[codes[: level + 1]] = exp(float(value) / temperature)
    expected = {}
    for item in exact:
        codes, share = tuple(catalog.codes[item].tolist()), 1.0
        for level in range(3):
            paths = [path for path in weights if path[:-1] == codes[:level]]
            total = sum(weights[path] for path in paths)
            shares = cut_by_hand([weights[path] / total for path in paths], top_k, top_p)
            share *= shares[paths.index(codes[: level + 1])]
        expected[item] = 2000 * share
    assert sum(expected.values()) == pytest.approx(2000)
    assert {item for item in counts if expected[item] == 0} == set()
    large = {item: e for item, e in expected.items() if e >= 5}
    assert len(large) > 1
    statistic = sum((counts[item] - e) ** 2 / e for item, e in large.items())
    assert statistic < naive.chi_square_limit(len(large) - 1)
    recorded = branch_logprobs(policy, prompts, groups.tokens, "full")
    torch.testing.assert_close(groups.rollout_logprobs, recorded)


def test_the_most_probable_token_alone_is_greedy() -> None:
    """Every draw follows the largest logit, whatever the temperature; all of them is as before."""
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[1, 2, 3], [4]], [[20], [21]])
    for search in (sample, dynamic):
        for shape in ({"top_k": 1, "temperature": 2.0}, {"top_p": 1e-6}):
            groups = search(policy, prompts, 4, **shape)
            for row in range(2):
                exact = naive.item_logprobs(tiny.twin(policy.model), catalog, prompts, row, "trie")
                left = list(exact)
                for level in range(3):
                    best = max(left, key=lambda item: exact[item][level])
                    left = [
                        i for i in left if catalog.codes[i, level] == catalog.codes[best, level]
                    ]
                assert groups.items[row].tolist() == left * 4
        whole, cut = search(policy, prompts, 4), search(policy, prompts, 4, top_p=1.0, top_k=0)
        assert torch.equal(cut.tokens, whole.tokens)
        assert torch.equal(cut.rollout_logprobs, whole.rollout_logprobs)
        # Nothing is cut off, in another order of summing.
        assert torch.equal(search(policy, prompts, 4, top_k=5).tokens, whole.tokens)


def test_free_draws_follow_the_whole_vocabulary_but_for_seen_items() -> None:
    catalog = tiny.random_catalog(3, (3,), seed=2)
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0]], [[1]], [[0]])
    counts: Counter[int] = Counter()
    for step in range(40):
        groups = sample(policy, prompts, 50, Draw(step=step), constrained=False)
        counts.update(groups.tokens[0, :, 0].tolist())
    logits = tiny.twin(policy.model)(prompts.tokens[:, : int(prompts.lengths)]).logits[0, -1]
    seen = int(catalog.tokens_of(torch.tensor(0)))
    logprobs = logits.log_softmax(-1).tolist()
    shares = [0.0 if token == seen else exp(value) for token, value in enumerate(logprobs)]
    expected = {token: 2000 * share / sum(shares) for token, share in enumerate(shares)}
    assert counts[seen] == 0
    large = {token: e for token, e in expected.items() if e >= 5}
    statistic = sum((counts[token] - e) ** 2 / e for token, e in large.items())
    assert statistic < naive.chi_square_limit(len(large) - 1)
    for token, recorded in zip(
        groups.tokens[0, :, 0].tolist(), groups.rollout_logprobs[0, :, 0].tolist(), strict=True
    ):
        assert recorded == pytest.approx(logprobs[token], abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        *[({"temperature": t}, r"temperature is .*: give a number from 0.01 to 100")
          for t in (0.0, -1.0, float("nan"), float("inf"))],
        *[({"top_p": p}, r"top_p is .*: give a number above 0, up to 1")
          for p in (0.0, 1.5, float("nan"), True)],
        *[({"top_k": k}, r"top_k is .*: give a number of tokens, 0 for all")
          for k in (-1, True)],
    ],
)  # fmt: skip
def test_a_shape_that_is_none_is_refused(shape: dict[str, float], said: str) -> None:
    catalog = tiny.tiny_catalog()
    policy, prompts = tiny.tiny_policy("qwen3", catalog), tiny.make_prompts(catalog, [[0]], [[7]])
    for search in (sample, dynamic):
        with pytest.raises(RecastError, match=said):
            search(policy, prompts, 2, **shape)


def test_draws_of_one_group_are_independent() -> None:
    """Pairs of consecutive draws, in the order drawn, against the product distribution."""
    catalog = tiny.random_catalog(3, (3,), seed=2)
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0]], [[1]])
    pairs: Counter[int] = Counter()
    steps = 400
    for step in range(steps):
        groups = sample(policy, prompts, 2, Draw(step=step))
        pairs[int((groups.items[0] == 0).sum())] += 1
    plain = tiny.twin(policy.model)
    p = exp(naive.item_logprobs(plain, catalog, prompts, 0, "trie")[0][0])
    expected = [steps * (1 - p) ** 2, steps * 2 * p * (1 - p), steps * p**2]
    assert min(expected) >= 5
    assert sum((pairs[n] - e) ** 2 / e for n, e in enumerate(expected)) < naive.chi_square_limit(2)


def test_draws_depend_neither_on_the_batch_nor_on_its_order() -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("mistral", catalog)
    histories = [[1, 2, 3, 4, 5, 6], [7], [], [8, 9, 10]]
    prompts = tiny.make_prompts(catalog, histories, [[20], [21], [22], [23]], histories)
    whole = sample(policy, prompts, 8, Draw(seed=3, step=4))
    backwards = sample(policy, select(prompts, torch.tensor([3, 2, 1, 0])), 8, Draw(seed=3, step=4))
    assert torch.equal(backwards.tokens.flip(0), whole.tokens)
    for row in range(4):
        alone = sample(policy, select(prompts, torch.tensor([row])), 8, Draw(seed=3, step=4))
        assert torch.equal(alone.tokens[0], whole.tokens[row])
        torch.testing.assert_close(alone.rollout_logprobs[0], whole.rollout_logprobs[row])
    assert not torch.equal(sample(policy, prompts, 8, Draw(seed=3, step=5)).tokens, whole.tokens)
    assert not torch.equal(sample(policy, prompts, 8, Draw(seed=4, step=4)).tokens, whole.tokens)


def test_sampling_does_not_touch_the_global_generator() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    state = torch.random.get_rng_state()
    sample(policy, tiny.make_prompts(catalog, [[0]], [[1]]), 4)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_rollout_and_update_agree_on_every_log_probability(space: str) -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    histories = [[1, 2, 3, 4, 5, 6], [7], [], [8, 9, 10]]
    prompts = tiny.make_prompts(catalog, histories, [[20], [21], [22], [23]], histories)
    for name in tiny.ARCHITECTURES:
        policy = tiny.tiny_policy(name, catalog)
        groups = sample(policy, prompts, 8, Draw(logprob_space=space))
        with torch.no_grad():
            again = branch_logprobs(policy, prompts, groups.tokens, space)
            targets = branch_logprobs(policy, prompts, prompts.targets, space)
        assert (groups.rollout_logprobs - again).abs().max() <= 1e-5
        assert (groups.target_logprobs - targets).abs().max() <= 1e-5
        total = groups.rollout_logprobs.sum(-1)
        assert (total[:, 1:] <= total[:, :-1]).all()
        assert (groups.items >= 0).all()
        assert torch.equal(catalog.tokens_of(groups.items), groups.tokens)


def test_the_space_changes_what_is_recorded_and_not_what_is_drawn() -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[1, 2], [3]], [[20], [21]])
    groups = [
        sample(policy, prompts, 16, Draw(logprob_space=space))
        for space in ("full", "level", "trie")
    ]
    drawn = [sorted(g.items[0].tolist()) for g in groups]
    assert drawn[0] == drawn[1] == drawn[2]
    full, level, trie = (g.rollout_logprobs.sum() for g in groups)
    assert full < level < trie


def test_a_row_without_a_candidate_has_no_rollout_and_one_candidate_is_always_drawn() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    seen = [list(range(8)), [0, 1, 2, 3, 4, 5, 6], [0]]
    prompts = tiny.make_prompts(catalog, [[1], [2], [0]], [[0], [7], [4]], seen)
    for space in ("full", "level"):
        groups = sample(policy, prompts, 3, Draw(logprob_space=space))
        assert groups.exists.tolist() == [[False] * 3, [True] * 3, [True] * 3]
        assert groups.items[:2].tolist() == [[-1] * 3, [7] * 3]
        assert (groups.tokens[0] == catalog.pad_token).all()
        assert (groups.rollout_logprobs[0] == 0).all()
