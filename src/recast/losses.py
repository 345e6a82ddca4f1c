"""Losses per token: log-probabilities and advantages in, `Float[B, K, L]` out, no reduction.

Sums and the one division by a global count belong to the actor.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def ppo_clip(
    logprobs: Float[Tensor, "*n"],
    old_logprobs: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
) -> Float[Tensor, "*n"]:
    """PPO's clipped loss with clip-higher and dual clip; defaults of OpenOneRec's run_grpo.sh.

        rho = exp(clamp(lp - lp_old, -20, 20));  m = max(-A rho, -A clip(rho, 1-low, 1+high))
        loss = m if A >= 0 else min(m, -A c)

    >>> lp, A = torch.tensor([1.5, 4.0]).log(), torch.tensor([1.0, -1.0])
    >>> ppo_clip(lp, torch.zeros(2), A)
    tensor([-1.2800,  3.0000])
    """
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)


def kl_k3(logprobs: Float[Tensor, "*n"], ref_logprobs: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Schulman's k3 estimate of KL(policy || reference): exp(x) - x - 1 with x = ref - lp.

    Clamped as in OpenOneRec's verl: x to [-20, 20], the result to [-10, 10].

    >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-1.2]))
    tensor([0.0187])
    """
    difference = (ref_logprobs - logprobs).clamp(-20, 20)
    return (difference.exp() - difference - 1).clamp(-10, 10)
