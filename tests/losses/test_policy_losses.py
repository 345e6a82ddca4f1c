"""Losses per token and per rollout: worked numbers, a slow reference, gradients, padding."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recast.losses import dr_grpo, ecpo, gbpo, gspo, ppo_clip, reinforce, sage_clip
from recast.losses.rollouts import rollout_mean, rollout_sum
from recast.types import RecastError

LENGTHS = [[3, 1, 2, 0], [2, 3, 0, 0], [0, 0, 0, 0]]
"""Counted tokens of 3 groups of 4 rollouts: whole, short, padded rows, a group of padding."""


def _mask() -> Tensor:
    return torch.arange(3) < torch.tensor(LENGTHS)[..., None]


def _batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprobs, old_logprobs, advantages, loss_mask in float64."""
    draw = torch.Generator().manual_seed(seed)
    shape = (3, 4, 3)
    logprobs = -3 * torch.rand(shape, generator=draw, dtype=torch.float64) - 0.01
    old = (logprobs + 0.5 * torch.randn(shape, generator=draw, dtype=torch.float64)).clamp(
        max=-1e-3
    )
    levels = torch.tensor([-1.5, -0.5, 0.0, 1.0, 2.0], dtype=torch.float64)
    chosen = levels[torch.randint(0, 5, shape[:2], generator=draw)]
    return logprobs, old, chosen[..., None].expand(shape).clone(), _mask()


def _worse(rho: Tensor, low: float, high: float, advantage: Tensor) -> Tensor:
    return torch.max(-advantage * rho, -advantage * rho.clamp(low, high))


def _slow_dr_grpo(lp: Tensor, old: Tensor, a: Tensor) -> Tensor:
    return sum(_worse((x - o).exp(), 0.8, 1.2, w) for x, o, w in zip(lp, old, a, strict=True)) / 3


def _slow_reinforce(lp: Tensor, old: Tensor, a: Tensor) -> Tensor:
    terms = [-(x - x.detach()).exp() * w for x, w in zip(lp, a, strict=True)]
    return sum(terms) / len(terms)


def _slow_gspo(lp: Tensor, old: Tensor, a: Tensor) -> Tensor:
    s = (lp.exp().prod() / old.exp().prod()) ** (1 / len(lp))
    return _worse(s, 1 - 3e-4, 1 + 4e-4, a[0])


def _slow_sage(lp: Tensor, old: Tensor, a: Tensor) -> Tensor:
    s = (lp.exp().prod() / old.exp().prod()) ** (1 / len(lp))
    surprisal = float(-old.mean())
    low = 1 - 0.2 * (1 + math.exp(-surprisal)) if a[0] < 0 else 0.8
    return _worse(s, low, 1.4 if a[0] > 0 else 1.2, a[0])


PER_ROLLOUT: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
    (dr_grpo, _slow_dr_grpo),
    (reinforce, _slow_reinforce),
    (gspo, _slow_gspo),
    (sage_clip, _slow_sage),
]


def _call(loss: Callable[..., Tensor], lp: Tensor, old: Tensor, a: Tensor, mask: Tensor) -> Tensor:
    return loss(lp, a, mask) if loss is reinforce else loss(lp, old, a, mask)


@pytest.mark.parametrize(("fast", "slow"), PER_ROLLOUT)
@pytest.mark.parametrize("seed", range(8))
def test_per_rollout_losses_equal_the_definition_in_value_and_gradient(
    fast: Callable[..., Tensor], slow: Callable[..., Tensor], seed: int
) -> None:
    """What is not counted is NaN in every input and still neither shows nor gets a gradient."""
    lp, old, a, mask = _batch(seed)
    lp, old, a = (torch.where(mask, x, torch.nan) for x in (lp, old, a))
    ours, theirs = lp.clone().requires_grad_(), lp.clone().requires_grad_()
    found = _call(fast, ours, old, a, mask)
    assert found.shape == (3, 4)
    wanted = torch.zeros(3, 4, dtype=torch.float64)
    for b in range(3):
        for k in range(4):
            n = LENGTHS[b][k]
            if n:
                wanted[b, k] = slow(theirs[b, k, :n], old[b, k, :n], a[b, k, :n])
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad[~mask] == 0).all()
    assert (found[~mask.any(-1)] == 0).all()
    assert ours.grad.abs().sum() > 0


@pytest.mark.parametrize("seed", range(4))
def test_per_token_losses_equal_the_definition_in_value_and_gradient(seed: int) -> None:
    lp, old, a, _ = _batch(seed)
    probability = old.exp()

    def slow_ecpo(x: Tensor) -> Tensor:
        capped = torch.maximum(x.exp().detach() / 1.3, probability)
        return _worse(x.exp() / capped, 0.8, 1.2, a)

    def slow_gbpo(x: Tensor) -> Tensor:
        pi = x.exp()
        other = torch.where(a >= 0, pi.detach(), 1 - pi.detach())
        return -a * pi / torch.maximum(probability, other)

    for fast, slow in ((ecpo, slow_ecpo), (gbpo, slow_gbpo)):
        ours, theirs = lp.clone().requires_grad_(), lp.clone().requires_grad_()
        found, wanted = fast(ours, old, a), slow(theirs)
        torch.testing.assert_close(found, wanted)
        found.sum().backward()
        wanted.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


def _token(probability: float, old: float, advantage: float) -> tuple[Tensor, Tensor, Tensor]:
    values = (math.log(probability), math.log(old), advantage)
    lp, before, a = (torch.tensor([x], dtype=torch.float64) for x in values)
    return lp.requires_grad_(), before, a


@pytest.mark.parametrize(("old", "ratio"), [(0.1, 1.3), (0.45, 1.111111), (0.9, 0.555556)])
def test_ecpo_worked_ratios(old: float, ratio: float) -> None:
    """For A = -1 the loss is the ratio where no clip binds, and PPO's 5.0 becomes 1.3."""
    assert ecpo(*_token(0.5, old, -1.0), clip_low=0.9).item() == pytest.approx(ratio, abs=1e-6)


def test_ecpo_is_ppo_without_the_cap_for_a_positive_advantage() -> None:
    lp, old, a, _ = _batch(3)
    found = ecpo(lp, old, a.abs())
    torch.testing.assert_close(found, ppo_clip(lp, old, a.abs(), clip_high=0.2))


@pytest.mark.parametrize(
    ("advantage", "loss"), [(1.0, -1.0), (-1.0, 0.428571), (0.0, 0.0), (-2.0, 0.857143)]
)
def test_gbpo_worked_ratios(advantage: float, loss: float) -> None:
    lp, old, a = _token(0.3, 0.1, advantage)
    found = gbpo(lp, old, a)
    assert found.item() == pytest.approx(loss, abs=1e-6)
    found.backward()
    assert float(lp.grad) == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.49])
def test_gbpos_negative_gradient_is_that_of_binary_cross_entropy(probability: float) -> None:
    lp, old, a = _token(probability, 0.01, -1.0)
    gbpo(lp, old, a).backward()
    again = lp.detach().clone().requires_grad_()
    (-(1 - again.exp()).log()).backward()
    assert float(lp.grad) == pytest.approx(float(again.grad), rel=1e-9)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_gbpo_of_a_certain_token_is_finite(advantage: float) -> None:
    for logprob in (0.0, 1e-7):
        lp = torch.tensor([logprob], requires_grad=True)
        gbpo(lp, torch.tensor([0.0]), torch.tensor([advantage])).backward()
        assert float(lp.grad) == pytest.approx(-advantage, abs=1e-5)


def test_gspo_worked_ratio_and_clip() -> None:
    lp = torch.tensor([[[0.3, -0.1, 0.1]]], dtype=torch.float64)
    zeros, ones, mask = torch.zeros_like(lp), torch.ones_like(lp), torch.ones(1, 1, 3) > 0
    assert float(gspo(lp, zeros, ones, mask, clip_high=1.0)) == pytest.approx(-1.10517, abs=1e-5)
    assert float(gspo(lp, zeros, ones, mask)) == pytest.approx(-1.0004, abs=1e-9)
    assert float(gspo(lp, zeros, -ones, mask)) == pytest.approx(1.10517, abs=1e-5)
    assert float(gspo(-lp, zeros, -ones, mask)) == pytest.approx(0.9997, abs=1e-9)


def test_sage_bounds() -> None:
    """Upper bound 1 + .2 * 2; lower bound .6 for a certain failure, near .8 for an unlikely one."""
    mask = torch.ones(1, 1, 1) > 0

    def loss(ratio: float, old: float, advantage: float) -> float:
        before = torch.full((1, 1, 1), old, dtype=torch.float64)
        a = torch.full_like(before, advantage)
        return float(sage_clip(before + math.log(ratio), before, a, mask))

    assert loss(1.35, -1.0, 1.0) == pytest.approx(-1.35)
    assert loss(1.6, -1.0, 1.0) == pytest.approx(-1.4)
    assert loss(0.1, 0.0, -1.0) == pytest.approx(0.6)
    assert loss(0.1, math.log(0.5), -1.0) == pytest.approx(0.7)
    assert loss(0.1, -30.0, -1.0) == pytest.approx(0.8)
    assert loss(1.6, -1.0, 0.0) == 0


def test_without_boost_and_penalty_sage_is_gspo() -> None:
    lp, old, a, mask = _batch(5)
    plain = sage_clip(lp, old, a, mask, boost=1.0, penalty=0.0)
    torch.testing.assert_close(plain, gspo(lp, old, a, mask, clip_low=0.2, clip_high=0.2))


def test_dr_grpo_divides_by_the_width_and_reinforce_by_the_length() -> None:
    lp, a = torch.zeros(1, 2, 4), torch.full((1, 2, 4), 2.0)
    mask = torch.arange(4) < torch.tensor([[[4], [1]]])
    assert dr_grpo(lp, lp, a, mask).tolist() == [[-2.0, -0.5]]
    assert reinforce(lp, a, mask).tolist() == [[-2.0, -2.0]]


@pytest.mark.parametrize("advantage", [-1.5, 0.7])
def test_at_ratio_one_every_loss_is_a_plain_policy_gradient_but_gbpo(advantage: float) -> None:
    """One step per rollout: d loss / d lp = -A, over the width or the length where it is meant."""
    old = torch.log(torch.tensor([[[0.2, 0.5, 0.9], [0.3, 0.6, 0.0]]], dtype=torch.float64) + 1e-9)
    mask = torch.tensor([[[True, True, True], [True, True, False]]])
    a = torch.full_like(old, advantage)
    length = mask.double().sum(-1, keepdim=True)
    scale = {ppo_clip: 1.0, ecpo: 1.0, dr_grpo: 1 / 3}
    for loss in (ppo_clip, ecpo, dr_grpo, reinforce, gspo, sage_clip):
        lp = old.clone().requires_grad_()
        per_token = loss in (ppo_clip, ecpo)
        found = loss(lp, old, a) if per_token else _call(loss, lp, old, a, mask)
        torch.where(mask if per_token else mask.any(-1), found, 0.0).sum().backward()
        share = scale[loss] if loss in scale else 1 / length
        torch.testing.assert_close(lp.grad, (-advantage * share * mask).double())


def test_a_group_does_not_see_the_others_of_its_batch() -> None:
    lp, old, a, mask = _batch(11)
    for loss, _ in PER_ROLLOUT:
        whole = _call(loss, lp, old, a, mask)
        one = [_call(loss, *(x[b : b + 1] for x in (lp, old, a, mask))) for b in range(3)]
        torch.testing.assert_close(whole, torch.cat(one))


def test_far_ratios_stay_finite() -> None:
    far = torch.full((1, 1, 3), 900.0)
    zeros, mask = torch.zeros(1, 1, 3), torch.ones(1, 1, 3) > 0
    for sign in (1.0, -1.0):
        for loss in (dr_grpo, gspo, sage_clip):
            lp = (sign * far).requires_grad_()
            loss(lp, zeros, -torch.ones(1, 1, 3), mask).sum().backward()
            assert lp.grad.isfinite().all()


def test_rollout_sums_and_means() -> None:
    values = torch.tensor([[[1.0, 3.0, torch.nan], [torch.nan, torch.nan, torch.nan]]])
    mask = torch.tensor([[[True, True, False], [False, False, False]]])
    assert rollout_sum(values, mask).tolist() == [[4, 0]]
    assert rollout_mean(values, mask).tolist() == [[2, 0]]


@pytest.mark.parametrize(
    ("loss", "setting", "value"),
    [
        (ppo_clip, "clip_low", 1.0),
        (ppo_clip, "clip_low", -0.1),
        (ppo_clip, "clip_high", -0.1),
        (ppo_clip, "clip_high", math.nan),
        (ppo_clip, "dual_clip", 1.0),
        (ecpo, "clip_low", 1.5),
        (ecpo, "delta", -0.1),
        (dr_grpo, "clip_high", -1.0),
        (gspo, "clip_low", 2.0),
        (sage_clip, "boost", 0.5),
        (sage_clip, "penalty", -1.0),
        (sage_clip, "penalty", 4.0),
    ],
)
def test_a_setting_outside_its_range_is_refused_by_name(
    loss: Callable[..., Tensor], setting: str, value: float
) -> None:
    lp, old, a, mask = _batch(0)
    inputs = (lp, old, a) if loss in (ppo_clip, ecpo) else (lp, old, a, mask)
    with pytest.raises(RecastError, match=f"^{setting} is {value}: give"):
        loss(*inputs, **{setting: value})
