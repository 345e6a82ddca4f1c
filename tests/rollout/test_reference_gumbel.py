"""Gumbel top-k against exact enumeration: what is drawn, the threshold and the weights."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from itertools import permutations
from math import exp, prod

import naive
import pytest
import tiny
import torch
from torch import Tensor

from recast.groups import select
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.rollout.gumbel import given_maximum, gumbel, importance_weights, perturbed_beams
from recast.rollout.tree import TreeDecoder
from recast.types import Draw, Prompts, RecastError

MANY = 5000


def trie_draw(seed: int, step: int) -> Draw:
    return Draw(logprob_space="trie", seed=seed, step=step)


def _policy() -> Policy:
    return tiny.tiny_policy("qwen3", tiny.tiny_catalog())


def _repeated(policy: Policy, seen: list[int]) -> Prompts:
    """The same prompt under many row ids: independent repetitions in one call."""
    return tiny.make_prompts(policy.catalog, [[0, 1]] * MANY, [[7]] * MANY, [seen] * MANY)


def _exact(policy: Policy, prompts: Prompts, row: int = 0) -> dict[int, float]:
    plain = tiny.twin(policy.model)
    found = naive.item_logprobs(plain, policy.catalog, prompts, row, "trie")
    return {item: exp(sum(values)) for item, values in found.items()}


def _set_probability(chosen: tuple[int, ...], p: dict[int, float]) -> float:
    """Plackett-Luce probability of a set: the sum over the orders it can be drawn in."""
    return sum(
        prod(p[item] / (1 - sum(p[i] for i in order[:k])) for k, item in enumerate(order))
        for order in permutations(chosen)
    )


def _kth_largest_cdf(phi: Tensor, k: int, at: Tensor) -> Tensor:
    """P(the k-th largest of phi_i + Gumbel noise <= t) = P(fewer than k of them exceed t)."""
    exceed = -(-(phi[:, None] - at).exp()).expm1()
    exactly = [torch.ones_like(at)] + [torch.zeros_like(at) for _ in range(k - 1)]
    for q in exceed:
        below = [torch.zeros_like(at), *exactly[:-1]]
        exactly = [a * (1 - q) + b * q for a, b in zip(exactly, below, strict=True)]
    return torch.stack(exactly).sum(0)


@pytest.mark.parametrize(("group_size", "seen"), [(2, []), (3, [0, 1, 6]), (4, []), (7, [])])
def test_sets_are_drawn_without_replacement(group_size: int, seen: list[int]) -> None:
    policy = _policy()
    prompts = _repeated(policy, seen)
    groups = gumbel(policy, prompts, group_size, Draw(logprob_space="trie", seed=1))
    p = _exact(policy, prompts)
    counts = Counter(tuple(sorted(row)) for row in groups.items.tolist())
    wanted = {
        tuple(sorted(chosen)): MANY * _set_probability(chosen, p)
        for chosen in {tuple(sorted(order)) for order in permutations(p, group_size)}
    }
    assert sum(wanted.values()) == pytest.approx(MANY)
    assert set(counts) <= set(wanted)
    rare = [chosen for chosen, e in wanted.items() if e < 5]
    cells = [(counts[chosen], e) for chosen, e in wanted.items() if e >= 5]
    left = sum(wanted[chosen] for chosen in rare)
    if left > 0:
        cells.append((sum(counts[chosen] for chosen in rare), left))
    assert len(cells) > 4
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    assert statistic < naive.chi_square_limit(len(cells) - 1)


@pytest.mark.parametrize("width", [1, 3, 8])
def test_the_threshold_has_its_exact_distribution(width: int) -> None:
    """The value of the last leaf kept, pushed through its exact distribution, is uniform.

    It is not when the root's value is held fixed: the largest value must be random too.
    """
    policy = _policy()
    prompts = _repeated(policy, [])
    tree = TreeDecoder(policy, prompts, "trie")
    found = perturbed_beams(tree, 2, width, Draw(logprob_space="trie", seed=5), "x")
    phi = torch.tensor(list(_exact(policy, prompts).values()), dtype=torch.float64).log()
    for order in range(2):
        uniform = _kth_largest_cdf(phi, width, found.values[:, order, width - 1])
        counts = torch.bincount((uniform * 40).long(), minlength=40)
        assert len(counts) == 40
        statistic = float(((counts - MANY / 40) ** 2 / (MANY / 40)).sum())
        assert statistic < naive.chi_square_limit(39)
    assert (found.values[:, :, 1:] <= found.values[:, :, :-1]).all()


def test_the_weights_integrate_to_the_policy() -> None:
    """E[w_i 1(i drawn)] = p_i, by quadrature over the threshold of the other items.

    Item i is drawn if and only if its value exceeds the G-th largest of the others, which is then
    the threshold.
    """
    policy = _policy()
    phi = torch.tensor(list(_exact(policy, _repeated(policy, [])).values())).double().log()
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    for group_size in range(1, 8):
        for i in range(8):
            others = torch.cat([phi[:i], phi[i + 1 :]])
            mass = _kth_largest_cdf(others, group_size, grid).diff()
            drawn = 1 - (-(phi[i] - middle).exp()).exp()
            weights = importance_weights(phi[i].expand(len(middle), 1), middle[:, None])[:, 0]
            assert float((mass * drawn * weights).sum()) == pytest.approx(exp(phi[i]), rel=1e-6)


@pytest.mark.parametrize(("group_size", "seen"), [(3, []), (3, [2, 4]), (6, [])])
def test_weighted_rollouts_estimate_the_policy_without_bias(
    group_size: int, seen: list[int]
) -> None:
    """From groups of 3: the variance of a single rollout's weight is infinite."""
    policy = _policy()
    prompts = _repeated(policy, seen)
    groups = gumbel(policy, prompts, group_size, Draw(logprob_space="trie", seed=3))
    assert groups.weights is not None
    for item, p in _exact(policy, prompts).items():
        estimate = (groups.weights.double() * (groups.items == item)).sum(1)
        error = float(estimate.std()) / MANY**0.5
        assert error < 0.1 * max(p, 0.1)  # the bound below means something
        assert abs(float(estimate.mean()) - p) < 4.5 * error
    # The sum shows a common factor: with the root's value held at 0 it is 0.89 in groups of 3.
    total = groups.weights.double().sum(1)
    error = float(total.std()) / MANY**0.5
    assert error < 0.02
    assert abs(float(total.mean()) - 1) < 4.5 * error


def test_a_group_of_all_items_has_their_probabilities_as_weights() -> None:
    policy = _policy()
    seen = [[], [0, 1, 2, 3, 4, 5], list(range(8))]
    prompts = tiny.make_prompts(policy.catalog, [[1], [2], [3]], [[6], [7], []], seen)
    for group_size in (8, 11):
        groups = gumbel(policy, prompts, group_size)
        assert groups.weights is not None
        assert groups.exists.sum(1).tolist() == [8, 2, 0]
        for row in range(2):
            p = _exact(policy, prompts, row)
            ranking = sorted(p, key=lambda item: -p[item])
            assert groups.items[row, : len(p)].tolist() == ranking
            found = groups.weights[row, : len(p)].tolist()
            assert found == pytest.approx([p[item] for item in ranking], rel=1e-4)
        missing = ~groups.exists
        assert (groups.weights[missing] == 0).all()
        assert (groups.items[missing] == -1).all()
        assert (groups.rollout_logprobs[missing] == 0).all()
        assert (groups.tokens[missing] == policy.catalog.pad_token).all()


def test_exactly_as_many_items_as_rollouts_is_exact_and_one_more_is_not() -> None:
    policy = _policy()
    seen = [[0, 1, 2, 3, 4], [0, 1, 2, 3]]
    prompts = tiny.make_prompts(policy.catalog, [[1], [1]], [[6], [6]], seen)
    groups = gumbel(policy, prompts, 3)
    assert groups.weights is not None
    assert groups.exists.all()
    assert float(groups.weights[0].sum()) == pytest.approx(1, abs=1e-6)
    assert abs(float(groups.weights[1].sum()) - 1) > 1e-3


def test_groups_are_distinct_most_probable_first_and_agree_with_the_update() -> None:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    histories = [[1, 2, 3, 4, 5, 6], [7], [], [8, 9, 10]]
    prompts = tiny.make_prompts(catalog, histories, [[20], [21], [22], [23]], histories)
    for name in tiny.ARCHITECTURES:
        policy = tiny.tiny_policy(name, catalog)
        groups = gumbel(policy, prompts, 8)
        with torch.no_grad():
            again = branch_logprobs(policy, prompts, groups.tokens, "trie")
            targets = branch_logprobs(policy, prompts, prompts.targets, "trie")
        assert (groups.rollout_logprobs - again).abs().max() <= 1e-5
        assert (groups.target_logprobs - targets).abs().max() <= 1e-5
        total = groups.rollout_logprobs.sum(-1)
        assert (total[:, 1:] <= total[:, :-1]).all()
        assert torch.equal(catalog.tokens_of(groups.items), groups.tokens)
        assert groups.weights is not None
        # q <= 1: no weight is smaller than the probability it belongs to.
        assert (groups.weights >= total.exp() * (1 - 1e-5)).all()
        for row, seen in enumerate(histories):
            assert len(set(groups.items[row].tolist()) - set(seen)) == 8


def test_draws_depend_neither_on_the_batch_nor_on_its_order() -> None:
    """Row 2 may follow every branch, the others have seen some: nodes differ in width."""
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("mistral", catalog)
    histories = [[1, 2, 3, 4, 5, 6], [7], [], [8, 9, 10]]
    prompts = tiny.make_prompts(catalog, histories, [[20], [21], [22], [23]], histories)
    whole = gumbel(policy, prompts, 8, trie_draw(3, 4))
    backwards = gumbel(
        policy,
        select(prompts, torch.tensor([3, 2, 1, 0])),
        8,
        trie_draw(3, 4),
    )
    assert torch.equal(backwards.tokens.flip(0), whole.tokens)
    assert whole.weights is not None
    for row in range(4):
        alone = gumbel(
            policy,
            select(prompts, torch.tensor([row])),
            8,
            trie_draw(3, 4),
        )
        assert alone.weights is not None
        assert torch.equal(alone.tokens[0], whole.tokens[row])
        torch.testing.assert_close(alone.weights[0], whole.weights[row], rtol=1e-4, atol=1e-6)
    assert not torch.equal(gumbel(policy, prompts, 8, trie_draw(3, 5)).tokens, whole.tokens)
    assert not torch.equal(
        gumbel(policy, prompts, 8, Draw(logprob_space="trie", seed=4, step=4)).tokens, whole.tokens
    )


def test_the_weights_are_stable_however_far_from_the_threshold() -> None:
    """Against 60-digit arithmetic; far below kappa the weight is exp(kappa)."""
    for phi in (-0.01, -1.0, -20.0, -39.0, -41.0, -300.0, -900.0):
        for kappa in (-50.0, -3.0, 0.0, 8.0):
            p = Decimal(phi).exp()
            x = (Decimal(phi) - Decimal(kappa)).exp()
            q = 1 - (-x).exp() if x > Decimal("1e-9") else x - x * x / 2
            found = importance_weights(
                torch.tensor([[phi]], dtype=torch.float64),
                torch.tensor([[kappa]], dtype=torch.float64),
            )
            assert float(found) == pytest.approx(float(p / q), rel=1e-12)


def test_siblings_keep_their_order_and_get_the_maximum_they_were_given() -> None:
    values = torch.tensor([[[1.0, -2.0, 1.5, -torch.inf, -700.0]]], dtype=torch.float64)
    for maximum in (-3.0, 0.0, 40.0):
        found = given_maximum(values, torch.full((1, 1, 1), maximum, dtype=torch.float64))[0, 0]
        assert float(found.max()) == maximum
        assert found[3] == -torch.inf
        assert found.argsort(descending=True)[:2].tolist() == [2, 0]
        shift = Decimal(-maximum).exp() - Decimal("-1.5").exp()
        for i in (0, 1):
            wanted = -(shift + Decimal(-values[0, 0, i].item()).exp()).ln()
            assert float(found[i]) == pytest.approx(float(wanted), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("space", ["full", "level"])
def test_another_space_is_refused(space: str) -> None:
    policy = _policy()
    prompts = tiny.make_prompts(policy.catalog, [[1]], [[2]])
    with pytest.raises(RecastError, match=f"logprob_space is '{space}': the gumbel sampler"):
        gumbel(policy, prompts, 2, Draw(logprob_space=space))
