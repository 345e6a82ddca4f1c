"""The supervised loss in every space, against one token at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import naive
import pytest
import tiny
import torch
from torch import Tensor

from recast.items.catalog import Catalog, build_catalog
from recast.policy import head, logprobs
from recast.policy.head import sampled_scores
from recast.policy.logprobs import branch_logprobs
from recast.policy.prompts import write_items
from recast.train.sequences import draw_negatives, learn
from recast.types import LogprobSpace

# Nodes with 1, 2, 3 and 20 children, one of them the only child of the root's 5th.
FAMILIES = [[0, 7], *([1, i] for i in (3, 9)), *([2, i] for i in (0, 4, 5)), [4, 2]]
UNEVEN = build_catalog([*FAMILIES, *([3, i] for i in range(20))], (5, 20))


def learned(catalog: Catalog, windows: Tensor, space: LogprobSpace) -> tuple[float, Tensor]:
    """Loss and gradients of a batch."""
    policy = replace(tiny.tiny_policy("qwen3", catalog), logprob_space=space)
    tokens, lengths = write_items(catalog, windows)
    place = torch.arange(tokens.shape[1])
    mask = (place < lengths[:, None]) & (place > 0)
    done = learn(policy, tokens, mask, dropout=0.0, precision="float32", pass_tokens=65536)
    return float(done.loss), naive.flat_gradients(policy.model)


def slowly(catalog: Catalog, windows: Tensor, space: LogprobSpace) -> tuple[float, Tensor]:
    """The same by the log-probabilities of each item as a branch of the items before it."""
    policy = replace(tiny.tiny_policy("qwen3", catalog), logprob_space=space)
    total, count = torch.zeros(()), 0
    for row in windows:
        items = row[row >= 0].tolist()
        for place, item in enumerate(items):
            prompts = tiny.make_prompts(catalog, [items[:place]], [[item]])
            total = total - branch_logprobs(policy, prompts, prompts.targets, space).sum()
            count += catalog.num_levels
    (total / count).backward()
    return float(total.detach() / count), naive.flat_gradients(policy.model)


@pytest.mark.parametrize("space", ["full", "level", "trie"])
@pytest.mark.parametrize("most", [2**25, 700])
def test_the_loss_is_that_of_the_branches_in_the_same_space(
    space: LogprobSpace, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items come twice, windows have 5, 4 and 2 items, which share rows; whole and in parts."""
    monkeypatch.setattr(head, "MOST_LOGITS", most)
    windows = torch.tensor([[0, 5, 2, 5, 20], [7, 1, 3, 4, -1], [6, 2, -1, -1, -1]])
    for catalog in (UNEVEN, tiny.tiny_catalog()):
        some = windows.clamp(max=catalog.num_items - 1)
        (loss, gradient), (slow, slow_gradient) = (
            way(catalog, some, space) for way in (learned, slowly)
        )
        assert loss == pytest.approx(slow, rel=1e-5)
        assert naive.relative_error(gradient, slow_gradient) <= 1e-5


def test_a_root_of_one_and_hidden_states_that_share_siblings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All items below one code, 30 hidden states for two families, 8 or 2 of them at a time."""
    catalog = build_catalog([[0, 0], [0, 1], [1, 0], [1, 2], [1, 3]], (2, 4))
    draw = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 5, (6, 5), generator=draw)
    expected = slowly(catalog, windows, "trie")[0]
    for shared in (8, 2, 1):
        monkeypatch.setattr(head, "_SHARED", shared)
        assert learned(catalog, windows, "trie")[0] == pytest.approx(expected, rel=1e-5)
    only = build_catalog([[1, 0], [1, 3]], (2, 4))
    windows = torch.tensor([[0, 1, 1]])
    assert learned(only, windows, "trie")[0] == pytest.approx(
        slowly(only, windows, "trie")[0], rel=1e-5
    )
    single = build_catalog([[1, 3]], (2, 4))  # nothing is ever decided
    assert learned(single, torch.tensor([[0, 0]]), "trie") == (0.0, pytest.approx(0.0))


@pytest.mark.parametrize("most", [2**25, 40])
def test_children_are_scored_alike_by_their_rows_and_by_the_columns_of_their_level(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 items as tokens of their own behind 3 clusters."""
    codes = torch.stack([tiny.CODES[:, 0], torch.arange(8)], dim=1)
    windows = torch.tensor([[0, 5, 2], [7, 1, 3]])
    monkeypatch.setattr(head, "MOST_LOGITS", most)
    found = []
    for few in (10**9, 0):
        monkeypatch.setattr(logprobs, "_FEW", few)
        found.append(slowly(build_catalog(codes, (3, 8)), windows, "trie"))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert naive.relative_error(found[0][1], found[1][1]) <= 1e-6


@pytest.mark.parametrize("bias", [False, True])
def test_a_softmax_over_the_target_and_negatives_by_hand(bias: bool) -> None:
    """Logits 1, 2, 3, 4 of tokens 0 to 3, 4 has 0; the target is once among the negatives."""
    model = torch.nn.Module()
    layer = torch.nn.Linear(1, 5, bias=bias)
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0])
    with torch.no_grad():
        layer.weight.copy_(torch.zeros(5, 1) if bias else logits[:, None])
        if bias:
            layer.bias.copy_(logits)
    model.get_output_embeddings = lambda: layer  # type: ignore[assignment]
    hidden, tokens = torch.ones(2, 1), torch.tensor([3, 0])
    found = sampled_scores(model, hidden, tokens, torch.tensor([3, 1]))
    wanted = [4 - math.log(math.exp(4) + math.exp(2))]
    wanted += [1 - math.log(math.exp(1) + math.exp(4) + math.exp(2))]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


def test_negatives_are_different_items_and_others_in_every_step() -> None:
    catalog = build_catalog([[i] for i in range(50)], (50,))
    draws = [draw_negatives(catalog, 10, seed, step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    found = [set((tokens - 2).tolist()) for tokens in draws if tokens is not None]
    assert [len(items) for items in found] == [10, 10, 10]
    assert all(items <= set(range(50)) for items in found)
    assert found[0] != found[1] != found[2]
    again = draw_negatives(catalog, 10, 0, 0)
    assert again is not None
    assert again.equal(draws[0])
    assert draw_negatives(catalog, None, 0, 0) is None
