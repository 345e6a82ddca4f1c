"""AdaGRPO's gate: the worked example, every edge by hand, and a slow reading of the formula."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import partial

import naive
import pytest
import tiny
import torch
from torch import Tensor

from recast.signals.adagrpo import (
    Candidates,
    Scores,
    adagrpo,
    candidates,
    diagnose,
    difficulty,
    discriminability,
    in_batch_negatives,
    policy_scores,
    score,
)
from recast.signals.gates import gated
from recast.testing import check_signal
from recast.types import Prompts, RecastError, RolloutGroups, Signal

LOGPROBS = torch.arange(-1.0, -9.0, -1.0)[None]
ROLLOUTS = torch.tensor([[0.9, 0.2, 0.4, 0.8, 0.1, 0.3, 0.5, 0.6]])
NEGATIVES = torch.tensor([[0.35, 0.15, 0.05, 0.25, 0.3]])
EVERY = Candidates(torch.ones(1, 8) > 0, torch.ones(1, 1, 8) > 0)
TWO, FOUR = torch.tensor([2]), torch.tensor([4])


def _g(rollouts: Tensor, target: float, negatives: Tensor) -> bool:
    scores = Scores(rollouts, torch.tensor([[target]]), negatives)
    return bool(discriminability(scores, EVERY, TWO, FOUR))


def test_the_worked_example() -> None:
    """K = 8, tau = 1/4, rho = 1/2: rank_pi = 4 > 2; rank_RM = 2 <= 2; negatives rank 6 to 9."""
    assert difficulty(LOGPROBS, torch.tensor([[-3.5]]), EVERY.rivals, TWO).tolist() == [True]
    assert _g(ROLLOUTS, 0.85, NEGATIVES)
    # One negative of .55 ranks 4, and 4 > 4 fails.
    assert not _g(ROLLOUTS, 0.85, torch.tensor([[0.35, 0.15, 0.55, 0.25, 0.3]]))
    assert _g(ROLLOUTS, 0.85, torch.tensor([[0.35, 0.15, 0.45, 0.25, 0.3]]))  # ranks 5


def test_ranks_at_their_limits() -> None:
    for target, wanted in ((-1.5, False), (-2.0, False), (-2.5, True), (-99.0, True)):
        found = difficulty(LOGPROBS, torch.tensor([[target]]), EVERY.rivals, TWO)
        assert found.tolist() == [wanted]
    assert not _g(ROLLOUTS, 0.75, NEGATIVES)  # third
    assert not _g(ROLLOUTS, 0.8, NEGATIVES)  # shares the second place, so it is third
    assert _g(ROLLOUTS, 99.0, NEGATIVES)


def _worked(ranker_target: float = 0.85, negative: float = 0.3) -> tuple[RolloutGroups, Tensor]:
    """The worked example as the first of two prompts; items 0 to 7, target 100, negatives 8 to 15.

    The second prompt's target is item 8, the policy's best of its rollouts.
    """
    sids = [[[1, 1, k] for k in range(8)], [[1, 2, k] for k in range(8)]]
    groups = tiny.make_groups(sids, [[[1, 3, 0]], [[1, 2, 0]]], target_items=[[100], [8]])
    logprobs = torch.stack([LOGPROBS[0], LOGPROBS[0]])[..., None] / 3
    groups = replace(
        groups,
        rollout_logprobs=logprobs.expand(-1, -1, 3).clone(),
        target_logprobs=torch.tensor([[[-3.5, 0, 0]], [[-1.0, 0, 0]]]),
    )
    table = torch.full((101,), negative)
    table[:8], table[100] = ROLLOUTS[0], ranker_target
    return groups, table


def _targets(tokens: Tensor, items: Tensor) -> dict[str, Tensor]:
    """What prompts hold of their targets."""
    is_target = (items >= 0)[..., None]
    return {
        "targets": tokens,
        "target_items": items,
        "target_mask": is_target.expand(tokens.shape),
        "target_sids": tokens.masked_fill(~is_target, -1),
    }


def _rank(table: Tensor, prompts: Prompts, items: Tensor) -> Tensor:
    assert items.min() >= 0
    return table[items]


REWARDS = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1.0]])


def test_the_worked_example_as_a_signal() -> None:
    """Prompt 0 is admitted, so half of all rollouts; prompt 1 is certain of its target."""
    groups, table = _worked()
    signal = adagrpo(groups, REWARDS, ranker=partial(_rank, table), eps=0.0)
    assert signal.keep.tolist() == [[True] * 8, [False] * 8]
    std = (7 / 8 * (1 / 7)) ** 0.5
    wanted = torch.tensor([7 / 8, *[-1 / 8] * 7]) / std / 2
    torch.testing.assert_close(signal.advantages[0, :, 0], wanted)
    assert signal.advantages[1].eq(0).all()
    assert signal.nll_weight.tolist() == [1, 1]
    assert signal.metrics == {
        "gate/admitted_frac": 0.5,
        "gate/uncertain_frac": 0.5,
        "gate/discriminates_frac": 0.5,
    }
    loose = adagrpo(groups, REWARDS, ranker=partial(_rank, table), eps=0.0, grpo_weight=0.2)
    torch.testing.assert_close(loose.advantages[0, :, 0], 0.2 * wanted)
    for changed in (_worked(negative=0.55), _worked(ranker_target=0.7)):
        shut = adagrpo(changed[0], REWARDS, ranker=partial(_rank, changed[1]))
        assert not shut.keep.any()
        assert shut.metrics["gate/uncertain_frac"] == 0.5
        assert shut.metrics["gate/discriminates_frac"] == 0
    assert adagrpo(groups, REWARDS, ranker=partial(_rank, table), rho=0.8).keep.sum() == 0
    assert adagrpo(groups, REWARDS, ranker=partial(_rank, table), tau=0.5).keep.sum() == 0


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_a_constant_ranker_admits_nothing(rho: float) -> None:
    groups, _ = _worked()
    for value in (0.0, -3.0):
        ranker = partial(_rank, torch.full((101,), value))
        signal = adagrpo(groups, REWARDS, ranker=ranker, rho=rho)
        assert not signal.keep.any()
        assert signal.metrics["gate/uncertain_frac"] == 0.5


def test_a_target_that_was_rolled_out_is_no_rival_of_itself() -> None:
    """Rows 3 and 5 are the target: it ranks 4th of 8 by the policy, 1st by the ranker."""
    groups, table = _worked(ranker_target=0.95)
    tokens, items = groups.tokens.clone(), groups.items.clone()
    tokens[0, [3, 5]], items[0, [3, 5]] = torch.tensor([1, 3, 0]), 100
    named = tokens[:, :, None]
    logprobs = groups.rollout_logprobs.clone()
    logprobs[0, [3, 5]] = -4.0 / 3
    target = groups.target_logprobs.clone()
    target[0] = -4.0 / 3
    groups = replace(
        groups,
        tokens=tokens,
        items=items,
        predictions=named,
        rollout_logprobs=logprobs,
        target_logprobs=target,
    )
    found = candidates(groups)
    assert found.rivals[0, 0].tolist() == [True, True, True, False, True, False, True, True]
    assert found.exists.all()
    scores = score(groups, in_batch_negatives(groups, 5), partial(_rank, table))
    assert [x.tolist() for x in diagnose(groups, scores, tau=0.25, rho=0.5)] == [
        [True, False],
        [True, False],
    ]
    # ceil(.5 * 8) = 4: a rank of 4 is inside, were the copies rivals it would be none the worse.
    assert diagnose(groups, scores, tau=0.5, rho=0.5)[0].tolist() == [False, False]


def test_the_share_of_k_is_a_whole_number_where_it_should_be() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point; the seventh place is still inside."""
    sids = [[[1, 1, k] for k in range(100)]] * 2
    groups = tiny.make_groups(sids, [[[1, 3, 0]]] * 2)
    logprobs = -torch.arange(1.0, 101)[None, :, None].expand(2, -1, 3) / 3
    for target, wanted in ((-6.5, False), (-7.5, True)):
        groups = replace(
            groups, rollout_logprobs=logprobs, target_logprobs=torch.full((2, 1, 3), target / 3)
        )
        scores = score(groups, in_batch_negatives(groups, 1), lambda _, items: items.float())
        assert diagnose(groups, scores, tau=0.07, rho=0.5)[0].tolist() == [wanted] * 2


def test_rollouts_without_an_item_are_left_out() -> None:
    """Rows 0, 1 (invalid) and 6, 7 (none at all) are gone: K = 4, the target ranks 2nd."""
    groups, table = _worked()
    items, mask = groups.items.clone(), groups.loss_mask.clone()
    items[0, :2], items[0, 6:], mask[0, 6:] = -1, -1, False
    groups = replace(groups, items=items, loss_mask=mask)
    scores = score(groups, in_batch_negatives(groups, 5), partial(_rank, table))
    assert candidates(groups).exists[0].tolist() == [False, False, *[True] * 4, False, False]
    # Scores left are .4 .8 .1 .3: the target is first, 0.3 ranks 3rd (> 2), top = 1.
    uncertain, discriminates = diagnose(groups, scores, tau=0.25, rho=0.5)
    assert (uncertain[0], discriminates[0]) == (True, True)
    assert not diagnose(groups, scores, tau=0.5, rho=0.5)[0][0]
    assert not diagnose(groups, scores, tau=0.25, rho=0.75)[1][0]
    signal = adagrpo(groups, REWARDS, ranker=partial(_rank, table))
    assert signal.keep[0].tolist() == [*[True] * 6, False, False]  # an invalid one still learns


def test_no_valid_item_admits_nothing() -> None:
    groups, table = _worked()
    invalid = replace(groups, items=torch.full_like(groups.items, -1))
    nothing = replace(invalid, loss_mask=torch.zeros_like(groups.loss_mask))
    for empty in (invalid, nothing):
        signal = adagrpo(empty, REWARDS, ranker=partial(_rank, table))
        assert not signal.keep.any()
        assert signal.advantages.isfinite().all()
        assert signal.nll_weight.tolist() == [1, 1]


def test_of_several_targets_the_best_ranked_counts_and_padding_does_not() -> None:
    groups, table = _worked()
    prompts = groups.prompts
    extra = torch.tensor([[[1, 3, 1]], [[0, 0, 0]]])
    items, tokens = torch.tensor([[100, 99], [8, -1]]), torch.cat([prompts.targets, extra], dim=1)
    prompts = replace(prompts, **_targets(tokens, items))
    for logprob, value, wanted in (
        (-9.0, 0.0, (True, True)),  # the second target is bad at both: the first decides
        (-1.5, 0.0, (False, True)),  # the policy has the second one second
        (-9.0, 0.99, (True, True)),
    ):
        more = torch.tensor([[[logprob, 0, 0]], [[0.0, 0, 0]]])
        both = torch.cat([groups.target_logprobs, more], dim=1)
        several = replace(groups, prompts=prompts, target_logprobs=both)
        values = table.clone()
        values[99] = value
        scores = score(several, in_batch_negatives(several, 5), partial(_rank, values))
        uncertain, discriminates = diagnose(several, scores, tau=0.25, rho=0.5)
        assert (bool(uncertain[0]), bool(discriminates[0])) == wanted
        assert (bool(uncertain[1]), bool(discriminates[1])) == (False, False)
    only_second = table.clone()
    only_second[100], only_second[99] = 0.0, 0.99
    scores = score(several, in_batch_negatives(several, 5), partial(_rank, only_second))
    assert diagnose(several, scores, tau=0.25, rho=0.5)[1].tolist() == [True, False]


def test_a_padded_target_has_no_rank() -> None:
    """Read as item 0 with a log-probability of 0 it would be first by policy and ranker."""
    groups, table = _worked(ranker_target=0.0)
    tokens = torch.nn.functional.pad(groups.prompts.targets, (0, 0, 0, 1))
    prompts = replace(groups.prompts, **_targets(tokens, torch.tensor([[100, -1], [-1, -1]])))
    logprobs = torch.nn.functional.pad(groups.target_logprobs, (0, 0, 0, 1))
    padded = replace(groups, prompts=prompts, target_logprobs=logprobs)
    table[0] = 2.0
    scores = score(padded, in_batch_negatives(padded, 5), partial(_rank, table))
    assert scores.targets.tolist() == [[0, -math.inf], [-math.inf, -math.inf]]
    flags = diagnose(padded, scores, tau=0.25, rho=0.0)
    assert [x.tolist() for x in flags] == [[True, True], [False, False]]


def test_negatives_come_from_other_prompts_and_are_no_target() -> None:
    """Prompt 0 may draw 4 to 8 but not its target 8; the two 5s make 5 twice as likely."""
    sids = [[[0, 0, i] for i in row] for row in ([1, 2, 3], [4, 5, 6], [5, 7, 8])]
    items = [[1, 2, 3], [4, 5, 6], [5, 7, -1]]
    groups = tiny.make_groups(
        sids, [[[0, 0, 6]], [[9, 9, 9]], [[9, 9, 9]]], items=items, target_items=[[6], [50], [51]]
    )
    drawn = in_batch_negatives(groups, 6000)
    assert drawn.shape == (3, 6000)
    counts = Counter(drawn[0].tolist())
    assert set(counts) == {4, 5, 7}
    wanted = {4: 1500, 5: 3000, 7: 1500}
    statistic = sum((counts[i] - wanted[i]) ** 2 / wanted[i] for i in wanted)
    assert statistic < naive.chi_square_limit(2)
    assert set(drawn[1].tolist()) == {1, 2, 3, 5, 7}
    assert set(drawn[2].tolist()) == {1, 2, 3, 4, 5, 6}
    assert torch.equal(in_batch_negatives(groups, 6000), drawn)
    assert not torch.equal(in_batch_negatives(replace(groups, step=1), 6000), drawn)
    assert not torch.equal(drawn[0], drawn[1])


def test_a_prompt_without_any_negative_is_not_admitted() -> None:
    """All that the other prompt rolled out is the first one's target."""
    groups, table = _worked()
    tokens, items = groups.tokens.clone(), groups.items.clone()
    tokens[1], items[1] = torch.tensor([1, 3, 0]), 100
    groups = replace(groups, tokens=tokens, items=items, predictions=tokens[:, :, None])
    assert in_batch_negatives(groups, 3).tolist()[0] == [-1, -1, -1]
    assert not adagrpo(groups, REWARDS, ranker=partial(_rank, table)).keep.any()


def test_everything_is_scored_for_its_own_prompt_in_one_call() -> None:
    groups, _ = _worked()
    calls = []

    def ranker(prompts: Prompts, items: Tensor) -> Tensor:
        calls.append((prompts, items))
        return (items + 1000 * prompts.row_ids[:, None]).float()

    scores = score(groups, torch.tensor([[8, 9], [3, -1]]), ranker)
    assert len(calls) == 1
    assert calls[0][0] is groups.prompts
    assert calls[0][1].tolist() == [[*range(8), 100, 8, 9], [*range(8, 16), 8, 3, 0]]
    assert scores.rollouts.tolist() == [[*range(8)], [*range(1008, 1016)]]
    assert scores.targets.tolist() == [[100], [1008]]
    assert scores.negatives.tolist() == [[8, 9], [1003, math.inf]]


def _slow(
    groups: RolloutGroups, negatives: list[list[int]], table: list[list[float]], tau: float
) -> list[tuple[bool, bool]]:
    """Section 3.2 as written, prompt by prompt; rho is a half."""
    found = []
    for b, row in enumerate(groups.items.tolist()):
        target = int(groups.prompts.target_items[b, 0])
        size = sum(item >= 0 for item in row)
        lp = groups.rollout_logprobs[b].sum(-1).tolist()
        own = float(groups.target_logprobs[b, 0].sum())
        score_of = table[b]
        others = [k for k, item in enumerate(row) if item not in (-1, target)]
        rank_pi = 1 + sum(lp[k] > own for k in others)
        rank_rm = 1 + sum(score_of[row[k]] >= score_of[target] for k in others)
        existing = [item for item in row if item >= 0]
        ranks = [1 + sum(score_of[i] > score_of[n] for i in existing) for n in negatives[b]]
        top, bottom = math.ceil(tau * size), math.ceil(size / 2)
        g = rank_rm <= top and min(negatives[b]) >= 0 and all(r > bottom for r in ranks)
        found.append((rank_pi > top, g))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_any_batch_equals_the_definition_and_no_input_is_touched(seed: int) -> None:
    """96 prompts, 6 rollouts of 9 items with repeats, ties, gaps and hits."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.randint(-1, 9, (96, 6), generator=draw)
    targets = torch.randint(9, (96, 1), generator=draw)
    sids = torch.stack([items // 3, items % 3, items], -1).masked_fill(items[..., None] < 0, 7)
    wanted = torch.stack([targets // 3, targets % 3, targets], -1)
    groups = tiny.make_groups(
        sids.tolist(), wanted.tolist(), targets.tolist(), items.tolist(), seed=seed
    )
    of_item = -torch.rand(96, 10, 3, generator=draw)
    index = items.clamp(min=-1) % 10
    rows = torch.arange(96)[:, None]
    groups = replace(
        groups, rollout_logprobs=of_item[rows, index], target_logprobs=of_item[rows, targets]
    )
    table = torch.randint(12, (96, 9), generator=draw).float()
    rewards = torch.rand(96, 6, generator=draw)

    def ranker(prompts: Prompts, items: Tensor) -> Tensor:
        return table[prompts.row_ids].gather(1, items)

    before = [x.clone() for x in (groups.tokens, groups.items, groups.rollout_logprobs, rewards)]
    negatives = in_batch_negatives(groups, 1)
    flags = diagnose(groups, score(groups, negatives, ranker), tau=0.3, rho=0.5)
    slow = _slow(groups, negatives.tolist(), table.tolist(), 0.3)
    assert list(zip(*(x.tolist() for x in flags), strict=True)) == slow
    assert 0 < sum(f and g for f, g in slow) < 96
    signal = adagrpo(groups, rewards, ranker=ranker, tau=0.3, num_negatives=1)
    gate = flags[0] & flags[1]
    direct = gated(groups, rewards, gate, grpo_weight=1.0, eps=1e-6)
    assert torch.equal(signal.advantages, direct.advantages)
    assert torch.equal(signal.keep, gate[:, None].expand(-1, 6))
    after = [groups.tokens, groups.items, groups.rollout_logprobs, rewards]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_policy_scores_are_sums_over_the_tokens_that_count() -> None:
    groups, _ = _worked()
    logprobs, targets = policy_scores(groups)
    torch.testing.assert_close(logprobs[0], LOGPROBS[0])
    assert targets.tolist() == [[-3.5], [-1.0]]


def test_one_prompt_has_no_negatives() -> None:
    groups = tiny.make_groups([[[1, 2, 3], [7, 7, 7]]], [[[1, 2, 3]]])
    with pytest.raises(RecastError, match=r"prompts_per_step is 1: .* give 2 or more"):
        adagrpo(groups, torch.zeros(1, 2), ranker=lambda _, items: items.float())


@pytest.mark.parametrize(
    ("signal", "line"),
    [
        (partial(adagrpo, tau=0.0), "tau is 0.0: give a number above 0, up to 1"),
        (partial(adagrpo, tau=1.1), "tau is 1.1"),
        (partial(adagrpo, rho=-0.1), "rho is -0.1: give a number from 0 to 1"),
        (partial(adagrpo, rho=float("nan")), "rho is nan"),
        (partial(adagrpo, num_negatives=0), "num_negatives is 0: give a number from 1"),
        (partial(adagrpo, grpo_weight=-1.0), "grpo_weight is -1.0"),
    ],
)
def test_parameters_out_of_range(signal: partial[Signal], line: str) -> None:
    groups, table = _worked()
    with pytest.raises(RecastError, match=line):
        signal(groups, REWARDS, ranker=partial(_rank, table))


def test_the_contract() -> None:
    check_signal(adagrpo)
    check_signal(adagrpo, parameters={"tau": 0.1, "rho": 0.1, "num_negatives": 1})
