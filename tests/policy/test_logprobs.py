"""What a token's probability is normalised over, and which branches have none."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import tiny
import torch
from shapes import Shapes

from recast.groups import select
from recast.policy import head
from recast.policy.logprobs import branch_logprobs, branch_scores
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.rollout.sample import sample
from recast.types import Draw, LogprobSpace, Prompts, RecastError

SEEN = [[0, 1, 3], [6], []]


@pytest.fixture
def prompts() -> Prompts:
    histories = [[0, 1, 3], [6], []]
    return tiny.make_prompts(tiny.tiny_catalog(), histories, [[7], [0], [5]], SEEN)


@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_every_unseen_item_scores_as_in_the_naive_computation(prompts: Prompts, space: str) -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog(), torch.float64)
    plain = tiny.twin(policy.model)
    for row in range(3):
        wanted = naive.item_logprobs(plain, policy.catalog, prompts, row, space)
        asked = policy.catalog.tokens_of(torch.tensor([sorted(wanted)]))
        with torch.no_grad():
            alone = select(prompts, torch.tensor([row]))
            found = branch_logprobs(policy, alone, asked, space)[0]
        torch.testing.assert_close(
            found, torch.tensor([wanted[i] for i in sorted(wanted)]).double(), rtol=0, atol=1e-6
        )


def test_trie_probabilities_of_all_unseen_items_sum_to_one(prompts: Prompts) -> None:
    policy = tiny.tiny_policy("llama", tiny.tiny_catalog(), torch.float64)
    for row, seen in enumerate(SEEN):
        items = [i for i in range(8) if i not in seen]
        one = tiny.make_prompts(policy.catalog, [seen], [[items[0]]], [seen])
        with torch.no_grad():
            found = branch_logprobs(
                policy, one, policy.catalog.tokens_of(torch.tensor([items])), "trie"
            )
        assert float(found.sum(-1).exp().sum()) == pytest.approx(1, abs=1e-12), row


def test_a_forced_token_has_log_probability_zero() -> None:
    """Item 2 = (0, 1, 0) is the only one below (0, 1)."""
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    prompts = tiny.make_prompts(policy.catalog, [[5]], [[2]])
    found = branch_logprobs(policy, prompts, prompts.targets, "trie")
    assert found[0, 0, 2] == 0
    assert found[0, 0, 0] < 0


@pytest.mark.parametrize(("item", "word"), [(None, "not in the catalogue"), (1, "seen")])
def test_a_branch_without_a_probability_is_refused(
    prompts: Prompts, item: int | None, word: str
) -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    branches = prompts.targets.clone()
    # (2, 2, 0) is no item's code.
    codes = [2 + 2, 5 + 2, 8 + 0]
    branches[0, 0] = (
        torch.tensor(codes) if item is None else policy.catalog.tokens_of(torch.tensor(item))
    )
    with pytest.raises(RecastError, match=rf"of prompt 0 .*{word}"):
        branch_logprobs(policy, prompts, branches, "trie")
    assert branch_logprobs(policy, prompts, branches, "full").isfinite().all()


def test_a_token_of_another_level_has_no_probability_in_the_level_space(prompts: Prompts) -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    branches = prompts.targets.clone()
    branches[1, 0, 2] = policy.catalog.level_tokens(1)[0]
    with pytest.raises(RecastError, match="of prompt 1 has a token that is none of level 2"):
        branch_logprobs(policy, prompts, branches, "level")
    assert branch_logprobs(policy, prompts, branches, "full").isfinite().all()
    branches[1, 0] = policy.catalog.pad_token  # no branch at all
    assert (branch_logprobs(policy, prompts, branches, "level")[1, 0] == 0).all()


def test_beams_without_the_trie_stay_on_the_levels_of_their_space(prompts: Prompts) -> None:
    """The best of all 3 x 3 x 4 sequences of codes, items or not."""
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog(), torch.float64)
    prompts = replace(prompts, seen=torch.full_like(prompts.seen, -1))  # those are left out
    plain = tiny.twin(policy.model)
    starts = torch.tensor([policy.catalog.level_tokens(level) for level in range(3)])[:, 0]
    every = torch.cartesian_prod(*(torch.arange(n) for n in (3, 3, 4))) + starts
    found = beam_search(
        policy, prompts, 36, Draw(logprob_space="level"), decoder=Decoder(constrained=False)
    )
    for row in range(3):
        wanted = {}
        for branch in every.tolist():
            prompt = prompts.tokens[row, : int(prompts.lengths[row])].tolist()
            with torch.no_grad():
                logits = naive.next_logits(plain, prompt + branch[:-1], 3)
            spans = [policy.catalog.level_tokens(level) for level in range(3)]
            parts = [
                logits[i, token] - logits[i, slice(*spans[i])].logsumexp(0)
                for i, token in enumerate(branch)
            ]
            wanted[tuple(branch)] = float(torch.stack(parts).sum())
        scores = found.rollout_logprobs[row].sum(-1).tolist()
        assert scores == sorted(scores, reverse=True)
        assert {tuple(x) for x in found.tokens[row].tolist()} == set(wanted)
        for branch, score in zip(found.tokens[row].tolist(), scores, strict=True):
            assert score == pytest.approx(wanted[tuple(branch)], abs=1e-6)


def test_padding_among_several_targets_scores_zero_in_the_trie() -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    both = tiny.make_prompts(policy.catalog, [[5], [6, 7]], [[2, 3], [0]], [[0, 5], [6, 7]])
    found = branch_logprobs(policy, both, both.targets, "trie")
    assert (found[1, 1] == 0).all()
    alone = tiny.make_prompts(policy.catalog, [[6, 7]], [[0]], [[6, 7]])
    wanted = branch_logprobs(policy, alone, alone.targets, "trie")
    torch.testing.assert_close(found[1:, :1], wanted)


@pytest.mark.parametrize("space", ["full", "level", "trie"])
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_scores_in_parts_equal_those_in_one_and_no_part_is_larger_than_the_limit(
    prompts: Prompts, space: LogprobSpace, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve tokens of vocabulary, five nodes a prompt: parts of two nodes, then of all."""
    policy = tiny.tiny_policy(name, tiny.tiny_catalog())
    branches = prompts.targets.expand(-1, 5, -1)
    weights = torch.randn(branches.shape, generator=torch.Generator().manual_seed(0))
    whole = branch_logprobs(policy, prompts, branches, space)
    wanted = naive.gradients(policy.model, (whole * weights).sum())
    monkeypatch.setattr(head, "MOST_LOGITS", 24)
    with Shapes() as shapes:
        parts = branch_logprobs(policy, prompts, branches, space)
        found = naive.gradients(policy.model, (parts * weights).sum())
    torch.testing.assert_close(parts, whole)
    assert naive.relative_error(found, wanted) < 1e-6
    width = policy.catalog.vocab_size
    weight = policy.model.get_output_embeddings().weight.shape
    tables = [shape for shape, dtype in shapes.found if dtype.is_floating_point and len(shape) == 2]
    wide = [s for s in tables if s[1] == width and s[::-1] != tuple(weight)]
    assert max((torch.Size(shape).numel() for shape in wide), default=0) <= 24
    assert bool(wide) == (space == "full")


@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_entropies_are_those_of_the_naive_computation_and_change_no_bit(
    prompts: Prompts, space: LogprobSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    branches = prompts.targets.expand(-1, 5, -1)
    mask = torch.ones_like(branches, dtype=torch.bool)
    weights = torch.randn(branches.shape, generator=torch.Generator().manual_seed(0))
    plain = branch_logprobs(policy, prompts, branches, space, mask)
    wanted = naive.gradients(policy.model, (plain * weights).sum())
    for limit in (head.MOST_LOGITS, 24):
        monkeypatch.setattr(head, "MOST_LOGITS", limit)
        found = branch_scores(policy, prompts, branches, space, mask)
        if limit > 24:
            assert torch.equal(found.logprobs, plain)
            gradient = naive.gradients(policy.model, (found.logprobs * weights).sum())
            assert torch.equal(gradient, wanted)
        assert not found.entropy.requires_grad
        for row in range(3):
            prompt = prompts.tokens[row, : int(prompts.lengths[row])].tolist()
            target = prompts.targets[row, 0].tolist()
            logits = naive.next_logits(tiny.twin(policy.model), prompt + target[:-1], 3)
            for level in range(3):
                columns = list(range(logits.shape[1]))
                if space == "level":
                    columns = list(range(*policy.catalog.level_tokens(level)))
                elif space == "trie":
                    columns = naive.allowed_children(policy.catalog, SEEN[row], target[:level])
                chosen = logits[level, columns].detach().softmax(0)
                entropy = -float((chosen * chosen.log()).sum())
                assert found.entropy[row, :, level].tolist() == pytest.approx(
                    [entropy] * 5, abs=1e-5
                )


def test_what_the_trie_forces_is_not_sent(prompts: Prompts) -> None:
    """Item 2 = (0, 1, 0) is alone below (0, 1), item 5 = (2, 0, 1) below (2, 0)."""
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    catalog, sent = policy.catalog, []
    policy.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: sent.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    one = select(prompts, torch.tensor([2]))
    branches = catalog.tokens_of(torch.tensor([[2, 5, 6, 7]]))
    scores = {space: branch_logprobs(policy, one, branches, space) for space in ("full", "trie")}
    bos, first, second = catalog.bos_token, 2, 2 + 3
    # (0), (2); (0, 1), (2, 0), (2, 1) where every token is asked for.
    assert sent[0] == [bos, first, first + 2, second + 1, second, second + 1]
    assert sent[1] == [bos, first, first + 2, second + 1]
    assert (scores["trie"][0, :2, 2] == 0).all()
    assert (scores["trie"][0, 2:, 2] < 0).all()
    sent.clear()
    found = sample(policy, one, 40, Draw(logprob_space="trie", seed=1))
    torch.testing.assert_close(
        found.rollout_logprobs[0],
        branch_logprobs(policy, one, found.tokens, "trie")[0].detach(),
    )
    below = {tuple(codes[:2]) for codes in found.tokens[0].tolist()}
    assert len(below) == 5
    assert sorted(sent[2]) == [second, second + 1, second + 2]
