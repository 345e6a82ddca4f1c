"""DPO on rollouts: every positive of a group against every negative (arXiv 2305.18290).

    D_i = sum_t (lp_t - lp_ref_t)
    loss = mean over pairs (p, n) of -log sigmoid( beta (D_p - D_n) )

Positives are the kept rollouts with an advantage above 0 on some token, negatives all others: of a
signal that centres its rewards, the better and the worse. A group without a pair contributes
exactly 0.

Differs from the paper: pairs are rollouts of the policy with a rule for a preference, not a data
set of human choices; a group weighs the same however many pairs it has.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from recast.losses.rollouts import rollout_sum
from recast.types import LARGEST_FACTOR, require_range


def dpo(
    logprobs: Float[Tensor, "B K L"],
    ref_logprobs: Float[Tensor, "B K L"],
    advantages: Float[Tensor, "B K L"],
    loss_mask: Bool[Tensor, "B K L"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, " B"]:
    """The loss of every group; `beta` is the paper's usual value.

    >>> lp, mask = torch.tensor([[[0.5], [-0.5]]]), torch.ones(1, 2, 1) > 0
    >>> dpo(lp, torch.zeros(1, 2, 1), torch.tensor([[[1.0], [0.0]]]), mask, beta=1.0)
    tensor([0.3133])
    """
    require_range("beta", beta, 0, LARGEST_FACTOR, above=True)
    gain = beta * rollout_sum(logprobs - ref_logprobs, loss_mask)
    positive, negative = sides(advantages, loss_mask)
    pairs = positive[:, :, None] & negative[:, None, :]
    loss = -logsigmoid(gain[:, :, None] - gain[:, None, :])
    count = pairs.sum((1, 2)).clamp(min=1)
    return torch.where(pairs, loss, 0.0).sum((1, 2)) / count


def sides(
    advantages: Float[Tensor, "B K L"], loss_mask: Bool[Tensor, "B K L"]
) -> tuple[Bool[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """Which rollouts are positives, which negatives; one without a counted token is neither.

    >>> sides(torch.tensor([[[2.0], [0.0], [0.0]]]), torch.tensor([[[True], [True], [False]]]))
    (tensor([[ True, False, False]]), tensor([[False,  True, False]]))
    """
    positive = ((advantages > 0) & loss_mask).any(-1)
    return positive, loss_mask.any(-1) & ~positive
