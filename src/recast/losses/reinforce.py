"""The strictly on-policy loss of ReRe's released trainer (arXiv 2510.12211).

    loss_i = -1/|o_i| sum_t exp(lp_t - sg(lp_t)) A_t

The ratio is 1 by construction, so the gradient is that of -A lp, with no clip and no old
log-probability. The mean is over a rollout's own tokens, then over rollouts: short and long titles
weigh the same.

Differs from the paper: the KL is the actor's, averaged as `loss_agg` says.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recast.losses.rollouts import rollout_mean


def reinforce(
    logprobs: Float[Tensor, "B K L"],
    advantages: Float[Tensor, "B K L"],
    loss_mask: Bool[Tensor, "B K L"],
) -> Float[Tensor, "B K"]:
    """The loss of every rollout.

    >>> reinforce(torch.zeros(1, 1, 3), torch.full((1, 1, 3), 2.0), torch.ones(1, 1, 3) > 0)
    tensor([[-2.]])
    """
    counted = torch.where(loss_mask, logprobs, 0.0)
    return rollout_mean(-(counted - counted.detach()).exp() * advantages, loss_mask)
