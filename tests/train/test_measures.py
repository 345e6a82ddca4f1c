"""What an update measures: worked numbers for every sum, the levels of texts, no token at all."""

from __future__ import annotations

from functools import partial

import pytest
import tiny
import torch

from recast.losses import dpo, dr_grpo, gbpo, gspo, ppo_clip, reinforce
from recast.train.measures import (
    clip_metrics,
    clipped_tokens,
    entropy_metrics,
    entropy_sums,
    has_clip,
    levels_of,
)


def _clipped(loss: object, ratios: list[float], advantages: list[float]) -> list[int]:
    """Of rollouts of one token each, by the slope that the loss really has."""
    lp = torch.tensor(ratios, dtype=torch.float64).log()[None, :, None].requires_grad_()
    a, old = torch.tensor(advantages).double()[None, :, None], torch.zeros(lp.shape).double()
    every = torch.ones(lp.shape, dtype=torch.bool)
    per_token = loss.func is ppo_clip if isinstance(loss, partial) else loss is ppo_clip
    values = loss(lp, old, a) if per_token else loss(lp, old, a, every)
    (slope,) = torch.autograd.grad(values.sum(), lp)
    dual = "dual_clip" in str(loss) or loss is ppo_clip
    return clipped_tokens(slope, lp.detach(), a, every, has_dual=dual).tolist()


def test_clipped_tokens_worked() -> None:
    """Bounds 0.8 and 1.28, dual clip at 3: one token low, two high, one dual, the others free."""
    ratios = [0.7, 0.7, 1.3, 1.3, 2.0, 4.0, 1.0, 9.0]
    advantages = [-1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 0.0]
    assert _clipped(ppo_clip, ratios, advantages) == [1, 2, 1]
    # Both sides at 1.2 and no dual clip: 4.0 is pushed on.
    assert _clipped(dr_grpo, ratios, advantages) == [1, 2, 0]
    # Of 3e-4 and 4e-4.
    assert _clipped(gspo, [1.001, 0.999, 1.0002, 0.9998], [1.0, -1.0, 1.0, -1.0]) == [1, 1, 0]


def test_tokens_that_do_not_count_are_not_clipped() -> None:
    zero, a = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    mask = torch.tensor([[[True, False], [False, False]]])
    assert clipped_tokens(zero, a, a, mask, has_dual=True).tolist() == [0, 1, 0]


def test_clip_shares_are_named_after_what_the_loss_has() -> None:
    assert clip_metrics(ppo_clip, [1.0, 2.0, 3.0], 4) == {
        "actor/clip_low_frac": 0.25,
        "actor/clip_high_frac": 0.5,
        "actor/dual_clip_frac": 0.75,
    }
    wide = partial(gspo, clip_high=1.0)
    assert list(clip_metrics(wide, [0, 0, 0], 1)) == ["actor/clip_low_frac", "actor/clip_high_frac"]
    for loss in (reinforce, gbpo, dpo):
        assert not has_clip(loss)
        assert clip_metrics(loss, [0, 0, 0], 1) == {}


def test_levels_of_semantic_ids_are_their_places() -> None:
    catalog = tiny.tiny_catalog()
    tokens = catalog.tokens_of(torch.tensor([[0, 3]]))
    assert levels_of(catalog, tokens).tolist() == [[[0, 1, 2], [0, 1, 2]]]


def test_levels_of_texts_are_the_edges_that_hold_a_token() -> None:
    """Items 5 6 7 8 and 5 6 9: the edge to their fork, then one of two tokens or of one."""
    catalog = tiny.text_catalog([[5, 6, 7, 8], [5, 6, 9], [4]])
    tokens = torch.tensor([[[5, 6, 7, 8], [5, 6, 9, 0], [4, 0, 0, 0], [5, 6, 7, 9], [3, 3, 3, 3]]])
    found = levels_of(catalog, tokens)[0]
    none = catalog.num_levels
    assert none == 2
    assert found[0].tolist() == [0, 0, 1, 1]
    assert found[1, :3].tolist() == [0, 0, 1]
    assert found[2, 0].tolist() == 0
    assert found[3].tolist() == [0, 0, none, none]
    assert found[4].tolist() == [none] * 4


def test_entropies_by_level_worked() -> None:
    entropy = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 5.0, 0.5]]])
    levels = torch.tensor([[[0, 1, 1], [0, 2, 1]]])
    mask = torch.tensor([[[True, True, False], [True, True, True]]])
    sums = entropy_sums(entropy, levels, mask, num_levels=2)
    assert sums.tolist() == [[4.0, 2.5, 5.0], [2.0, 2.0, 1.0]]
    assert entropy_metrics(sums) == {
        "actor/entropy": pytest.approx(11.5 / 5),
        "actor/entropy_l0": 2.0,
        "actor/entropy_l1": 1.25,
    }
    assert entropy_metrics(torch.zeros(2, 4)) == {}
