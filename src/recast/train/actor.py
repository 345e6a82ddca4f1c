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
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recast.config import KLEstimator, KLRollouts, LossAgg
from recast.methods.parts import is_users, owner, traits_of
from recast.policy.load import Policy, trained_parameters
from recast.policy.logprobs import BranchScores, branch_scores
from recast.policy.passes import MOST_PASS_TOKENS
from recast.policy.sharded import (
    backward,
    clip_gradients,
    compute,
    is_sharded,
    whole_weights,
)
from recast.policy.thoughts import begun_scores
from recast.run.clock import Clock, counting
from recast.run.world import add_gradients, add_up, gathered
from recast.train.batches import (
    Batch,
    Counts,
    counts_of,
    micro_batches,
    mini_batches,
    own_part,
    shortest,
    tokens_of,
)
from recast.train.diverged import DivergedError
from recast.train.measures import (
    clip_metrics,
    entropy_metrics,
    entropy_sums,
    levels_of,
    mean_metrics,
)
from recast.train.reference import Reference
from recast.train.terms import clipped_counts, kl_sum, loss_of, masked_sum
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
    reference_model: torch.nn.Module | None = None
    """Whose weights the reference reads."""
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
    with whole_weights(actor.reference_model):
        parts = [_part(actor, part, sent) for part in mini_batches(signal, actor.mini_batch_rows)]
    if parts[1:]:
        with whole_weights(actor.policy.model):
            parts[1:] = [_with_old_logprobs(actor, part) for part in parts[1:]]
    tokens = tokens_of([batch for part in parts for batch in part.batches])
    sent_tokens, real_tokens = add_up(torch.tensor(tokens)).tolist()
    updates = actor.updates_per_rollout
    metrics |= {
        "actor/padding": sent_tokens / max(real_tokens, 1),
        "actor/optimizer_steps": float(updates * len(parts)),
    }
    for _ in range(updates):
        steps = []
        for place, part in enumerate(parts):
            with actor.clock.measure("update"):
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
    num_passes: int
    """Of the rank that has most."""
    idle: Batch | None
    """What a rank with fewer sends in place of the others, where they share weights: of it nothing
    counts."""


def _part(actor: Actor, signal: Signal, sent: Bool[Tensor, "B G"]) -> _Part:
    sent = sent & signal.keep
    own = own_part(signal, sent)
    batches = list(micro_batches(own, sent & own.keep, actor.micro_batch_tokens, actor.pass_tokens))
    if (reference := actor.reference) is not None:
        with actor.clock.measure("reference"):
            batches = [replace(b, ref_logprobs=_ref_logprobs(reference, b)) for b in batches]
    is_sent = bool(sent.any() | (signal.nll_weight != 0).any())
    has_idle = is_sent and is_sharded(actor.policy.model)
    return _Part(
        batches=batches,
        counts=counts_of(signal),
        is_sent=is_sent,
        num_passes=max(gathered(len(batches))) if has_idle else len(batches),
        idle=shortest(signal, sent) if has_idle else None,
    )


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
        with actor.clock.measure("old_logprobs"):
            both = _scores(actor, batch).logprobs
        batches.append(replace(batch, old_logprobs=both[:, : batch.advantages.shape[1]]))
    return replace(part, batches=batches)


def _scores(actor: Actor, batch: Batch) -> BranchScores:
    asked = (actor.policy, batch.prompts, batch.branches, actor.space, batch.branch_mask)
    return branch_scores(*asked) if batch.begun is None else begun_scores(*asked, batch.begun)


def _step(actor: Actor, part: _Part, step: int) -> tuple[_Part, Metrics]:
    """One optimizer step; the part returns with the old log-probabilities it was made with."""
    counts, catalog, model = part.counts, actor.policy.catalog, actor.policy.model
    agg = actor.loss_agg
    parameters = trained_parameters(actor.policy)
    actor.optimizer.zero_grad(set_to_none=True)
    if not part.is_sent:  # an optimizer leaves out those without a gradient, and their momentum
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    kl_units = counts.units[2 if agg == "token-mean" else 1]
    sums = torch.zeros(9 + 2 * (catalog.num_levels + 1), dtype=torch.float64)
    batches = []
    # Checkpointing works in training mode alone, decoding with a cache only outside of it.
    model.train(model.is_activation_checkpointing)
    for batch in part.batches:
        kept = batch.advantages.shape[1]
        scores = compute(model, partial(_scores, actor, batch))
        logprobs, target_logprobs = scores.logprobs.tensor_split([kept], dim=1)
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        policy_loss = loss_of(actor.loss, batch, logprobs, old, counts.units, agg, actor.folder)
        target_logprobs = target_logprobs[..., -batch.branches.shape[2] :]
        nll = -(target_logprobs * batch.nll_weight).sum()
        total = policy_loss + nll / counts.nll_tokens
        kl = policy_loss.new_zeros(())
        if actor.kl_coef and batch.ref_logprobs is not None:
            kl = kl_sum(batch, logprobs, actor.kl_estimator, actor.kl_rollouts, agg)
            total = total + actor.kl_coef * kl / kl_units
        clipped = clipped_counts(actor.loss, batch, policy_loss, logprobs)
        backward(total)
        change = (logprobs - old).detach()
        moved = masked_sum((change.exp() - 1).abs(), batch.loss_mask)
        fell = masked_sum(-change, batch.loss_mask)
        sent = batch.loss_mask.sum()
        scalars = torch.stack([policy_loss, nll, kl, moved, fell, *clipped, sent])
        levels = levels_of(catalog, batch.branches[:, :kept])
        spread, counted = scores.entropy[:, :kept], batch.branch_mask[:, :kept]
        behind = spread[..., -counted.shape[2] :]  # the thoughts
        per_level = entropy_sums(behind, levels, counted, catalog.num_levels)
        both = torch.cat([scalars.detach().double(), per_level.flatten()])
        sums += both.cpu()  # the one wait for the device
        batches.append(replace(batch, old_logprobs=old))
    _make_idle_passes(actor, part)
    model.eval()
    add_up(sums)
    add_gradients(parameters)
    sent_tokens = max(float(sums[8]), 1)
    grad_norm = float(clip_gradients(parameters, actor.max_grad_norm))
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


def _make_idle_passes(actor: Actor, part: _Part) -> None:
    """Those that the others make and this rank has no batch for, with no gradient."""
    for _ in range(len(part.batches), part.num_passes):
        assert part.idle is not None
        with counting():
            scores = compute(actor.policy.model, partial(_scores, actor, part.idle))
        backward(scores.logprobs.sum() * 0)


def _require_finite(loss: Loss, metrics: Metrics, step: int) -> None:
    """Refuse a step that would write NaN or infinity into the weights."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            if is_users(loss):
                remedy = f"give a lower lr, or mend {owner('loss', loss)} if that gave it"
            else:
                remedy = "the run has diverged, start it again with a lower lr"
            raise DivergedError(f"{name} is {value} at step {step}: {remedy}")
