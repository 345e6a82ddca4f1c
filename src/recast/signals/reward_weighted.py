"""Supervised training on logged rows, the better ones more: exponential weights (arXiv 2603.10279).

    L = sum_x w(x) L_NLL(x) / n,      w(x) = exp(r(x) / lambda)

r is the ranker's score of the logged item, the mean over several targets; lambda is `lam`, and n
counts the prompts with a weight above 0. No rollout is needed and none is kept. The larger lambda,
the closer to SFT continued.

Differs from the paper: it weighs by the reward that was logged with the item, such as a rating, and
asks no learned model; here r is any ranker's score of the item, and a ranker that looks up ratings
by `row_ids` gives back the paper's. Its lambda and any scaling of its rewards could not be
recovered, 1 and none are ours.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, log

import torch
from jaxtyping import Float
from torch import Tensor

from recast.signals.likelihood import likelihood
from recast.types import Metrics, Prompts, Ranker, RecastError, RolloutGroups, Signal, require_range


def reward_weighted(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    ranker: Ranker,
    lam: float = 1.0,
) -> Signal:
    """Likelihood weight exp(r / lam) for every prompt that has a target, no rollout kept.

    Raises `RecastError` for a `lam` out of range and for a weight that is not finite.

    >>> from recast.methods.probe import probe_groups
    >>> groups = probe_groups(2, kinds=("one hit", "several targets"))  # one target, two targets
    >>> scores = torch.tensor([[1.0, 9.0], [0.0, 4.0]])  # the 9 is of no target: r = (1, 2)
    >>> reward_weighted(groups, torch.zeros(2, 2), ranker=lambda *_: scores, lam=2.0).nll_weight
    tensor([1.6487, 2.7183])
    """
    require_range("lam", lam, 0, 1e12, above=True)
    score = target_score(groups.prompts, ranker).to(rewards)
    weight = (score / lam).exp()
    if not bool(weight.isfinite().all()):
        raise _overflow(float(score.max()), lam, torch.finfo(weight.dtype).max)
    weight = weight * (groups.prompts.target_items >= 0).any(1)
    return replace(likelihood(groups, rewards), nll_weight=weight, metrics=weight_metrics(weight))


@torch.no_grad()
def target_score(prompts: Prompts, ranker: Ranker) -> Float[Tensor, " B"]:
    """Mean of the ranker's scores of a prompt's targets, 0 where it has none."""
    items = prompts.target_items
    is_target = items >= 0
    scores = ranker(prompts, items.clamp(min=0)).float()
    return torch.where(is_target, scores, 0.0).sum(1) / is_target.sum(1).clamp(min=1)


def weight_metrics(weight: Float[Tensor, " B"]) -> Metrics:
    """Mean and largest weight, and how many rows of equal weight would do as well, as a share.

    The share is (sum w)^2 / (n sum w^2) over all n rows, 0 where nothing weighs anything.

    >>> weight_metrics(torch.tensor([2.0, 1.0, 1.0, 2.0]))["signal/effective_frac"]  # 36 / (4 * 10)
    0.9
    """
    weight = weight.cpu().double()
    largest = float(weight.max())
    part = weight / (largest or 1.0)  # squares of the weights themselves can overflow
    squares = len(part) * float(part.square().sum())
    return {
        "signal/weight_mean": largest * float(part.mean()),
        "signal/weight_max": largest,
        "signal/effective_frac": float(part.sum()) ** 2 / squares if squares else 0.0,
    }


def _overflow(largest: float, lam: float, limit: float) -> RecastError:
    least = 1.01 * largest / log(limit)  # 1.01: printed with three digits it still suffices
    remedy = f"give {least:.3g} or more" if abs(largest) < inf else "let the ranker give numbers"
    return RecastError(
        f"lam is {lam!r}: exp(score / lam) is not finite for the ranker's largest score of a "
        f"logged item, {largest:g}; {remedy}"
    )
