"""ReCast by levels (ours): one soft negative for every level of the positive's path.

    positive: the most probable hit, or the anchor by repair
    for each level l: a distinct miss that leaves the positive's path exactly at l, drawn with
        q_i = softmax_i( log p(y_i) / temperature )
    A[positive, l] = anchor_weight + contrast_weight * 1[level l has such a sibling]
    A[sibling of l, l] = -contrast_weight;   its other tokens leave the loss

In ReCast's pair +w and -w cancel on the tokens that the two rows share, so a near miss trains one
level, and w ties the anchor's weight to the contrast's. Here every level with a sibling has its own
contrast in its own context, nothing cancels, and the two weights are apart. The negative is not
the hardest miss, which may be an item that the user would take too. Of texts a level is a place
where they differ: the token there carries the contrast, those that then have to follow do not.

Differs from the paper (ReCast, arXiv 2604.22169): all of the above; repair alone is the same.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.groups import is_new
from recast.signals.recast import repair
from recast.types import LARGEST_FACTOR, RolloutGroups, Signal, require_range


def recast_levels(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    anchor_weight: float = 1.0,
    contrast_weight: float = 0.3,
    temperature: float = 1.0,
) -> Signal:
    """The positive with all its tokens, and of each sibling the token that leaves its path.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [3, 9], [2, 8]]], [[[3, 8]]])  # siblings of levels 1 and 0
    >>> signal = recast_levels(groups, torch.tensor([[1.0, 0.0, 0.0]]))
    >>> signal.advantages[0].mT  # a line per level: 1 + 0.3 for the hit
    tensor([[ 1.3000,  0.0000, -0.3000],
            [ 1.3000, -0.3000,  0.0000]])
    >>> signal.groups.loss_mask[0].tolist()
    [[True, True], [False, True], [True, False]]
    """
    require_range("anchor_weight", anchor_weight, 0, LARGEST_FACTOR)
    require_range("contrast_weight", contrast_weight, 0, LARGEST_FACTOR)
    require_range("temperature", temperature, 0, LARGEST_FACTOR, above=True)
    repaired, rewards, anchored = repair(groups, rewards)
    tokens, exists = repaired.tokens, repaired.exists
    num_prompts, group_size, num_levels = tokens.shape
    logprobs = repaired.rollout_logprobs.double().sum(-1)
    best = rewards.masked_fill(~exists, -inf).amax(1, keepdim=True)
    hits = exists & (rewards == best) & (best > 0)
    positive = logprobs.masked_fill(~hits, -inf).argmax(1)
    path = tokens[torch.arange(num_prompts, device=tokens.device), positive]
    common = (tokens == path[:, None]).int().cumprod(-1).sum(-1)
    misses = exists & (rewards <= 0) & is_new(repaired)
    misses &= hits.any(1, keepdim=True)
    level = torch.arange(num_levels, device=tokens.device)[:, None]
    siblings = misses[:, None] & (common[:, None] == level)
    draws = groups.uniforms("sibling", num_levels)
    negative, found = draw_softly(logprobs, siblings, temperature, draws)
    column = torch.arange(group_size, device=tokens.device)
    is_positive = (column == positive[:, None]) & hits
    leaves = ((column == negative[..., None]) & found[..., None]).mT
    is_negative = leaves.any(-1)
    gain = anchor_weight + contrast_weight * found.to(rewards.dtype)
    advantages = is_positive[..., None] * gain[:, None] - contrast_weight * leaves.to(rewards.dtype)
    shares = _by_decision(repaired.predictions[:, :, 0], positive, negative, found)
    return Signal(
        groups=replace(repaired, loss_mask=repaired.loss_mask & (leaves | ~is_negative[..., None])),
        advantages=advantages,
        keep=is_positive | is_negative,
        nll_weight=rewards.new_zeros(num_prompts),
        metrics={"group/repaired_frac": float(anchored.float().mean())}
        | {f"signal/contrast_frac_l{i}": share for i, share in enumerate(shares)},
    )


def _by_decision(
    named: Int[Tensor, "B G D"],
    positive: Int[Tensor, " B"],
    negative: Int[Tensor, "B L"],
    found: Bool[Tensor, "B L"],
) -> list[float]:
    """Share of the groups with a sibling at each decision: of texts few of the L tokens are one."""
    rows = torch.arange(len(named), device=named.device)
    shared = (named == named[rows, positive][:, None]).int().cumprod(-1).sum(-1)
    decision = shared.gather(1, negative).clamp(max=named.shape[2] - 1)
    has_sibling = torch.zeros(named[:, 0].shape, device=named.device)
    has_sibling = has_sibling.scatter_reduce(1, decision, found.float(), "amax")
    shares: list[float] = has_sibling.mean(0).tolist()
    return shares


def draw_softly(
    logprobs: Float[Tensor, "B G"],
    eligible: Bool[Tensor, "B L G"],
    temperature: float,
    draws: Float[Tensor, "B L"],
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """One eligible row per level, drawn by softmax(logprobs / temperature), and whether there is.

    The distribution is inverted in the order of falling probability, so the row that a draw falls
    on does not depend on how the group is ordered.

    >>> logprobs, eligible = torch.tensor([[0.75, 0.25]]).log(), torch.ones(1, 2, 2) > 0
    >>> draw_softly(logprobs, eligible, 1.0, torch.tensor([[0.74, 0.76]]))[0]
    tensor([[0, 1]])
    """
    order = logprobs.argsort(dim=1, descending=True, stable=True)
    logits = torch.where(eligible, logprobs[:, None], -inf)
    # Finite where nothing is eligible, so that no -inf - -inf arises.
    top = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    weights = ((logits - top) / temperature).exp().gather(2, order[:, None].expand(logits.shape))
    upto = weights.cumsum(-1)
    # The second condition is for a level without any eligible row: all sums are 0 there.
    passed = (upto <= draws[..., None] * upto[..., -1:]) & (upto < upto[..., -1:])
    return order.gather(1, passed.sum(-1)), eligible.any(-1)
