"""V-STAR's Sibling-GRPO: every branching of the group is a bandit of its own (arXiv 2602.10699).

    Rbar(h, v) = mean reward of the rollouts that go through child v of prefix h
    A(h, v) = (Rbar(h, v) - mu_h) / (sigma_h + eps)        mu, sigma over the drawn children of h
    J = mean over (l, h, v) of A(h, v) rho(v | h)          h with two or more drawn children

Each node counts once: its weight is on the first rollout through it, every other token leaves the
`loss_mask`, and with it the KL and the denominator. Siblings that tie get exactly 0 and stay in.
sigma is the population's (divided by the number of siblings).

Differs from the paper: its value-guided decoding is not built, so groups are drawn like any other.
Which sigma it takes is not stated in what could be recovered; a public reproduction takes this one.
That reproduction quotes 1 / (candidates of the prompt) in place of the mean over nodes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recast.signals.grpo import require_eps
from recast.types import RolloutGroups, Signal


def vstar(groups: RolloutGroups, rewards: Float[Tensor, "B G"], *, eps: float = 1e-6) -> Signal:
    """Sibling-relative advantages on one token per node, rollouts without such a token dropped.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [3, 9], [2, 8]]], [[[3, 8]]])
    >>> signal = vstar(groups, torch.tensor([[1.0, 0.0, 0.0]]))
    >>> signal.advantages[0]  # Rbar = 1/2 and 0 on the first level; 1 and 0 behind the 3
    tensor([[ 1.0000,  1.0000],
            [ 0.0000, -1.0000],
            [-1.0000,  0.0000]])
    """
    require_eps(eps)
    same, parent = shared_nodes(groups)
    on = groups.loss_mask
    through = same & on[:, None]
    # Float64 adds a group's rewards exactly, so that equal means are equal numbers.
    totals = torch.einsum("bijl,bj->bil", through.double(), rewards.double())
    means = totals / through.sum(2).clamp(min=1)
    earlier = torch.ones(same.shape[1:3], dtype=torch.bool, device=on.device).tril(-1)[..., None]
    first = on & ~(through & earlier).any(2)
    siblings = parent & first[:, None]
    advantages, branches = sibling_advantages(means, siblings, eps)
    counted = first & branches
    return Signal(
        groups=replace(groups, loss_mask=counted),
        advantages=(advantages * counted).to(rewards.dtype),
        keep=counted.any(-1),
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={"signal/token_frac": float(counted.sum() / on.sum().clamp(min=1))},
    )


def shared_nodes(
    groups: RolloutGroups,
) -> tuple[Bool[Tensor, "B G G L"], Bool[Tensor, "B G G L"]]:
    """Whether rollouts i and j go through the same node at each level, and the same parent."""
    tokens, exists = groups.tokens, groups.exists
    both = (exists[:, :, None] & exists[:, None])[..., None]
    equal = (tokens[:, :, None] == tokens[:, None]).cumprod(-1).bool()
    same = equal & both
    return same, torch.cat([both, same[..., :-1]], dim=-1)


def sibling_advantages(
    means: Float[Tensor, "B G L"], siblings: Bool[Tensor, "B G G L"], eps: float
) -> tuple[Float[Tensor, "B G L"], Bool[Tensor, "B G L"]]:
    """A of rollout i's node among the nodes `siblings[b, i, :, l]`, itself included, by the mean
    reward of rollout j's node; and whether there are two or more of them.

    >>> means = torch.tensor([0.5, 0.0, 0.25]).view(1, 3, 1)
    >>> sibling_advantages(means, torch.ones(1, 3, 3, 1) > 0, 1e-9)[0].flatten()
    tensor([ 1.2247, -1.2247,  0.0000])
    """
    other = means[:, None]
    count = siblings.sum(2)
    mean = (other * siblings).sum(2) / count.clamp(min=1)
    deviations = (other - mean[:, :, None]) * siblings
    std = (deviations.square().sum(2) / count.clamp(min=1)).sqrt()
    tied = ((other == means[:, :, None]) | ~siblings).all(2)
    return torch.where(tied, 0.0, (means - mean) / (std + eps)), count >= 2
