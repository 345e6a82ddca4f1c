"""Rank-GRPO: every rank of a list has its own return and its own baseline (arXiv 2510.20150).

    R_k = DCG@k:N = sum_{j >= k} rel_j / log2(j + 1)        or, with `discount` off, R_k = rel_k
    A_{g,k} = (R_{g,k} - mean_g R_k) / (std_g R_k + eps)

over the G lists of a prompt: an item is credited with what stands from its rank on, never with
what came before it. Row g * N + k is rank k of list g; missing items have rel = 0. eps and the
unbiased std are those of the released trainer. The ratio per item, the geometric mean over its
tokens, is the loss `gspo`.

Differs from the paper: its lists are titles in one text, so that a later item sees the earlier
ones. Here an item is a semantic ID given the history alone, and a list is drawn without
replacement.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recast.signals.grpo import require_eps, standardise
from recast.types import RolloutGroups, Signal, require


def rank_grpo(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    list_length: int,
    discount: bool = True,
    eps: float = 1e-4,
) -> Signal:
    """Returns standardised per rank over a prompt's lists, all existing items kept.

    With `list_length` 1 this is GRPO. `discount` is the paper's logarithmic reward; without it an
    item's return is its own reward.

    >>> from recast.testing import make_groups
    >>> lists = [[3], [2], [2], [3], [4], [2], [2], [4]]  # four lists of two
    >>> rewards = torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 0]])  # R = 1, 0; .63, .63; 0, 0; 0, 0
    >>> signal = rank_grpo(make_groups([lists], [[[3]]]), rewards, list_length=2, eps=0.0)
    >>> signal.advantages.view(4, 2)
    tensor([[ 1.1981, -0.5000],
            [ 0.4515,  1.5000],
            [-0.8248, -0.5000],
            [-0.8248, -0.5000]])
    """
    require_eps(eps)
    lists = as_lists(rewards * groups.exists, list_length)
    returns = rank_returns(lists) if discount else lists
    exists = as_lists(groups.exists, list_length)
    gains = rank_returns(lists)[..., 0]  # of a list without an item 0, and none of its mean
    by_rank, exist_by_rank = (x.transpose(1, 2).flatten(0, 1) for x in (returns, exists))
    advantages = standardise(by_rank, exist_by_rank, eps)
    advantages = advantages.unflatten(0, (-1, list_length)).transpose(1, 2)
    return Signal(
        groups=groups,
        advantages=advantages.flatten(1)[..., None],
        keep=groups.exists,
        nll_weight=rewards.new_zeros(len(rewards)),
        metrics={"reward/list_dcg": float(gains.sum() / exists.any(-1).sum().clamp(min=1))},
    )


def rank_returns(relevance: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch N"]:
    """DCG@k:N of every rank k: the discounted relevance from that rank to the end of the list.

    >>> rank_returns(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    tensor([1.5000, 0.5000, 0.5000, 0.0000])
    """
    num_ranks = relevance.shape[-1]
    ranks = torch.arange(1, num_ranks + 1, dtype=relevance.dtype, device=relevance.device)
    gains = relevance / (ranks + 1).log2()
    return gains.flip(-1).cumsum(-1).flip(-1)


def as_lists(rows: Tensor, list_length: int) -> Tensor:
    """Rows [B, G * N] as lists [B, G, N].

    >>> as_lists(torch.arange(6)[None], 3).tolist()
    [[[0, 1, 2], [3, 4, 5]]]
    """
    whole = list_length > 0 and rows.shape[1] % list_length == 0
    remedy = f"the groups hold {rows.shape[1]} rollouts, use the sampler 'lists'"
    require(whole, "list_length", list_length, remedy)
    lists: Tensor = rows.unflatten(1, (-1, list_length))
    return lists
