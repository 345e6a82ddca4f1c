"""ReRe's rule reward plus rank reward: the likeliest miss costs most (arXiv 2510.12211).

    rule_k = 1 for a hit, else 0;      w_k = 1 / log2(rank_k + 1),  rank 1 = most probable
    R_k = rule_k - w_k / S for a miss, R_k = 1 for a hit

    code:   S = sum of w over the whole group; all penalties are 0 in a group without a hit
    paper:  S = sum of w over the misses, so the penalties add up to -1; no gate

Ranks go by the rollouts' own log-probability, so they do not depend on the order of the rows;
of equals the earlier row ranks first. A target that `add_gt` put in ranks last, however probable,
as in the released code. A rollout that does not exist has no rank and no weight.

Differs from the paper: by default the released code's form, which made the published results.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recast.rewards.hit import first_hit
from recast.types import RolloutGroups, require

FORMS = ("code", "paper")


def ranking(groups: RolloutGroups, *, form: str = "code") -> Float[Tensor, "B G"]:
    """Rule reward plus rank reward, in the form of the released `code` or of the `paper`.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[2], [3], [4]]], [[[3]]], logprobs=[[-1, -2, -3]])
    >>> ranking(groups)  # w = 1, 0.63, 0.5: S = 2.13
    tensor([[-0.4693,  1.0000, -0.2346]])
    >>> ranking(groups, form="paper")  # S = 1 + 0.5
    tensor([[-0.6667,  1.0000, -0.3333]])
    """
    require(form in FORMS, "form", form, f"choose one of {', '.join(FORMS)}")
    logprobs = torch.where(groups.loss_mask, groups.rollout_logprobs, 0.0).sum(-1)
    if groups.injected is not None:
        logprobs = logprobs.masked_fill(groups.injected, torch.finfo(logprobs.dtype).min)
    return rank_reward(first_hit(groups) > 0, logprobs, groups.exists, gated=form == "code")


def rank_reward(
    hits: Bool[Tensor, "B G"],
    logprobs: Float[Tensor, "B G"],
    exists: Bool[Tensor, "B G"],
    *,
    gated: bool,
) -> Float[Tensor, "B G"]:
    """1 for a hit, minus its share of the weights for a miss; `gated` is the code's form.

    >>> hits, exists = torch.tensor([[False, True, False, False]]), torch.ones(1, 4) > 0
    >>> logprobs = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    >>> rank_reward(hits, logprobs, exists, gated=True)
    tensor([[-0.3904,  1.0000, -0.1952, -0.1681]])
    >>> rank_reward(hits, logprobs, exists, gated=False)
    tensor([[-0.5180,  1.0000, -0.2590, -0.2231]])
    """
    order = logprobs.masked_fill(~exists, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = 1 + order.argsort(1)
    weight = exists / (1 + rank).float().log2()
    share = weight if gated else weight * ~hits
    total = share.sum(1, keepdim=True)
    # No weight at all: the group is empty or, in the paper's form, hits everywhere.
    penalty = torch.where(total > 0, weight / total, 0.0) * ~hits
    if gated:
        penalty = penalty * hits.any(1, keepdim=True)
    return hits.float() - penalty
