"""Mixing with a guide against the enumeration of every item in plain Python."""

from __future__ import annotations

import math
from typing import get_args

import naive
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recast.groups import select
from recast.items.catalog import Catalog, build_catalog
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.rollout.guide import Mixing, guide_masses, mix_scores
from recast.types import Draw, Prompts, RecastError, RolloutGroups

HISTORIES = [[4, 5], [0], [1, 2, 3, 6], []]


def mixture(scores: Tensor, alpha: float, kind: Mixing = "d3") -> Decoder:
    """A guide with these scores, whatever it is asked."""
    return Decoder(guide=lambda *_: scores, alpha=alpha, kind=kind)


def prompts_of(catalog: Catalog) -> Prompts:
    return tiny.make_prompts(catalog, HISTORIES, [[1], [7], [0], [2]], HISTORIES)


def random_scores(num_rows: int, num_items: int, seed: int = 3) -> Tensor:
    return 4 * torch.randn(num_rows, num_items, generator=torch.Generator().manual_seed(seed))


def item_guide(catalog: Catalog, scores: list[float], seen: list[int], item: int) -> list[float]:
    """The guide's log mass of every prefix of an item, from the softmax over items."""
    candidates = [i for i in range(catalog.num_items) if i not in seen]
    weights = {i: math.exp(scores[i]) for i in candidates}
    codes = catalog.codes.tolist()

    def below(prefix: list[int]) -> float:
        return sum(weights[i] for i in candidates if codes[i][: len(prefix)] == prefix)

    own = codes[item]
    return [math.log(below(own[: n + 1]) / below([])) for n in range(catalog.num_levels)]


def prefix_score(policy: float, guide: float, alpha: float, kind: Mixing) -> float:
    if kind == "d3":
        return alpha * policy + (1 - alpha) * guide
    mixed = alpha * math.exp(policy) + (1 - alpha) * math.exp(guide)
    return math.log(mixed)


def test_the_worked_value_flips_the_order() -> None:
    policy, guide = torch.tensor([-1.0, -1.2]), torch.tensor([-3.0, -0.5])
    found = mix_scores(policy, guide, 0.9)
    torch.testing.assert_close(found, torch.tensor([-1.2, -1.13]))
    assert policy[0] > policy[1]
    assert found[0] < found[1]
    # .75 * e^-1 + .25 * e^-3 = .2884, .75 * e^-1.2 + .25 * e^-.5 = .3775.
    shares = mix_scores(policy, guide, 0.75, "mixture").exp()
    torch.testing.assert_close(shares, torch.tensor([0.28835616, 0.37752834]))
    for kind in get_args(Mixing):
        assert torch.equal(mix_scores(policy, guide, 1.0, kind), policy)
        assert torch.equal(mix_scores(policy, guide, 0.0, kind), guide)


def test_item_scores_become_tokens_by_hand() -> None:
    catalog = build_catalog(torch.tensor([[0, 0], [0, 1], [1, 0]]), (2, 2))
    scores = torch.tensor([[0.1, 0.3, 0.6], [0.1, 0.3, 0.6]]).log() + 50
    seen = torch.tensor([[-1], [1]])
    first, second = (level.exp() for level in guide_masses(scores, seen, catalog.trie))
    assert first.dtype == torch.float64
    torch.testing.assert_close(first.float(), torch.tensor([[0.4, 0.6], [1 / 7, 6 / 7]]))
    torch.testing.assert_close(second.float(), torch.tensor([[0.1, 0.3, 0.6], [1 / 7, 0, 6 / 7]]))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_guide_equals_the_enumeration(data: st.DataObject) -> None:
    num_items = data.draw(st.integers(1, 12), "items")
    codes = data.draw(
        st.lists(
            st.lists(st.integers(0, 2), min_size=3, max_size=3),
            min_size=num_items,
            max_size=num_items,
        ),
        "codes",
    )
    catalog = build_catalog(torch.tensor(codes), (3, 3, 3))
    scores = data.draw(
        st.lists(st.floats(-8, 8, width=32), min_size=num_items, max_size=num_items), "scores"
    )
    seen = sorted(data.draw(st.sets(st.integers(0, num_items - 1)), "seen"))
    levels = guide_masses(
        torch.tensor([scores]), torch.tensor([[*seen, -1, *seen[:1]]]), catalog.trie
    )
    for item in set(range(num_items)) - set(seen):
        wanted = item_guide(catalog, scores, seen, item)
        path = catalog.path_of(catalog.tokens_of(torch.tensor(item)))[1:]
        found = [float(level[0, node]) for level, node in zip(levels, path, strict=True)]
        assert found == pytest.approx(wanted, abs=1e-9)
    for level in levels:
        assert not level.isnan().any()


def test_hopeless_items_keep_a_finite_score() -> None:
    """Far below the reach of float32 and float64 alike; the floor of exp(-700) holds them."""
    catalog = tiny.tiny_catalog()
    scores = torch.zeros(3, 8)
    scores[0, :7] = -1e30
    scores[1] = -torch.inf
    scores[2, 3] = torch.finfo(torch.float32).max
    levels = guide_masses(scores, torch.empty(3, 0, dtype=torch.long), catalog.trie)
    assert all(level.isfinite().all() for level in levels)
    # Items 0, 1, 2 | 3, 4 | 5, 6, 7 share their first code; item 7 holds everything in row 0.
    wanted = [math.log(3) - 700, math.log(2) - 700, 0.0]
    assert levels[0][0].tolist() == pytest.approx(wanted)
    # A row without any preference is uniform over the items.
    assert levels[0][1].exp().tolist() == pytest.approx([3 / 8, 2 / 8, 3 / 8])
    everything = torch.arange(8)[None].expand(3, -1)
    for level in guide_masses(scores, everything, catalog.trie):
        assert (level == -torch.inf).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_scores_are_refused_unless_seen(bad: float) -> None:
    catalog = tiny.tiny_catalog()
    scores = torch.zeros(2, 8)
    scores[1, 5] = bad
    with pytest.raises(RecastError, match=f"gives item 5 the score {bad} in row 1: give every"):
        guide_masses(scores, torch.tensor([[5], [4]]), catalog.trie)
    levels = guide_masses(scores, torch.tensor([[4], [5]]), catalog.trie)
    assert levels[0][1].exp().tolist() == pytest.approx([3 / 7, 2 / 7, 2 / 7])
    with pytest.raises(RecastError, match=r"width of the guide's scores is 7: give one score for"):
        guide_masses(scores[:, :7], torch.empty(2, 0, dtype=torch.long), catalog.trie)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("space", ["full", "level", "trie"])
@pytest.mark.parametrize("kind", ["d3", "mixture"])
def test_every_item_is_ranked_as_the_enumeration_does(
    kind: Mixing, space: str, alpha: float
) -> None:
    catalog = tiny.tiny_catalog()
    policy, prompts = tiny.tiny_policy("qwen3", catalog), prompts_of(catalog)
    scores = random_scores(len(prompts), catalog.num_items)
    draw = Draw(logprob_space=space)  # type: ignore[arg-type]
    groups = beam_search(policy, prompts, 8, draw, mixture(scores, alpha, kind))
    plain = tiny.twin(policy.model)
    for row, seen in enumerate(HISTORIES):
        own = naive.item_logprobs(plain, catalog, prompts, row, space)
        mixed = {}
        for item, logprobs in own.items():
            guide = item_guide(catalog, scores[row].tolist(), seen, item)
            mixed[item] = prefix_score(sum(logprobs), guide[-1], alpha, kind)
        ranking = sorted(mixed, key=lambda item: -mixed[item])
        assert groups.items[row].tolist() == ranking + [-1] * len(seen)
        # What is recorded is the policy's own log-probability.
        for position, item in enumerate(ranking):
            found = groups.rollout_logprobs[row, position].tolist()
            assert found == pytest.approx(own[item], abs=1e-5)


@pytest.mark.parametrize("kind", ["d3", "mixture"])
def test_the_guide_changes_which_items_a_narrow_beam_finds(kind: Mixing) -> None:
    """Every level keeps the best 3 by the mixture, like a beam search by hand."""
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("llama", catalog)
    prompts = tiny.make_prompts(catalog, [[3, 9], [1]], [[5], [6]], [[3, 9], [1]])
    scores = random_scores(2, catalog.num_items)
    groups = beam_search(policy, prompts, 3, decoder=mixture(scores, 0.5, kind))
    plain = tiny.twin(policy.model)
    codes = catalog.codes.tolist()
    for row, seen in enumerate(([3, 9], [1])):
        own = naive.item_logprobs(plain, catalog, prompts, row, "full")
        guide = {i: item_guide(catalog, scores[row].tolist(), seen, i) for i in own}
        beams: list[list[int]] = [[]]
        for level in range(1, 4):
            value = {
                tuple(codes[i][:level]): prefix_score(
                    sum(own[i][:level]), guide[i][level - 1], 0.5, kind
                )
                for i in own
                if codes[i][: level - 1] in beams
            }
            beams = [list(p) for p in sorted(value, key=lambda p: -value[p])[:3]]
        assert [codes[i] for i in groups.items[row].tolist()] == beams
    other = beam_search(policy, prompts, 3)
    assert groups.items.tolist() != other.items.tolist()


def same(first: RolloutGroups, second: RolloutGroups) -> bool:
    names = ("tokens", "items", "rollout_logprobs", "target_logprobs", "loss_mask")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


@pytest.mark.parametrize("kind", ["d3", "mixture"])
@pytest.mark.parametrize("group_size", [1, 3, 12])
def test_alpha_1_is_the_plain_beam_exactly(group_size: int, kind: Mixing) -> None:
    catalog = tiny.tiny_catalog()
    policy, prompts = tiny.tiny_policy("mistral", catalog), prompts_of(catalog)
    plain = beam_search(policy, prompts, group_size)
    scores = random_scores(len(prompts), catalog.num_items)
    assert same(plain, beam_search(policy, prompts, group_size, decoder=mixture(scores, 1.0, kind)))
    other = beam_search(policy, prompts, group_size, decoder=mixture(scores, 0.0, kind))
    assert not same(plain, other)


def test_d3_does_not_depend_on_the_other_rows_of_the_batch() -> None:
    catalog = tiny.tiny_catalog()
    policy, prompts = tiny.tiny_policy("qwen3", catalog), prompts_of(catalog)
    scores = random_scores(len(prompts), catalog.num_items)
    together = beam_search(policy, prompts, 5, decoder=mixture(scores, 0.4))
    for row in range(len(prompts)):
        chosen = torch.tensor([row])
        alone = beam_search(
            policy, select(prompts, chosen), 5, decoder=mixture(scores[chosen], 0.4)
        )
        assert torch.equal(alone.items[0], together.items[row])


def test_items_that_share_a_sid_count_together_and_seen_ones_not_at_all() -> None:
    catalog = build_catalog(torch.tensor([[0, 0], [0, 0], [1, 1]]), (2, 2))
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0], [0]], [[2], [2]], [[-1], [0]])
    scores = torch.tensor([[0.3, 0.3, 0.4]] * 2).log()
    groups = beam_search(policy, prompts, 2, decoder=mixture(scores, 0.0))
    assert groups.items.tolist() == [[0, 2], [2, 1]]


def test_settings_that_do_not_fit_are_refused() -> None:
    catalog = tiny.tiny_catalog()
    policy, prompts = tiny.tiny_policy("qwen3", catalog), prompts_of(catalog)
    scores = torch.zeros(len(prompts), 8)
    with pytest.raises(RecastError, match="constrained is False: a guide knows the children"):
        beam_search(policy, prompts, 2, decoder=Decoder(constrained=False, guide=lambda *_: scores))
    with pytest.raises(RecastError, match=r"alpha is 1.5: give a weight from 0 to 1"):
        beam_search(policy, prompts, 2, decoder=mixture(scores, 1.5))
