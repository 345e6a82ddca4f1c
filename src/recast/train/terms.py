"""The terms of an update: a batch and its log-probabilities in, its parts of the sums out."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recast.config import KLEstimator, KLRollouts, LossAgg
from recast.losses import KLS
from recast.losses.rollouts import rollout_mean
from recast.methods.contract import units
from recast.methods.guard import ask_loss
from recast.methods.parts import LOSS_INPUTS, needs
from recast.train.batches import Batch
from recast.train.measures import clipped_tokens, has_clip
from recast.types import Loss


def loss_of(
    loss: Loss,
    batch: Batch,
    logprobs: Float[Tensor, "B K L"],
    old_logprobs: Float[Tensor, "B K L"],
    counts: tuple[int, int, int],
    loss_agg: LossAgg,
    folder: str,
) -> Float[Tensor, ""]:
    """This batch's part of the mean of the loss over all that it is a loss of; a group that a loss
    of a user's fails on goes into `folder`."""
    if not batch.advantages.shape[1]:
        return logprobs.sum()  # of nothing: 0, and part of the graph
    inputs = (logprobs, old_logprobs, batch.ref_logprobs, batch.advantages, batch.loss_mask)
    named = dict(zip(LOSS_INPUTS, inputs, strict=True))
    asked = {name: value for name, value in named.items() if needs(loss, name)}
    values = ask_loss(loss, asked, batch.loss_mask, batch.prompts, folder)
    if values.ndim == 3 and loss_agg == "seq-mean-token-mean":
        values = rollout_mean(values, batch.loss_mask)
    return masked_sum(values, units(values, batch.loss_mask)) / counts[values.ndim - 1]


def kl_sum(
    batch: Batch,
    logprobs: Float[Tensor, "B K L"],
    estimator: KLEstimator,
    rollouts: KLRollouts,
    loss_agg: LossAgg,
) -> Float[Tensor, ""]:
    """Of the tokens, or of the rollouts' means."""
    assert batch.ref_logprobs is not None
    over = batch.loss_mask
    if rollouts == "weighted":
        over = over & (batch.advantages != 0).any(-1, keepdim=True)
    kl = KLS[estimator](logprobs, batch.ref_logprobs)
    if loss_agg == "seq-mean-token-mean":
        return rollout_mean(kl, over).sum()
    return masked_sum(kl, over)


def clipped_counts(
    loss: Loss, batch: Batch, policy_loss: Float[Tensor, ""], logprobs: Float[Tensor, "B K L"]
) -> Float[Tensor, " 3"]:
    """Tokens that the loss clips, low, high and dual: none at the ratio 1."""
    if batch.old_logprobs is None or not has_clip(loss) or not logprobs.numel():
        return policy_loss.new_zeros(3)
    (slope,) = torch.autograd.grad(policy_loss, logprobs, retain_graph=True)
    change = logprobs.detach() - batch.old_logprobs
    has_dual = needs(loss, "dual_clip")
    counts = clipped_tokens(slope, change, batch.advantages, batch.loss_mask, has_dual=has_dual)
    return counts.to(policy_loss)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum()
