"""PPO's clipped loss per token, with clip-higher and dual clip (OpenOneRec, arXiv 2512.24762).

    rho = exp(clamp(lp - lp_old, -20, 20));  m = max(-A rho, -A clip(rho, 1 - low, 1 + high))
    loss = m if A >= 0 else min(m, -A c)

Differs from the paper: its text writes a plain policy gradient; this is the released code.
"""

from __future__ import annotations

from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from recast.types import require, require_range


def ppo_clip(
    logprobs: Float[Tensor, "*n"],
    old_logprobs: Float[Tensor, "*n"],
    advantages: Float[Tensor, "*n"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
) -> Float[Tensor, "*n"]:
    """The loss of every token; defaults of OpenOneRec's run_grpo.sh and verl.

    >>> lp, A = torch.tensor([1.5, 4.0]).log(), torch.tensor([1.0, -1.0])
    >>> ppo_clip(lp, torch.zeros(2), A)
    tensor([-1.2800,  3.0000])
    """
    require_clip(clip_low, clip_high)
    require_range("dual_clip", dual_clip, 1, inf, above=True)
    moved = ratio(logprobs - old_logprobs)
    loss = clipped(moved, moved.clamp(1 - clip_low, 1 + clip_high), advantages)
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)


def ratio(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """exp of a log-ratio that is clamped to [-20, 20], as in verl.

    >>> ratio(torch.tensor([0.0, -500.0]))
    tensor([1.0000e+00, 2.0612e-09])
    """
    return log_ratio.clamp(-20, 20).exp()


def clipped(
    moved: Float[Tensor, "*n"], bounded: Float[Tensor, "*n"], advantages: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """max(-A rho, -A clip(rho)) of a ratio and its clipped self: nothing is gained past a bound.

    >>> moved = torch.tensor([1.5, 0.5])
    >>> clipped(moved, moved.clamp(0.8, 1.2), torch.tensor([1.0, -1.0]))
    tensor([-1.2000,  0.8000])
    """
    return torch.maximum(-advantages * moved, -advantages * bounded)


def require_clip(clip_low: float, clip_high: float) -> None:
    """Refuse a trust region that is none."""
    require_range("clip_low", clip_low, 0, 1)
    require(clip_low < 1, "clip_low", clip_low, "give a number below 1")
    require_range("clip_high", clip_high, 0, inf)
