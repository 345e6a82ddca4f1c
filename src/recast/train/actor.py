"""The actor: a Signal in, optimizer steps out, one by default; it never learns which paper the
signal is from.

Only what carries weight goes through the model: prompts and rollouts that cannot change the
gradient are dropped before the reference and the policy pass, and each prompt that stays is sent
once per step. Sums come first, each stream is divided once by its global count, whatever was sent,
so the gradient depends neither on micro-batches nor on what was dropped, nor on how many ranks
share the prompts: each sends its part, and sums and gradients are those of all.

A loss names what it needs among `LOSS_INPUTS`, and the shape of its result names the unit it is a
mean over: `[B, K, L]` counted tokens, `[B, K]` rollouts, `[B]` groups with a kept rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recast.config import KLEstimator, KLRollouts, LossAgg
from recast.losses import KLS
from recast.losses.rollouts import rollout_mean
from recast.methods.contract import units
from recast.methods.guard import ask_loss
from recast.methods.parts import LOSS_INPUTS, is_users, needs, owner, traits_of
from recast.policy.load import Policy, trained_parameters
from recast.policy.logprobs import BranchScores, branch_scores
from recast.policy.passes import MOST_PASS_TOKENS
from recast.policy.thoughts import begun_scores
from recast.run.clock import Clock
from recast.run.world import add_gradients, add_up
from recast.train.batches import (
    Batch,
    Counts,
    counts_of,
    micro_batches,
    mini_batches,
    own_part,
    tokens_of,
)
from recast.train.diverged import DivergedError
from recast.train.measures import (
    clip_metrics,
    clipped_tokens,
    entropy_metrics,
    entropy_sums,
    has_clip,
    levels_of,
    mean_metrics,
)
from recast.train.reference import Reference
from recast.types import LogprobSpace, Loss, Metrics, Signal


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """What an update needs besides the signal."""

    policy: Policy
    reference: Reference | None
    """What the KL and some losses compare with; None when neither is asked."""
    optimizer: torch.optim.Optimizer
    loss: Loss
    kl_coef: float
    kl_rollouts: KLRollouts
    max_grad_norm: float
    space: LogprobSpace
    micro_batch_tokens: int
    updates_per_rollout: int
    mini_batch_rows: int | None = None
    """Kept rollouts per optimizer step; None: all."""
    loss_agg: LossAgg = "token-mean"
    kl_estimator: KLEstimator = "k3"
    pass_tokens: int = MOST_PASS_TOKENS
    """Tokens that take as long as one more pass."""
    clock: Clock = field(default_factory=Clock)
    folder: str = ""
    """Where a group that the loss fails on is written; nowhere by default."""


def update(actor: Actor, signal: Signal) -> Metrics:
    """One optimizer step per mini-batch, `updates_per_rollout` times over; returns the means over
    the steps of the last time.

    The old log-probabilities are those of the policy before the first step: the first mini-batch
    takes its first pass's own, detached, so that its ratio is exactly 1; the others get theirs from
    a pass without gradients. A signal that keeps nothing leaves the policy as it is
    (`actor/kept_rows` is 0); one that keeps rollouts of advantage 0 makes its step with the
    gradient 0, whether they were sent or not.

    Raises `DivergedError` for a loss or a gradient that is not finite, before the step is made.
    """
    sent = rollouts_to_send(actor, signal)
    metrics: Metrics = {
        "actor/kept_rows": float(signal.keep.sum()),
        "actor/sent_rows": float(sent.sum()),
    }
    if not bool(signal.keep.any() | (signal.nll_weight != 0).any()):
        return metrics
    parts = [_part(actor, part, sent) for part in mini_batches(signal, actor.mini_batch_rows)]
    parts[1:] = [_with_old_logprobs(actor, part) for part in parts[1:]]
    tokens = tokens_of([batch for part in parts for batch in part.batches])
    sent_tokens, real_tokens = add_up(torch.tensor(tokens)).tolist()
    updates = actor.updates_per_rollout
    metrics |= {
        "actor/padding": sent_tokens / max(real_tokens, 1),
        "actor/sent_tokens": float(updates * real_tokens),
        "actor/optimizer_steps": float(updates * len(parts)),
    }
    for _ in range(updates):
        steps = []
        for place, part in enumerate(parts):
            with actor.clock.measure("time/update_s"):
                parts[place], step = _step(actor, part, signal.groups.step + 1)
            steps.append(step)
    return metrics | mean_metrics(steps)


def rollouts_to_send(actor: Actor, signal: Signal) -> Bool[Tensor, "B G"]:
    """The kept rollouts that can change the gradient: all of them, or those with an advantage.

    One without changes nothing where the loss is silent at an advantage of 0 and no KL is taken
    over it. A user's loss is given them all.
    """
    has_kl = actor.kl_coef > 0 and actor.kl_rollouts == "kept"
    if has_kl or not traits_of(actor.loss).is_silent_at_zero:
        return signal.keep
    return signal.keep & (signal.advantages != 0).any(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What one optimizer step reads."""

    batches: list[Batch]
    """This rank's."""
    counts: Counts
    """Of all ranks."""
    is_sent: bool
    """Whether any rank has a batch."""


def _part(actor: Actor, signal: Signal, sent: Bool[Tensor, "B G"]) -> _Part:
    sent = sent & signal.keep
    own = own_part(signal, sent)
    batches = list(micro_batches(own, sent & own.keep, actor.micro_batch_tokens, actor.pass_tokens))
    if (reference := actor.reference) is not None:
        with actor.clock.measure("time/reference_s"):
            batches = [replace(b, ref_logprobs=_ref_logprobs(reference, b)) for b in batches]
    is_sent = bool(sent.any() | (signal.nll_weight != 0).any())
    return _Part(batches=batches, counts=counts_of(signal), is_sent=is_sent)


@torch.no_grad()
def _ref_logprobs(reference: Reference, batch: Batch) -> Float[Tensor, "B K L"]:
    kept = batch.advantages.shape[1]
    if not kept:
        return batch.advantages
    branches, mask = batch.branches[:, :kept], batch.branch_mask[:, :kept]
    return reference(batch.prompts, branches, mask, batch.begun)


@torch.no_grad()
def _with_old_logprobs(actor: Actor, part: _Part) -> _Part:
    """By the very passes that its step makes, so that what has not moved has the ratio 1."""
    batches = []
    for batch in part.batches:
        with actor.clock.measure("time/old_logprobs_s"):
            both = _scores(actor, batch).logprobs
        batches.append(replace(batch, old_logprobs=both[:, : batch.advantages.shape[1]]))
    return replace(part, batches=batches)


def _scores(actor: Actor, batch: Batch) -> BranchScores:
    asked = (actor.policy, batch.prompts, batch.branches, actor.space, batch.branch_mask)
    return branch_scores(*asked) if batch.begun is None else begun_scores(*asked, batch.begun)


def _step(actor: Actor, part: _Part, step: int) -> tuple[_Part, Metrics]:
    """One optimizer step; the part returns with the old log-probabilities it was made with."""
    counts, catalog = part.counts, actor.policy.catalog
    model = actor.policy.model
    parameters = trained_parameters(actor.policy)
    actor.optimizer.zero_grad(set_to_none=True)
    if not part.is_sent:  # an optimizer leaves out those without a gradient, and their momentum
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    kl_units = counts.units[2 if actor.loss_agg == "token-mean" else 1]
    sums = torch.zeros(9 + 2 * (catalog.num_levels + 1), dtype=torch.float64)
    batches = []
    # Checkpointing works in training mode alone, decoding with a cache only outside of it.
    model.train(model.is_activation_checkpointing)
    for batch in part.batches:
        kept = batch.advantages.shape[1]
        scores = _scores(actor, batch)
        logprobs, target_logprobs = scores.logprobs.tensor_split([kept], dim=1)
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        policy_loss = loss_of(actor, batch, logprobs, old, counts.units)
        target_logprobs = target_logprobs[..., -batch.branches.shape[2] :]
        nll = -(target_logprobs * batch.nll_weight).sum()
        total = policy_loss + nll / counts.nll_tokens
        kl = policy_loss.new_zeros(())
        if actor.kl_coef and batch.ref_logprobs is not None:
            kl = _kl_sum(actor, batch, logprobs)
            total = total + actor.kl_coef * kl / kl_units
        clipped = _clipped(actor.loss, batch, policy_loss, logprobs)
        total.backward()
        change = (logprobs - old).detach()
        moved = _masked_sum((change.exp() - 1).abs(), batch.loss_mask)
        fell = _masked_sum(-change, batch.loss_mask)
        sent = batch.loss_mask.sum()
        scalars = torch.stack([policy_loss, nll, kl, moved, fell, *clipped, sent])
        levels = levels_of(catalog, batch.branches[:, :kept])
        spread, counted = scores.entropy[:, :kept], batch.branch_mask[:, :kept]
        behind = spread[..., -counted.shape[2] :]  # the thoughts
        per_level = entropy_sums(behind, levels, counted, catalog.num_levels)
        both = torch.cat([scalars.detach().double(), per_level.flatten()])
        sums += both.cpu()  # the one wait for the device
        batches.append(replace(batch, old_logprobs=old))
    model.eval()
    add_up(sums)
    add_gradients(parameters)
    sent_tokens = max(float(sums[8]), 1)
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, actor.max_grad_norm))
    kl_metric = {"actor/kl": float(sums[2]) / kl_units} if actor.kl_coef else {}
    metrics = kl_metric | {
        "actor/policy_loss": float(sums[0]),
        "actor/nll": float(sums[1]) / counts.nll_tokens,
        "actor/ratio_deviation": float(sums[3]) / sent_tokens,
        "actor/ppo_kl": float(sums[4]) / sent_tokens,
        "actor/grad_norm": grad_norm,
    }
    _require_finite(actor.loss, metrics, step)
    actor.optimizer.step()
    torch.clear_autocast_cache()  # it holds the weights as they were
    metrics |= clip_metrics(actor.loss, sums[5:8].tolist(), counts.units[2])
    return replace(part, batches=batches), metrics | entropy_metrics(sums[9:].view(2, -1))


def loss_of(
    actor: Actor,
    batch: Batch,
    logprobs: Float[Tensor, "B K L"],
    old_logprobs: Float[Tensor, "B K L"],
    counts: tuple[int, int, int],
) -> Float[Tensor, ""]:
    """This batch's part of the mean of the loss over all that it is a loss of."""
    if not batch.advantages.shape[1]:
        return logprobs.sum()  # of nothing: 0, and part of the graph
    loss = actor.loss
    inputs = (logprobs, old_logprobs, batch.ref_logprobs, batch.advantages, batch.loss_mask)
    named = dict(zip(LOSS_INPUTS, inputs, strict=True))
    asked = {name: value for name, value in named.items() if needs(loss, name)}
    values = ask_loss(loss, asked, batch.loss_mask, batch.prompts, actor.folder)
    if values.ndim == 3 and actor.loss_agg == "seq-mean-token-mean":
        values = rollout_mean(values, batch.loss_mask)
    return _masked_sum(values, units(values, batch.loss_mask)) / counts[values.ndim - 1]


def _kl_sum(actor: Actor, batch: Batch, logprobs: Float[Tensor, "B K L"]) -> Float[Tensor, ""]:
    """Of the tokens, or of the rollouts' means."""
    assert batch.ref_logprobs is not None
    over = batch.loss_mask
    if actor.kl_rollouts == "weighted":
        over = over & (batch.advantages != 0).any(-1, keepdim=True)
    kl = KLS[actor.kl_estimator](logprobs, batch.ref_logprobs)
    if actor.loss_agg == "seq-mean-token-mean":
        return rollout_mean(kl, over).sum()
    return _masked_sum(kl, over)


def _clipped(
    loss: Loss, batch: Batch, policy_loss: Float[Tensor, ""], logprobs: Float[Tensor, "B K L"]
) -> Float[Tensor, 3]:
    """Tokens that the loss clips, low, high and dual: none at the ratio 1."""
    if batch.old_logprobs is None or not has_clip(loss) or not logprobs.numel():
        return policy_loss.new_zeros(3)
    (slope,) = torch.autograd.grad(policy_loss, logprobs, retain_graph=True)
    change = logprobs.detach() - batch.old_logprobs
    has_dual = needs(loss, "dual_clip")
    counts = clipped_tokens(slope, change, batch.advantages, batch.loss_mask, has_dual=has_dual)
    return counts.to(policy_loss)


def _require_finite(loss: Loss, metrics: Metrics, step: int) -> None:
    """Refuse a step that would write NaN or infinity into the weights."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            if is_users(loss):
                remedy = f"give a lower lr, or mend {owner('loss', loss)} if that gave it"
            else:
                remedy = "the run has diverged, start it again with a lower lr"
            raise DivergedError(f"{name} is {value} at step {step}: {remedy}")


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum()
