"""Rollouts and log-probabilities over items of unequal lengths, against slow code."""

from __future__ import annotations

from collections import Counter
from functools import partial
from math import exp
from typing import Any

import naive
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.items.catalog import Catalog
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.rollout import beam, gumbel, sample, sample_lists
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.types import Draw, LogprobSpace, Prompts, RecastError, RolloutGroups

SPACES: tuple[LogprobSpace, ...] = ("full", "trie")
TEXTS = st.lists(
    st.lists(st.integers(3, 6), min_size=0, max_size=4).map(lambda body: (*body, 2)),
    min_size=2,
    max_size=10,
    unique=True,
)


def _case(catalog: Catalog, seen: list[list[int]] | None = None) -> tuple[Policy, Prompts]:
    """Two prompts of unequal lengths, one target and two; more embeddings than tokens in use."""
    policy = tiny.tiny_policy("qwen3", catalog)
    last = catalog.num_items - 1
    return policy, tiny.make_prompts(catalog, [[0, 1, last], [1]], [[last], [1, 0]], seen)


def _slow_beams(
    policy: Policy, prompts: Prompts, row: int, width: int, space: LogprobSpace
) -> list[tuple[list[int], float]]:
    """Beam search token by token: an item among the best `width` continuations leaves the beam for
    the list of the best items, the best `width` of the others go on."""
    catalog, seen = policy.catalog, [i for i in prompts.seen[row].tolist() if i >= 0]
    prompt = prompts.tokens[row, : int(prompts.lengths[row])].tolist()
    items = [naive.written(catalog, i) for i in range(catalog.num_items) if i not in seen]

    def score(path: list[int], token: int) -> float:
        logits = naive.next_logits(policy.model, prompt + path, 1)[0].double()
        if space == "trie":
            over = naive.allowed_children(catalog, seen, path)
            return float(logits[token] - logits[over].logsumexp(0))
        return float(logits.log_softmax(-1)[token])

    beams: list[tuple[list[int], float]] = [([], 0.0)]
    found: list[tuple[list[int], float]] = []
    while beams:
        grown = [
            ([*path, token], value + score(path, token))
            for path, value in beams
            for token in naive.allowed_children(catalog, seen, path)
        ]
        grown.sort(key=lambda x: -x[1])
        found += [beam for beam in grown[:width] if beam[0] in items]
        beams = [beam for beam in grown if beam[0] not in items][:width]
    return sorted(found, key=lambda x: -x[1])[:width]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("width", [1, 3, 9])
@pytest.mark.parametrize("seen", [None, [[0, 4], [2, -1]]])
@torch.no_grad()
def test_beams_by_hand_and_slow(
    space: LogprobSpace, width: int, seen: list[list[int]] | None
) -> None:
    policy, prompts = _case(tiny.text_catalog(), seen)
    groups = beam(policy, prompts, width, Draw(logprob_space=space))
    for row in range(2):
        expected = _slow_beams(policy, prompts, row, width, space)
        count = int(groups.exists[row].sum())
        assert count == len(expected)
        for place, (path, value) in enumerate(expected):
            length = len(path)
            assert groups.tokens[row, place].tolist() == path + [0] * (5 - length)
            assert groups.loss_mask[row, place].tolist() == [t < length for t in range(5)]
            assert float(groups.rollout_logprobs[row, place].sum()) == pytest.approx(
                value, abs=1e-4
            )
        assert (groups.rollout_logprobs[~groups.loss_mask] == 0).all()
    _check_groups(policy, groups, space)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(texts=TEXTS, width=st.integers(1, 6), space=st.sampled_from(SPACES), hide=st.booleans())
@torch.no_grad()
def test_beams_of_any_texts(
    texts: list[tuple[int, ...]], width: int, space: LogprobSpace, hide: bool
) -> None:
    catalog = tiny.text_catalog([list(text) for text in texts])
    policy = tiny.tiny_policy("llama", catalog)
    seen = [[0]] if hide else None
    prompts = tiny.make_prompts(catalog, [[1, 0]], [[1]], seen)
    groups = beam(policy, prompts, width, Draw(logprob_space=space))
    expected = _slow_beams(policy, prompts, 0, width, space)
    values = groups.rollout_logprobs.sum(-1)[0][groups.exists[0]].tolist()
    assert values == pytest.approx([value for _, value in expected], abs=5e-5)
    _check_groups(policy, groups, space)


def _check_groups(policy: Policy, groups: RolloutGroups, space: LogprobSpace) -> None:
    """Items, names and log-probabilities of rollouts and targets against plain transformers."""
    catalog, prompts = policy.catalog, groups.prompts
    plain = tiny.twin(policy.model)
    for row in range(len(prompts)):
        exact = naive.item_logprobs(plain, catalog, prompts, row, space)
        for place, item in enumerate(groups.items[row].tolist()):
            if item < 0:
                assert not groups.exists[row, place]
                assert (groups.predictions[row, place] == -1).all()
                continue
            own = exact[item]
            found = groups.rollout_logprobs[row, place, : len(own)]
            assert found.tolist() == pytest.approx(own, abs=5e-5)
            named = [t for t in groups.predictions[row, place, 0].tolist() if t >= 0]
            assert named == naive.decisions(catalog, item)
        for place, item in enumerate(prompts.target_items[row].tolist()):
            found = groups.target_logprobs[row, place]
            length = len(exact[item]) if item >= 0 else 0
            if length:
                assert found[:length].tolist() == pytest.approx(exact[item], abs=5e-5)
            assert (found[length:] == 0).all()
    again = branch_logprobs(policy, prompts, groups.tokens, space, groups.loss_mask)
    torch.testing.assert_close(again, groups.rollout_logprobs, rtol=0, atol=5e-5)


@pytest.mark.parametrize("space", SPACES)
@torch.no_grad()
def test_samples_follow_the_policy_over_what_may_follow(space: LogprobSpace) -> None:
    policy, prompts = _case(tiny.text_catalog(), [[1], [-1]])
    counts: list[Counter[int]] = [Counter(), Counter()]
    for step in range(40):
        groups = sample(policy, prompts, 50, Draw(logprob_space=space, step=step))
        for row in range(2):
            counts[row].update(groups.items[row].tolist())
    _check_groups(policy, groups, space)
    for row in range(2):
        exact = naive.item_logprobs(tiny.twin(policy.model), policy.catalog, prompts, row, "trie")
        expected = {item: 2000 * exp(sum(values)) for item, values in exact.items()}
        assert sum(expected.values()) == pytest.approx(2000, rel=1e-4)
        assert set(counts[row]) <= set(expected)
        large = {item: e for item, e in expected.items() if e >= 5}
        statistic = sum((counts[row][item] - e) ** 2 / e for item, e in large.items())
        assert statistic < naive.chi_square_limit(len(large) - 1)


@torch.no_grad()
def test_gumbel_weights_are_probabilities_where_every_item_is_drawn() -> None:
    policy, prompts = _case(tiny.text_catalog(), [[1], [-1]])
    draw = Draw(logprob_space="trie", seed=3)
    groups = gumbel(policy, prompts, 8, draw)
    assert groups.weights is not None
    for row, count in ((0, 6), (1, 7)):
        exact = naive.item_logprobs(tiny.twin(policy.model), policy.catalog, prompts, row, "trie")
        assert sorted(groups.items[row].tolist())[8 - count :] == sorted(exact)
        for item, weight in zip(
            groups.items[row].tolist(), groups.weights[row].tolist(), strict=True
        ):
            wanted = exp(sum(exact[item])) if item >= 0 else 0.0
            assert weight == pytest.approx(wanted, rel=1e-3)
    _check_groups(policy, groups, "trie")
    # Of fewer: an unbiased estimate of 1, over many draws.
    few = torch.stack(
        [gumbel(policy, prompts, 3, Draw(logprob_space="trie", seed=s)).weights for s in range(100)]
    )
    mean, error = few.sum(-1).mean(0), few.sum(-1).std(0) / 100**0.5
    assert ((mean - 1).abs() < 4 * error).all()


@torch.no_grad()
def test_lists_hold_distinct_items() -> None:
    policy, prompts = _case(tiny.text_catalog(), [[1], [-1]])
    groups = sample_lists(policy, prompts, 4, Draw(seed=1), list_length=7)
    for row, count in ((0, 6), (1, 7)):
        for items in groups.items[row].view(4, 7).tolist():
            assert len({item for item in items if item >= 0}) == count
    _check_groups(policy, groups, "full")


@pytest.mark.parametrize("sampler", [gumbel, partial(sample_lists, list_length=4)])
@torch.no_grad()
def test_draws_without_replacement_end_before_the_deepest_item(sampler: Any) -> None:
    """The two items of three decisions are seen: of the others all have ended after two."""
    policy, prompts = _case(tiny.text_catalog(sorted(tiny.TEXTS, key=len)), [[3, 5], [5, 3]])
    policy.model.resize_token_embeddings(64, mean_resizing=False)  # not read whole
    groups = sampler(policy, prompts, 2, Draw(logprob_space="trie"))
    assert bool((groups.exists & (groups.items >= 0)).all())
    _check_groups(policy, groups, "trie")


@torch.no_grad()
def test_an_end_is_followed_by_a_pad_of_score_0_and_by_nothing_else() -> None:
    """Unconstrained, as wide as all there is: prefix-free items 3, 4 5 and 4 6, 8 tokens."""
    catalog = tiny.text_catalog([[3], [4, 5], [4, 6]])
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0, 1]], [[2]])
    size = catalog.vocab_size
    groups = beam_search(policy, prompts, size * size, decoder=Decoder(constrained=False))
    prompt = prompts.tokens[0].tolist()
    first = naive.next_logits(tiny.twin(policy.model), prompt, 1)[0].log_softmax(-1)
    rows = {tuple(tokens): place for place, tokens in enumerate(groups.tokens[0].tolist())}
    assert len(rows) == int(groups.exists.sum()) == size * (size - 1) + 1
    ended = rows[3, 0]
    assert groups.loss_mask[0, ended].tolist() == [True, False]
    assert groups.rollout_logprobs[0, ended].tolist() == pytest.approx([float(first[3]), 0.0])
    assert [tokens for tokens in rows if tokens[0] == 3] == [(3, 0)]
    # Elsewhere the pad token is one like any other, with its own probability.
    inside = rows[4, 0]
    assert groups.loss_mask[0, inside].tolist() == [True, True]
    assert float(groups.rollout_logprobs[0, inside, 1]) < -0.01
    named = {groups.items[0, place].item() for place in range(len(rows))}
    assert named == {-1, 0, 1, 2}


@torch.no_grad()
def test_a_step_stops_when_everything_has_ended() -> None:
    """After one decision of the texts 3 2 and 4 5 2 nothing is asked of the model in `trie`."""
    catalog = tiny.text_catalog([[3, 2], [4, 5, 2]])
    policy, calls = tiny.tiny_policy("qwen3", catalog), []
    policy.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    prompts = tiny.make_prompts(catalog, [[0]], [[]])
    beam(policy, prompts, 2, Draw(logprob_space="trie"))
    assert calls == [3]
    calls.clear()
    # 3 and 4 5, whose last tokens are scored behind them, in one call.
    beam(policy, prompts, 2, Draw(logprob_space="full"))
    assert calls == [3, 3]


def test_texts_have_no_levels_of_their_own() -> None:
    policy, prompts = _case(tiny.text_catalog())
    message = "logprob_space is 'level': only semantic IDs have levels"
    for sampler in (beam, sample):
        with pytest.raises(RecastError, match=message):
            sampler(policy, prompts, 2, Draw(logprob_space="level"))
