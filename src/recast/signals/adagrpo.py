"""AdaGRPO: GRPO only where the policy is unsure and the ranker is not (arXiv 2606.08480).

    L(x) = L_NLL(x) + lambda alpha(x) L_GRPO(x),      alpha(x) = f(x) and g(x)
    f = rank_pi(y*) > ceil(tau K)
    g = rank_RM(y*) <= ceil(tau K)  and  rank_RM(n_m) > ceil(rho K) for every negative n_m

y* is the logged item, K the number of rollouts, RM the ranker, lambda `grpo_weight`. A rank is 1
plus the number of other rollouts that score higher. The M negatives are drawn from the rollouts of
other prompts and scored for this one.

Differs from the paper: tau, rho and lambda could not be recovered and are ours; it admits about
12 % of its samples. Its only known wording wants the negatives outside the *bottom* rho, yet the
ranker must suppress them: here they must rank below rho K. It says nothing of ties: y* loses them
in g, so a ranker that scores all items alike admits nothing. A y* that was not rolled out is scored
like the rest, by policy and ranker. Rollouts without an item are left out of K and of every rank.
A target is no negative of its own prompt, negatives are drawn with replacement, a prompt without
any fails g. Of several targets the best ranked one counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.signals.gates import gated
from recast.types import Ranker, RecastError, RolloutGroups, Signal, require_range

MOST_NEGATIVES = 10_000
"""For each prompt: many more than a batch holds items."""


class Scores(NamedTuple):
    """The ranker's view of a prompt: a target that is none scores -inf, such a negative +inf."""

    rollouts: Float[Tensor, "B G"]
    targets: Float[Tensor, "B T"]
    negatives: Float[Tensor, "B M"]


class Candidates(NamedTuple):
    """What takes part in the ranks."""

    exists: Bool[Tensor, "B G"]
    """Rollouts that name an item; K of them per prompt."""
    rivals: Bool[Tensor, "B T G"]
    """Those among them that are not this target itself."""


def adagrpo(
    groups: RolloutGroups,
    rewards: Float[Tensor, "B G"],
    *,
    ranker: Ranker,
    tau: float = 0.25,
    rho: float = 0.5,
    grpo_weight: float = 1.0,
    num_negatives: int = 5,
    eps: float = 1e-6,
) -> Signal:
    """Likelihood on every prompt, GRPO on those that pass f and g.

    Raises `RecastError` for a parameter out of range and for a batch of one prompt.

    The policy puts both targets second; the second prompt's negatives, 2 and 3, outrank its target.
    So half of the tokens are admitted, with half of GRPO's 0.7071:

    >>> from recast.testing import make_groups
    >>> rollouts, targets = [[[2], [3]], [[0], [1]]], [[[3]], [[1]]]
    >>> groups = make_groups(rollouts, targets, logprobs=[[-1, -2], [-1, -2]])
    >>> rewards = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    >>> signal = adagrpo(groups, rewards, ranker=lambda prompts, items: items.float())
    >>> signal.keep.any(1), signal.advantages[0, :, 0]
    (tensor([ True, False]), tensor([-0.3536,  0.3536]))
    """
    scores = score(groups, in_batch_negatives(groups, num_negatives), ranker)
    uncertain, discriminates = diagnose(groups, scores, tau=tau, rho=rho)
    signal = gated(groups, rewards, uncertain & discriminates, grpo_weight=grpo_weight, eps=eps)
    gates = {
        "gate/uncertain_frac": float(uncertain.float().mean()),
        "gate/discriminates_frac": float(discriminates.float().mean()),
    }
    return replace(signal, metrics=signal.metrics | gates)


def difficulty(
    logprobs: Float[Tensor, "B G"],
    target_logprobs: Float[Tensor, "B T"],
    rivals: Bool[Tensor, "B T G"],
    top: Int[Tensor, " B"],
) -> Bool[Tensor, " B"]:
    """f: the policy has no target among its `top` = ceil(tau K).

    >>> logprobs, rivals = -torch.arange(1.0, 9.0)[None], torch.ones(1, 1, 8) > 0
    >>> difficulty(logprobs, torch.tensor([[-3.5]]), rivals, torch.tensor([2]))  # rank 4
    tensor([True])
    """
    better = (logprobs[:, None] > target_logprobs[..., None]) & rivals
    return 1 + better.sum(-1).amin(1) > top


def discriminability(
    scores: Scores,
    candidates: Candidates,
    top: Int[Tensor, " B"],
    bottom: Int[Tensor, " B"],
) -> Bool[Tensor, " B"]:
    """g: a target is among the ranker's `top`, every negative ranks below `bottom` = ceil(rho K).

    >>> rollouts = torch.tensor([[0.9, 0.2, 0.4, 0.8, 0.1, 0.3, 0.5, 0.6]])
    >>> every = Candidates(torch.ones(1, 8) > 0, torch.ones(1, 1, 8) > 0)
    >>> negatives = torch.tensor([[0.35, 0.15, 0.05, 0.25, 0.3]])  # ranks 6, 8, 9, 7, 6
    >>> scores = Scores(rollouts, torch.tensor([[0.85]]), negatives)  # the target ranks 2
    >>> discriminability(scores, every, torch.tensor([2]), torch.tensor([4]))
    tensor([True])
    >>> discriminability(scores, every, torch.tensor([2]), torch.tensor([6]))
    tensor([False])
    """
    rollouts = scores.rollouts[:, None]
    ahead_of_target = (rollouts >= scores.targets[..., None]) & candidates.rivals
    ahead_of_negative = (rollouts > scores.negatives[..., None]) & candidates.exists[:, None]
    finds_target = 1 + ahead_of_target.sum(-1).amin(1) <= top
    return finds_target & (1 + ahead_of_negative.sum(-1) > bottom[:, None]).all(1)


def diagnose(
    groups: RolloutGroups, scores: Scores, *, tau: float, rho: float
) -> tuple[Bool[Tensor, " B"], Bool[Tensor, " B"]]:
    """f and g of every prompt."""
    require_range("tau", tau, 0, 1, above=True)
    require_range("rho", rho, 0, 1)
    found = candidates(groups)
    count = found.exists.sum(1)
    # 1e-9: 0.07 * 100 is 7, not 7.000000000000001.
    top, bottom = ((part * count.double() - 1e-9).ceil().long() for part in (tau, rho))
    uncertain = difficulty(*policy_scores(groups), found.rivals, top)
    return uncertain, discriminability(scores, found, top, bottom)


def candidates(groups: RolloutGroups) -> Candidates:
    """The rollouts that are ranked; a target's rivals by SID, since SIDs are what is written."""
    exists = groups.exists & (groups.items >= 0)
    targets = groups.prompts.target_sids
    is_target = (groups.predictions[:, None] == targets[:, :, None, None]).all(-1).any(-1)
    return Candidates(exists, exists[:, None] & ~is_target)


def policy_scores(groups: RolloutGroups) -> tuple[Float[Tensor, "B G"], Float[Tensor, "B T"]]:
    """Log-probabilities of rollouts and targets; -inf for a target that is none."""
    logprobs = torch.where(groups.loss_mask, groups.rollout_logprobs, 0.0).sum(-1).detach()
    is_none = groups.prompts.target_items < 0
    return logprobs, groups.target_logprobs.sum(-1).detach().masked_fill(is_none, -torch.inf)


@torch.no_grad()
def score(groups: RolloutGroups, negatives: Int[Tensor, "B M"], ranker: Ranker) -> Scores:
    """One call of the ranker for rollouts, targets and negatives."""
    parts = (groups.items, groups.prompts.target_items, negatives)
    found = ranker(groups.prompts, torch.cat(parts, dim=1).clamp(min=0))
    rollouts, targets, others = found.split([part.shape[1] for part in parts], dim=1)
    targets = targets.masked_fill(parts[1] < 0, -torch.inf)
    return Scores(rollouts, targets, others.masked_fill(negatives < 0, torch.inf))


def in_batch_negatives(groups: RolloutGroups, num_negatives: int) -> Int[Tensor, "B M"]:
    """Items drawn, with replacement, from the rollouts of the other prompts; -1 if there is none.

    A draw depends on (seed, step, row) and on which items the others hold, not on their order.
    """
    require_range("num_negatives", num_negatives, 1, MOST_NEGATIVES)
    num_prompts, group_size = groups.items.shape
    if num_prompts < 2:
        raise RecastError(
            f"prompts_per_step is {num_prompts}: adagrpo draws its negatives from the rollouts of "
            "other prompts, give 2 or more"
        )
    items, order = groups.items.masked_fill(~groups.exists, -1).flatten().sort(stable=True)
    row = torch.arange(num_prompts, device=items.device)[:, None]
    pool, targets = groups.predictions.flatten(0, 1)[order], groups.prompts.target_sids
    is_target = (pool[None, :, None] == targets[:, None, :, None]).all(-1).flatten(2).any(-1)
    eligible = (items >= 0) & (order // group_size != row) & ~is_target
    running = eligible.cumsum(1)
    count = running[:, -1:]
    nth = (groups.uniforms("negatives", num_negatives) * count).long()
    place = torch.searchsorted(running, nth, right=True).clamp(max=len(items) - 1)
    return items[place].masked_fill(count == 0, -1)
