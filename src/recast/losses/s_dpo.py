"""S-DPO: one positive against all negatives in one softmax (arXiv 2406.09215).

    D(e) = sum_t (lp_t - lp_ref_t)
    loss = -log sigmoid( -log sum_d exp( beta D(e_d) - beta D(e_p) ) )

e_p is the first kept rollout with an advantage above 0 (the target where it is added, else the most
probable hit), e_d all without one. A group without a pair contributes exactly 0.

Differs from the paper: its negatives are items drawn at random, here they are the policy's own
rollouts, that is, hard ones; one negative makes it DPO.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from recast.losses.dpo import sides
from recast.losses.rollouts import rollout_sum
from recast.types import LARGEST_FACTOR, require_range


def s_dpo(
    logprobs: Float[Tensor, "B K L"],
    ref_logprobs: Float[Tensor, "B K L"],
    advantages: Float[Tensor, "B K L"],
    loss_mask: Bool[Tensor, "B K L"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " B"]:
    """The loss of every group; `beta` as MiniOneRec's S-DPO baseline has it.

    >>> lp, mask = torch.tensor([[[0.5], [-0.2], [0.3], [-0.6]]]), torch.ones(1, 4, 1) > 0
    >>> s_dpo(lp, torch.zeros_like(lp), torch.tensor([[[1.0], [0.0], [0.0], [0.0]]]), mask)
    tensor([1.3372])
    """
    require_range("beta", beta, 0, LARGEST_FACTOR, above=True)
    gain = beta * rollout_sum(logprobs - ref_logprobs, loss_mask)
    positive, negative = sides(advantages, loss_mask)
    chosen = gain.gather(1, positive.int().argmax(1, keepdim=True))
    has_pair = positive.any(1) & negative.any(1)
    terms = (gain - chosen).masked_fill(~negative, -torch.inf)
    return torch.where(has_pair, -logsigmoid(-terms.logsumexp(1)), 0.0)
