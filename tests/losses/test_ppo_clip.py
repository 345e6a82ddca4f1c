"""The clipped loss and the KL estimate: worked numbers, limits, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from recast.losses import KLS, kl_k3, ppo_clip


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.5, 1, -1.28),
        (0.5, 1, -0.5),
        (0.5, -1, 0.8),
        (1.5, -1, 1.5),
        (4, -1, 3.0),
        (1, 2, -2),
        (9, 0, 0),
    ],
)
def test_ppo_clip_worked_values(ratio: float, advantage: float, loss: float) -> None:
    old = torch.tensor([-1.0], dtype=torch.float64)
    found = ppo_clip(old + math.log(ratio), old, torch.tensor([float(advantage)]))
    assert float(found) == pytest.approx(loss, abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1, 1, -1), (1, -1, 1), (1.5, 1, 0), (0.5, 1, -0.5), (0.5, -1, 0), (1.5, -1, 1.5), (4, -1, 0)],
)
def test_ppo_clip_gradients(ratio: float, advantage: float, slope: float) -> None:
    """d loss / d lp = -A ratio where nothing is clipped, 0 where it is."""
    old = torch.tensor([-1.0], dtype=torch.float64)
    logprobs = (old + math.log(ratio)).requires_grad_()
    ppo_clip(logprobs, old, torch.tensor([float(advantage)])).sum().backward()
    assert float(logprobs.grad) == pytest.approx(slope, abs=1e-9)


def test_ppo_clip_settings_and_extreme_ratios() -> None:
    old = torch.zeros(2)
    found = ppo_clip(torch.tensor([2.0, -2.0]), old, torch.tensor([1.0, -1.0]), clip_low=0.1)
    assert found.tolist() == pytest.approx([-1.28, 0.9])
    far = ppo_clip(torch.tensor([500.0]), torch.zeros(1), torch.tensor([-1.0]), dual_clip=1e30)
    assert float(far) == pytest.approx(math.exp(20), rel=1e-5)


def test_k3_worked_values() -> None:
    pairs = torch.tensor([[-1.0, -1.2], [-1.2, -1.0], [-3.0, -3.0]], dtype=torch.float64)
    found = kl_k3(pairs[:, 0], pairs[:, 1]).tolist()
    assert found == pytest.approx([0.018731, 0.021403, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "values", "slopes"),
    [
        ("k1", (0.2, -0.2), (1.0, 1.0)),
        ("abs", (0.2, 0.2), (1.0, -1.0)),
        ("k2", (0.02, 0.02), (0.2, -0.2)),
        # exp(-0.2) - 1 + 0.2 and exp(0.2) - 1 - 0.2; 1 - exp(-0.2) and 1 - exp(0.2)
        ("k3", (0.018731, 0.021403), (0.181269, -0.221403)),
    ],
)
def test_estimates_of_the_kl_and_their_gradients(
    name: str, values: tuple[float, float], slopes: tuple[float, float]
) -> None:
    logprobs = torch.tensor([-1.0, -1.2, -3.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.2, -1.0, -3.0], dtype=torch.float64)
    found = KLS[name](logprobs, reference)
    assert found.tolist() == pytest.approx([*values, 0], abs=1e-6)
    found.sum().backward()
    assert logprobs.grad[:2].tolist() == pytest.approx(slopes, abs=1e-6)


def test_in_the_mean_their_gradients_are_those_of_the_kl_either_way_or_nothing() -> None:
    """Expectations over three tokens, exactly: k1 0, k2 KL(policy || ref), k3 KL(ref || policy)."""
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logits = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)

    def gradient(value: torch.Tensor) -> list[float]:
        return torch.autograd.grad(value, logits)[0].tolist()

    def estimate(name: str) -> list[float]:
        lp = logits.log_softmax(0)
        return gradient((lp.exp().detach() * KLS[name](lp, ref.log())).sum())

    lp = logits.log_softmax(0)
    forward = gradient((lp.exp() * (lp - ref.log())).sum())
    backward = gradient((ref * (ref.log() - logits.log_softmax(0))).sum())
    assert estimate("k1") == pytest.approx([0, 0, 0], abs=1e-12)
    assert estimate("k2") == pytest.approx(forward, abs=1e-12)
    assert estimate("k3") == pytest.approx(backward, abs=1e-12)


def test_k3_is_never_negative_and_clamped() -> None:
    x = torch.linspace(-30, 30, 601, dtype=torch.float64)
    found = kl_k3(torch.zeros_like(x), x)
    assert found.min() >= 0
    assert found.max() == 10
    assert found.isfinite().all()
