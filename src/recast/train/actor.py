"""The actor: a Signal in, one optimizer step out; it never learns which paper the signal is from.

Only what carries weight goes through the model: prompts and rollouts that cannot change the
gradient are dropped before the reference and the policy pass, and each prompt that stays is sent
once. Sums come first, each stream is divided once by its global count, whatever was sent, so the
gradient depends neither on micro-batches nor on what was dropped.

A loss names what it needs among `LOSS_INPUTS`, and the shape of its result names the unit it is a
mean over: `[B, K, L]` counted tokens, `[B, K]` rollouts, `[B]` groups with a kept rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import KLRollouts
from recast.groups import select
from recast.losses import kl_k3
from recast.methods.contract import Fault, loss_fault
from recast.methods.parts import needs, traits_of
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.lora import has_adapters, without_adapters
from recast.policy.passes import MOST_PASS_TOKENS, by_length
from recast.types import LogprobSpace, Loss, Metrics, Prompts, RecastError, Signal

Reference = Callable[[Prompts, Int[Tensor, "B K L"], Bool[Tensor, "B K L"]], Float[Tensor, "B K L"]]
"""Log-probabilities of the tokens in a mask: by a frozen copy, by the policy without its adapters,
or by another process."""


def trained_parameters(policy: Policy) -> list[torch.nn.Parameter]:
    """All weights, or those of the adapters alone."""
    return [p for p in policy.model.parameters() if p.requires_grad]


def frozen_reference(policy: Policy, space: LogprobSpace) -> Reference:
    """The log-probabilities of a policy that nobody trains; of one with adapters, without them."""

    def reference(
        prompts: Prompts, branches: Int[Tensor, "B K L"], mask: Bool[Tensor, "B K L"]
    ) -> Float[Tensor, "B K L"]:
        with without_adapters(policy.model) if has_adapters(policy.model) else nullcontext():
            return branch_logprobs(policy, prompts, branches, space, mask)

    return reference


LOSS_INPUTS = ("logprobs", "old_logprobs", "ref_logprobs", "advantages", "loss_mask")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The part of a signal that is sent: K rollouts and T targets per prompt, N = K + T.

    The branches are the rollouts, then the targets; T is 0 where no likelihood is asked for.
    Example, ReCast's pair (rows 3 and 0 of 4) of a prompt, no likelihood: K = 2, T = 0,
    `branches=[[y_0, y_3]]  advantages=[[[-1, -1, -1], [1, 1, 1]]]  loss_mask` all True. A prompt of
    the same call that keeps one rollout has a second row of `loss_mask` False.
    """

    prompts: Prompts
    branches: Int[Tensor, "B N L"]
    branch_mask: Bool[Tensor, "B N L"]
    """Tokens that are read: those that count, and those of targets with a likelihood."""
    rollout_logprobs: Float[Tensor, "B K L"]
    advantages: Float[Tensor, "B K L"]
    loss_mask: Bool[Tensor, "B K L"]
    nll_weight: Float[Tensor, "B T L"]
    ref_logprobs: Float[Tensor, "B K L"] | None = None


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
    pass_tokens: int = MOST_PASS_TOKENS
    """Tokens that take as long as one more pass."""


def update(actor: Actor, signal: Signal) -> Metrics:
    """`updates_per_rollout` optimizer steps on one signal; returns the last step's metrics.

    With one step the old log-probabilities are the update's own, detached: the ratio is exactly 1.
    With several they are those of the rollout, which the same weights gave. A signal that keeps
    nothing leaves the policy as it is (`actor/kept_rows` is 0); one that keeps rollouts of
    advantage 0 makes its step with the gradient 0, whether they were sent or not.
    """
    sent = rollouts_to_send(actor, signal)
    metrics: Metrics = {
        "actor/kept_rows": float(signal.keep.sum()),
        "actor/sent_rows": float(sent.sum()),
    }
    if not bool(signal.keep.any() | (signal.nll_weight != 0).any()):
        return metrics
    batches = list(micro_batches(signal, sent, actor.micro_batch_tokens, actor.pass_tokens))
    if (reference := actor.reference) is not None:
        ref = [_ref_logprobs(reference, batch) for batch in batches]
        batches = [replace(b, ref_logprobs=x) for b, x in zip(batches, ref, strict=True)]
    metrics["actor/padding"] = _padding(batches)
    counts = _counts(signal)
    for _ in range(actor.updates_per_rollout):
        metrics |= _step(actor, batches, counts)
    return metrics


def rollouts_to_send(actor: Actor, signal: Signal) -> Bool[Tensor, "B G"]:
    """The kept rollouts that can change the gradient: all of them, or those with an advantage.

    One without changes nothing where the loss is silent at an advantage of 0 and no KL is taken
    over it. A user's loss is given them all.
    """
    has_kl = actor.kl_coef > 0 and actor.kl_rollouts == "kept"
    if has_kl or not traits_of(actor.loss).is_silent_at_zero:
        return signal.keep
    return signal.keep & (signal.advantages != 0).any(-1)


def micro_batches(
    signal: Signal,
    sent: Bool[Tensor, "B G"],
    max_tokens: int,
    pass_tokens: int = MOST_PASS_TOKENS,
) -> Iterator[Batch]:
    """Prompts with a rollout to send or a likelihood, bucketed by length, in the cheapest batches
    of at most `max_tokens` tokens; a prompt and its branches are never split."""
    prompts = signal.groups.prompts
    has_nll = signal.nll_weight != 0
    rows = (sent.any(1) | has_nll).nonzero()[:, 0]
    of_rollouts = _sent_tokens(signal.groups.loss_mask) * sent
    of_targets = _sent_tokens(prompts.target_mask) * has_nll[:, None]
    branch_tokens = (of_rollouts.sum(1) + of_targets.sum(1))[rows]
    for index in by_length(prompts.lengths[rows], branch_tokens, max_tokens, pass_tokens):
        yield _gather(signal, sent, rows[index])


def _sent_tokens(mask: Bool[Tensor, "B N L"]) -> Int[Tensor, "B N"]:
    """Of every branch: all before the last one that counts, whether they count or not."""
    return (mask * torch.arange(mask.shape[2], device=mask.device)).amax(-1)


def _gather(signal: Signal, sent: Bool[Tensor, "B G"], rows: Int[Tensor, " N"]) -> Batch:
    groups = select(signal.groups, rows)
    prompts = groups.prompts
    prompts = replace(prompts, tokens=prompts.tokens[:, : int(prompts.lengths.max())])
    keep, nll_weight = sent[rows], signal.nll_weight[rows]
    # Rollouts to send first, in their order; short groups are filled with rows of no weight.
    kept = int(keep.sum(1).max())
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :kept]
    token = order[..., None].expand(-1, -1, groups.tokens.shape[2])
    mask = groups.loss_mask & keep[..., None]
    branches, masks = [groups.tokens.gather(1, token)], [mask.gather(1, token)]
    advantages = signal.advantages[rows].expand(groups.tokens.shape).gather(1, token)
    weight = advantages[:, :0]
    if bool((nll_weight != 0).any()):
        count = prompts.target_mask.any(-1).sum(1)[:, None, None].clamp(min=1)
        weight = nll_weight[:, None, None] * prompts.target_mask / count
        branches.append(prompts.targets)
        masks.append(weight != 0)
    return Batch(
        prompts=prompts,
        branches=torch.cat(branches, dim=1),
        branch_mask=torch.cat(masks, dim=1),
        rollout_logprobs=groups.rollout_logprobs.gather(1, token),
        advantages=advantages,
        loss_mask=masks[0],
        nll_weight=weight,
    )


@torch.no_grad()
def _ref_logprobs(reference: Reference, batch: Batch) -> Float[Tensor, "B K L"]:
    kept = batch.advantages.shape[1]
    if not kept:
        return batch.advantages
    return reference(batch.prompts, batch.branches[:, :kept], batch.loss_mask)


def _padding(batches: list[Batch]) -> float:
    """Tokens sent per real one, of prompts and branches."""
    sent = real = 0
    for batch in batches:
        branch_tokens = _sent_tokens(batch.branch_mask).sum(1)
        lengths = batch.prompts.lengths
        sent += len(lengths) * int(lengths.max() + branch_tokens.max())
        real += int((lengths + branch_tokens).sum())
    return sent / max(real, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counts:
    """What the sums are divided by."""

    units: tuple[int, int, int]
    """Groups, rollouts and tokens that are kept: by the dimensions of a loss, less one."""
    nll_tokens: float
    """A prompt counts once however many targets it has, with their mean length: they share its
    weight."""


def _counts(signal: Signal) -> _Counts:
    kept = signal.groups.loss_mask & signal.keep[..., None]
    prompts = signal.groups.prompts
    lengths = prompts.target_mask.sum(-1)
    mean_length = lengths.sum(1) / (lengths > 0).sum(1).clamp(min=1)
    units = (kept.any(-1).any(-1), kept.any(-1), kept)
    groups, rollouts, tokens = (max(int(unit.sum()), 1) for unit in units)
    return _Counts(
        units=(groups, rollouts, tokens),
        nll_tokens=max(float(mean_length[signal.nll_weight != 0].sum()), 1.0),
    )


def _step(actor: Actor, batches: list[Batch], counts: _Counts) -> Metrics:
    tokens, nll_tokens = counts.units[2], counts.nll_tokens
    model = actor.policy.model
    parameters = trained_parameters(actor.policy)
    actor.optimizer.zero_grad(set_to_none=True)
    if not batches:  # an optimizer leaves out parameters without a gradient, its momentum included
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    sent_tokens = max(sum(int(batch.loss_mask.sum()) for batch in batches), 1)
    sums = torch.zeros(4, dtype=torch.float64)
    # Checkpointing works in training mode alone, decoding with a cache only outside of it.
    model.train(model.is_activation_checkpointing)
    for batch in batches:
        both = branch_logprobs(
            actor.policy, batch.prompts, batch.branches, actor.space, batch.branch_mask
        )
        logprobs, target_logprobs = both.tensor_split([batch.advantages.shape[1]], dim=1)
        old = logprobs.detach() if actor.updates_per_rollout == 1 else batch.rollout_logprobs
        policy_loss = _policy_loss(actor.loss, batch, logprobs, old, counts.units)
        nll = -(target_logprobs * batch.nll_weight).sum()
        total = policy_loss + nll / nll_tokens
        kl = policy_loss.new_zeros(())
        if actor.kl_coef and batch.ref_logprobs is not None:
            over = batch.loss_mask
            if actor.kl_rollouts == "weighted":
                over = over & (batch.advantages != 0).any(-1, keepdim=True)
            kl = _masked_sum(kl_k3(logprobs, batch.ref_logprobs), over)
            total = total + actor.kl_coef * kl / tokens
        total.backward()
        moved = _masked_sum(((logprobs - old).detach().exp() - 1).abs(), batch.loss_mask)
        sums += torch.stack([policy_loss, nll, kl, moved]).detach().double().cpu()
    model.eval()
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, actor.max_grad_norm)
    actor.optimizer.step()
    kl_metric = {"actor/kl": float(sums[2]) / tokens} if actor.kl_coef else {}
    return kl_metric | {
        "actor/policy_loss": float(sums[0]),
        "actor/nll": float(sums[1]) / nll_tokens,
        "actor/ratio_deviation": float(sums[3]) / sent_tokens,
        "actor/grad_norm": float(grad_norm),
    }


def _policy_loss(
    loss: Loss,
    batch: Batch,
    logprobs: Float[Tensor, "B K L"],
    old_logprobs: Float[Tensor, "B K L"],
    counts: tuple[int, int, int],
) -> Float[Tensor, ""]:
    """This batch's part of the mean of the loss over all that it is a loss of."""
    if not batch.advantages.shape[1]:
        return logprobs.sum()  # of nothing: 0, and part of the graph
    inputs = (logprobs, old_logprobs, batch.ref_logprobs, batch.advantages, batch.loss_mask)
    named = dict(zip(LOSS_INPUTS, inputs, strict=True))
    values = loss(**{name: value for name, value in named.items() if needs(loss, name)})
    fault = loss_fault(values, tuple(logprobs.shape))
    if fault is None and not values.requires_grad:
        fault = Fault("a tensor without a gradient: compute it from `logprobs`")
    if fault:
        raise RecastError(f"the loss gave {fault.what}")
    mask = batch.loss_mask
    while mask.ndim > values.ndim:
        mask = mask.any(-1)
    return _masked_sum(values, mask) / counts[values.ndim - 1]


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum()
