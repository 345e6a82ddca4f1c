"""Constrained beam search against transformers' own under the same constraint."""

from __future__ import annotations

import naive
import pytest
import tiny
import torch
from torch import Tensor

from recast.groups import is_new, select
from recast.items.catalog import Catalog
from recast.policy.logprobs import branch_logprobs
from recast.rewards.partial import partial_hit
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.types import Draw, LogprobSpace, Prompts, RecastError

GROUP = 6


def _prompts(catalog: Catalog, *, exclude: bool) -> Prompts:
    draw = torch.Generator().manual_seed(5)
    histories = [
        torch.randint(0, catalog.num_items, (n,), generator=draw).tolist() for n in (6, 1, 0, 4)
    ]
    return tiny.make_prompts(
        catalog, histories, [[20], [21], [22], [23]], histories if exclude else None
    )


def _transformers_beams(
    model: torch.nn.Module, catalog: Catalog, prompts: Prompts, row: int
) -> tuple[Tensor, Tensor]:
    prompt = prompts.tokens[row : row + 1, : int(prompts.lengths[row])]
    seen = prompts.seen[row].tolist()

    def children(_: int, sequence: Tensor) -> list[int]:
        return naive.allowed_children(catalog, seen, sequence[prompt.shape[1] :].tolist())

    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        prefix_allowed_tokens_fn=children,
        num_beams=GROUP,
        num_return_sequences=GROUP,
        max_new_tokens=catalog.num_levels,
        length_penalty=0.0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    return found.sequences[:, prompt.shape[1] :], found.sequences_scores


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_beams_and_scores_equal_those_of_transformers(name: str, exclude: bool) -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy(name, catalog)
    prompts = _prompts(catalog, exclude=exclude)
    groups = beam_search(policy, prompts, GROUP)
    plain = tiny.twin(policy.model)
    for row in range(len(prompts)):
        tokens, scores = _transformers_beams(plain, catalog, prompts, row)
        assert groups.tokens[row].tolist() == tokens.tolist()
        found = groups.rollout_logprobs[row].sum(-1)
        torch.testing.assert_close(found, scores, rtol=0, atol=1e-4)
        if exclude:
            assert not set(groups.items[row].tolist()) & set(prompts.seen[row].tolist())


@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_a_beam_as_wide_as_the_catalogue_ranks_every_item_exactly(space: str) -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[4, 5], [0]], [[1], [7]], [[4, 5], [0]])
    groups = beam_search(policy, prompts, 7, Draw(logprob_space=space))
    plain = tiny.twin(policy.model)
    for row, num_unseen in enumerate((6, 7)):
        wanted = naive.item_logprobs(plain, catalog, prompts, row, space)
        ranking = sorted(wanted, key=lambda item: -sum(wanted[item]))
        assert groups.items[row].tolist() == ranking + [-1] * (7 - num_unseen)
        assert groups.exists[row].tolist() == [True] * num_unseen + [False] * (7 - num_unseen)
        for position, item in enumerate(ranking):
            found = groups.rollout_logprobs[row, position].tolist()
            assert found == pytest.approx(wanted[item], abs=1e-5)


def test_paths_that_do_not_exist_are_padded_and_masked() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("llama", catalog)
    seen = [[0, 1, 2, 3, 4, 5], list(range(8))]
    prompts = tiny.make_prompts(catalog, [[1], [2]], [[6], [7]], seen)
    groups = beam_search(policy, prompts, 12)
    assert sorted(groups.items[0, :2].tolist()) == [6, 7]
    assert (groups.items[0, 2:] == -1).all()
    assert (groups.items[1] == -1).all()
    assert groups.exists.sum(1).tolist() == [2, 0]
    assert (groups.tokens[~groups.exists] == catalog.pad_token).all()
    assert (groups.rollout_logprobs[~groups.exists] == 0).all()
    assert groups.rollout_logprobs.isfinite().all()


def test_unconstrained_beams_are_the_best_sequences_of_the_whole_vocabulary() -> None:
    """A beam as wide as all pairs of tokens is brute force."""
    catalog = tiny.random_catalog(4, (3, 3), seed=1)
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[0, 1]], [[2]])
    size = catalog.vocab_size
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))[None]
    with torch.no_grad():
        every = torch.ones_like(pairs, dtype=torch.bool)  # the pad token is one like any other
        scores = branch_logprobs(policy, prompts, pairs, "full", every).sum(-1)[0]
    groups = beam_search(policy, prompts, size * size, decoder=Decoder(constrained=False))
    order = scores.argsort(descending=True)
    torch.testing.assert_close(groups.rollout_logprobs[0].sum(-1), scores[order])
    assert groups.tokens[0, 0].tolist() == pairs[0, order[0]].tolist()
    known = {
        tuple(catalog.tokens_of(torch.tensor(i)).tolist()): i for i in range(catalog.num_items)
    }
    wanted = [known.get(tuple(row), -1) for row in groups.tokens[0].tolist()]
    assert groups.items[0].tolist() == wanted
    assert sorted(set(wanted)) == [-1, *range(catalog.num_items)]


@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_beams_and_update_agree_on_every_log_probability(space: str) -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    for name in tiny.ARCHITECTURES:
        policy = tiny.tiny_policy(name, catalog)
        prompts = _prompts(catalog, exclude=True)
        groups = beam_search(policy, prompts, GROUP, Draw(logprob_space=space))
        with torch.no_grad():
            again = branch_logprobs(policy, prompts, groups.tokens, space)
            targets = branch_logprobs(policy, prompts, prompts.targets, space)
        assert (groups.rollout_logprobs - again).abs().max() <= 1e-5
        assert (groups.target_logprobs - targets).abs().max() <= 1e-5


def test_several_targets_are_scored_each_on_its_own_branch() -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[1, 2, 3], [4]], [[20, 21, 22], [30]])
    for space in ("full", "trie"):
        groups = beam_search(policy, prompts, 5, Draw(logprob_space=space))
        plain = tiny.twin(policy.model)
        for row, targets in enumerate(([20, 21, 22], [30])):
            wanted = naive.item_logprobs(plain, catalog, prompts, row, space)
            for position, item in enumerate(targets):
                found = groups.target_logprobs[row, position].tolist()
                assert found == pytest.approx(wanted[item], abs=1e-5)


def test_beams_do_not_depend_on_the_other_rows_of_the_batch() -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("mistral", catalog)
    prompts = _prompts(catalog, exclude=True)
    together = beam_search(policy, prompts, GROUP)
    for row in range(len(prompts)):
        alone = beam_search(policy, select(prompts, torch.tensor([row])), GROUP)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        torch.testing.assert_close(alone.rollout_logprobs[0], together.rollout_logprobs[row])


def test_a_target_outside_the_catalogue_has_no_trie_probability() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[1]], [[2]])
    prompts.targets[0, 0, 0] = catalog.vocab_size - 1
    with pytest.raises(RecastError, match="not in the catalogue"):
        beam_search(policy, prompts, 2, Draw(logprob_space="trie"))


@pytest.mark.parametrize("space", ["full", "level"])
def test_unconstrained_beams_leave_out_what_is_seen_and_the_next_take_its_place(
    space: LogprobSpace,
) -> None:
    """As wide as all there is, so that leaving out is deleting from the whole list."""
    catalog = tiny.random_catalog(4, (3, 3), seed=1)
    policy = tiny.tiny_policy("qwen3", catalog)
    width = catalog.vocab_size**2 if space == "full" else 9
    free, draw = Decoder(constrained=False), Draw(logprob_space=space)
    nothing = tiny.make_prompts(catalog, [[0, 1], [3]], [[2], [2]])
    seen = tiny.make_prompts(catalog, [[0, 1], [3]], [[2], [2]], [[0, 1], [3, -1]])
    every = beam_search(policy, nothing, width, draw, free)
    found = beam_search(policy, seen, width, draw, free)
    for row, gone in enumerate(({0, 1}, {3})):
        stays = torch.tensor([item not in gone for item in every.items[row].tolist()])
        count = int(stays.sum())
        assert count == width - len(gone)
        assert torch.equal(found.tokens[row, :count], every.tokens[row, stays])
        assert found.exists[row].sum() == count  # a shortage shows as rollouts that do not exist
    few = beam_search(policy, seen, 4, draw, free)
    assert few.exists.all()
    assert (
        not (few.items[..., None] == seen.seen[:, None])
        .logical_and(few.items[..., None] >= 0)
        .any()
    )


def test_unconstrained_beams_over_texts_leave_out_what_is_seen() -> None:
    catalog = tiny.text_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    nothing = tiny.make_prompts(catalog, [[0, 1]], [[2]])
    seen = tiny.make_prompts(catalog, [[0, 1]], [[2]], [[0, 3, 6]])
    every, found = (
        beam_search(policy, prompts, 400, decoder=Decoder(constrained=False))
        for prompts in (nothing, seen)
    )
    assert {0, 3, 6} & set(every.items[0].tolist())
    assert not {0, 3, 6} & set(found.items[0].tolist())


def test_beams_that_write_no_sid_name_nothing_and_score_nothing() -> None:
    catalog = tiny.tiny_catalog()
    policy = tiny.tiny_policy("qwen3", catalog)
    prompts = tiny.make_prompts(catalog, [[4, 5]], [[0]])
    groups = beam_search(policy, prompts, 1500, decoder=Decoder(constrained=False))
    bounds = torch.tensor([catalog.level_tokens(level) for level in range(3)])
    is_sid = ((groups.tokens >= bounds[:, 0]) & (groups.tokens < bounds[:, 1])).all(-1)[0]
    assert 0 < is_sid.sum() < 1500
    assert ((groups.predictions[0] >= 0).all(-1)[:, 0] == is_sid).all()
    begun = (groups.tokens[0, :, 0] == prompts.targets[0, 0, 0]) & ~is_sid
    assert begun.any()
    assert (partial_hit(groups)[0, ~is_sid] == 0).all()
    assert is_new(groups).all()  # they write different things
