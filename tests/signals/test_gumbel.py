"""The unbiased policy gradient: worked numbers, scale, exact gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import naive
import pytest
import tiny
import torch
from torch import Tensor

from recast.groups import select
from recast.losses import ppo_clip
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.rewards.hit import first_hit
from recast.rollout.add_gt import add_gt
from recast.rollout.gumbel import gumbel
from recast.signals.gumbel import gumbel_pg
from recast.train.actor import Actor, update
from recast.types import Draw, Prompts, RecastError, RolloutGroups, Signal

SEEN = [[], [0, 1, 2, 3], list(range(8))]


def _groups(weights: list[list[float]]) -> RolloutGroups:
    rows = len(weights)
    tokens = [[[1, 2], [3, 4], [5, 6]]] * rows
    exists = [[w > 0 for w in row] for row in weights]
    groups = tiny.make_groups(tokens, [[[1, 2]]] * rows, exists=exists)
    return replace(groups, weights=torch.tensor(weights))


def _policy() -> Policy:
    return tiny.tiny_policy("qwen3", tiny.tiny_catalog())


def _prompts(policy: Policy) -> Prompts:
    """Eight, four and no items left."""
    return tiny.make_prompts(policy.catalog, [[1], [2, 5], [3]], [[3], [7], []], SEEN)


def _rewards_of_items(items: Tensor) -> Tensor:
    return torch.tensor([0.3, 0, 1, 0.5, 0, -1, 0, 2, 0])[items]


def _step(policy: Policy, signal: Signal) -> Tensor:
    """Gradient of one update, made on a copy of the policy."""
    own = replace(policy, model=copy.deepcopy(policy.model))
    actor = Actor(
        policy=own,
        reference=None,
        optimizer=torch.optim.SGD(own.model.parameters(), lr=0.1),
        loss=ppo_clip,
        kl_coef=0.0,
        kl_rollouts="kept",
        max_grad_norm=1e9,
        space="trie",
        micro_batch_tokens=10**6,
        updates_per_rollout=1,
    )
    update(actor, signal)
    return naive.flat_gradients(own.model)


def _unseen(row: int) -> list[int]:
    return [i for i in range(8) if i not in SEEN[row]]


def _item_logprobs(policy: Policy, prompts: Prompts, row: int) -> Tensor:
    """log p of every unseen item of a prompt, with its graph."""
    tokens = policy.catalog.tokens_of(torch.tensor([_unseen(row)]))
    one = select(prompts, torch.tensor([row]))
    return branch_logprobs(policy, one, tokens, "trie").sum(-1)[0]


def _exact_gradient(policy: Policy, prompts: Prompts) -> Tensor:
    """Of the mean over the two prompts that have items of sum_y p(y) r(y)."""
    values = []
    for row in range(2):
        p = _item_logprobs(policy, prompts, row).exp()
        values.append((p * _rewards_of_items(torch.tensor(_unseen(row)))).sum())
    return naive.gradients(policy.model, torch.stack(values).mean())


def test_worked_numbers() -> None:
    groups = _groups([[0.5, 0.25, 0.125]])
    rewards = torch.tensor([[1.0, 0.0, 2.0]])
    signal = gumbel_pg(groups, rewards)
    assert signal.advantages.tolist() == [[[1.5], [0.0], [0.75]]]
    assert signal.keep.all()
    assert signal.nll_weight.tolist() == [0]
    assert signal.metrics["signal/weight_sum"] == 0.875
    assert signal.metrics["signal/effective_size"] == pytest.approx(0.875**2 / 0.328125)
    centred = gumbel_pg(groups, rewards, baseline=1.0)
    assert centred.advantages.tolist() == [[[0.0], [-0.75], [0.375]]]


def test_shorter_groups_weigh_as_much_as_full_ones() -> None:
    """3 + 1 rollouts in two groups: 2 per group undo a division by the 4 kept."""
    groups = _groups([[0.5, 0.25, 0.125], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    signal = gumbel_pg(groups, torch.ones(3, 3))
    assert signal.advantages[..., 0].tolist() == [[1.0, 0.5, 0.25], [2.0, 0, 0], [0, 0, 0]]
    assert signal.keep.tolist() == [[True] * 3, [True, False, False], [False] * 3]


def test_degenerate_groups() -> None:
    groups = _groups([[0.5, 0.25, 0.125], [0.0, 0.0, 0.0]])
    signal = gumbel_pg(groups, torch.zeros(2, 3))
    assert (signal.advantages == 0).all()
    assert signal.keep.tolist() == [[True] * 3, [False] * 3]
    nothing = gumbel_pg(_groups([[0.0] * 3]), torch.ones(1, 3))
    assert (nothing.advantages == 0).all()
    assert not nothing.keep.any()
    one = _groups([[0.5, 0.0, 0.0]])
    assert gumbel_pg(one, torch.ones(1, 3)).advantages[0, :, 0].tolist() == [0.5, 0, 0]


def test_nothing_is_mutated_and_no_gradient_comes_out() -> None:
    groups = _groups([[0.5, 0.25, 0.0]])
    rewards = torch.ones(1, 3, requires_grad=True)
    before = groups.weights.clone()  # type: ignore[union-attr]
    signal = gumbel_pg(groups, rewards.detach())
    assert torch.equal(before, groups.weights)  # type: ignore[arg-type]
    assert signal.groups is groups
    assert not signal.advantages.requires_grad


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_groups_of_all_items_give_the_exact_gradient(baseline: float) -> None:
    """Nothing random is left: one update is 1/L of the exact gradient, for any baseline.

    The second prompt has half the items of the first, the third has none.
    """
    policy = _policy()
    prompts = _prompts(policy)
    groups = gumbel(policy, prompts, 8)
    signal = gumbel_pg(groups, _rewards_of_items(groups.items), baseline=baseline)
    wanted = -_exact_gradient(policy, prompts) / 3
    assert naive.relative_error(_step(policy, signal), wanted) < 1e-5


def test_an_update_is_the_weighted_sum_over_the_rollouts() -> None:
    policy = _policy()
    prompts = _prompts(policy)
    groups = gumbel(policy, prompts, 3, Draw(logprob_space="trie", seed=2))
    rewards = _rewards_of_items(groups.items)
    assert groups.weights is not None
    terms = []
    for row in range(2):
        logprobs = dict(zip(_unseen(row), _item_logprobs(policy, prompts, row), strict=True))
        for i, item in enumerate(groups.items[row].tolist()):
            scale = float(groups.weights[row, i] * (rewards[row, i] - 0.2))
            terms.append(scale * logprobs[item])
    wanted = naive.gradients(policy.model, -torch.stack(terms).sum() / 2 / 3)
    signal = gumbel_pg(groups, rewards, baseline=0.2)
    assert naive.relative_error(_step(policy, signal), wanted) < 1e-5


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_the_mean_over_many_draws_is_the_exact_gradient(baseline: float) -> None:
    """4000 groups of 3 in one call: the error stays below 4 of its standard errors."""
    policy, many = _policy(), 4000
    one = _prompts(policy)
    prompts = tiny.make_prompts(policy.catalog, [[1]] * many, [[3]] * many)
    logprobs = _item_logprobs(policy, one, 0)
    per_item = []
    for item in range(8):
        policy.model.zero_grad(set_to_none=True)
        logprobs[item].backward(retain_graph=True)
        per_item.append(naive.flat_gradients(policy.model).double())
    jacobian = torch.stack(per_item)
    rewards = _rewards_of_items(torch.arange(8)).double()
    exact = (logprobs.detach().double().exp() * rewards) @ jacobian
    groups = gumbel(policy, prompts, 3, Draw(logprob_space="trie", seed=9))
    signal = gumbel_pg(groups, _rewards_of_items(groups.items), baseline=baseline)
    # The actor's mean over the 3 rollouts, put on the items they are.
    per_group = torch.zeros(many, 8, dtype=torch.float64)
    per_group.scatter_(1, groups.items, signal.advantages[..., 0].double() / 3)
    gradients = per_group @ jacobian
    error = float((gradients.var(0).sum() / many).sqrt())
    assert float(exact.norm()) > 10 * error
    assert float((gradients.mean(0) - exact).norm()) < 4 * error
    # The same bound refuses equal weights, as if the rollouts were independent draws.
    ones = torch.full((many, 3), 1 / 3, dtype=torch.float64)
    ones = ones * (_rewards_of_items(groups.items).double() - baseline)
    naive_mean = torch.zeros(many, 8, dtype=torch.float64).scatter_(1, groups.items, ones).mean(0)
    assert float((naive_mean @ jacobian - exact).norm()) > 4 * error


def test_groups_without_weights_are_refused() -> None:
    policy = _policy()
    groups = gumbel(policy, tiny.make_prompts(policy.catalog, [[1]], [[3]]), 3)
    bare = replace(groups, weights=None)
    for found in (bare, add_gt(groups)):
        with pytest.raises(RecastError, match=r"weights is None: .* use the sampler 'gumbel'"):
            gumbel_pg(found, first_hit(found))


@pytest.mark.parametrize("baseline", [float("nan"), float("inf")])
def test_a_baseline_is_finite(baseline: float) -> None:
    with pytest.raises(RecastError, match=f"baseline is {baseline}: give a number from -1e"):
        gumbel_pg(_groups([[0.5, 0.25, 0.125]]), torch.ones(1, 3), baseline=baseline)
