"""The actor: a Signal in, one optimizer step out; it never learns which paper the signal is from.

Only what carries weight goes through the model: prompts and rollouts without weight are dropped
before the reference and the policy pass, and each prompt that stays is sent once. Sums come first,
each stream is divided once by its global count, so the gradient does not depend on micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import LogprobSpace
from recast.losses import kl_k3
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.types import Metrics, Prompts, Signal, select


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The part of a signal that carries weight: K branches per prompt, the target among them.

    `advantages` is 0 and `keep` False on the target's own branch, `nll_weight` 0 on all others.
    """

    prompts: Prompts
    branches: Int[Tensor, "B K L"]
    advantages: Float[Tensor, "B K L"]
    loss_mask: Bool[Tensor, "B K L"]
    nll_weight: Float[Tensor, "B K L"]
    old_logprobs: Float[Tensor, "B K L"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """What an update needs besides the signal."""

    policy: Policy
    reference: Policy | None
    """Frozen copy for the KL; None when `kl_coef` is 0."""
    optimizer: torch.optim.Optimizer
    loss: Callable[..., Float[Tensor, "B K L"]]
    kl_coef: float
    max_grad_norm: float
    space: LogprobSpace
    micro_batch_tokens: int
    updates_per_rollout: int


def update(actor: Actor, signal: Signal) -> Metrics:
    """`updates_per_rollout` optimizer steps on one signal; returns the last step's metrics.

    With one step the old log-probabilities are the update's own, detached: the ratio is exactly 1.
    With several they are computed once beforehand by the same packed pass. A signal that carries no
    weight leaves the policy as it is (`actor/kept_rows` is 0).
    """
    batches = list(micro_batches(signal, actor.micro_batch_tokens))
    if actor.updates_per_rollout > 1:
        batches = [_with_old_logprobs(actor, batch) for batch in batches]
    metrics: Metrics = {"actor/kept_rows": float(signal.keep.sum())}
    if not batches:
        return metrics
    references = [_reference_logprobs(actor, batch) for batch in batches]
    for _ in range(actor.updates_per_rollout):
        metrics |= _step(actor, batches, references)
    return metrics


def micro_batches(signal: Signal, max_tokens: int) -> Iterator[Batch]:
    """Prompts that carry weight, bucketed by length, at most `max_tokens` tokens each.

    A prompt and its branches are never split, so a single larger prompt makes a batch of its own.
    """
    weighted = signal.keep.any(1) | (signal.nll_weight != 0)
    prompts = signal.groups.prompts
    rows = weighted.nonzero()[:, 0]
    rows = rows[prompts.lengths[rows].argsort(stable=True)]
    widths = signal.keep.sum(1) + (signal.nll_weight != 0) * prompts.targets.shape[1]
    length, width = prompts.lengths[rows].tolist(), widths[rows].tolist()
    num_levels = signal.groups.tokens.shape[2]
    start = 0
    for end in range(1, len(rows) + 1):
        full = (
            end < len(rows)
            and (end + 1 - start) * (length[end] + max(width[start : end + 1]) * (num_levels - 1))
            > max_tokens
        )
        if full or end == len(rows):
            yield _gather(signal, rows[start:end])
            start = end


def _gather(signal: Signal, rows: Int[Tensor, " N"]) -> Batch:
    groups = select(signal.groups, rows)
    prompts = groups.prompts
    prompts = replace(prompts, tokens=prompts.tokens[:, : int(prompts.lengths.max())])
    keep, nll_weight = signal.keep[rows], signal.nll_weight[rows]
    # Kept rollouts first, in their order; short groups are filled with rows that count for nothing.
    kept = int(keep.sum(1).max())
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :kept]
    token = order[..., None].expand(-1, -1, groups.tokens.shape[2])
    mask = groups.loss_mask & keep[..., None]
    branches = [groups.tokens.gather(1, token)]
    advantages = [signal.advantages[rows].expand(groups.tokens.shape).gather(1, token)]
    loss_mask = [mask.gather(1, token)]
    weight = [torch.zeros_like(advantages[0])]
    if bool((nll_weight != 0).any()):
        is_target = (prompts.target_items >= 0)[..., None].expand(prompts.targets.shape)
        share = nll_weight[:, None, None] * is_target / is_target[..., :1].sum(1, keepdim=True)
        branches.append(prompts.targets)
        advantages.append(torch.zeros_like(share))
        loss_mask.append(torch.zeros_like(is_target))
        weight.append(share)
    return Batch(
        prompts=prompts,
        branches=torch.cat(branches, dim=1),
        advantages=torch.cat(advantages, dim=1),
        loss_mask=torch.cat(loss_mask, dim=1),
        nll_weight=torch.cat(weight, dim=1),
    )


def _with_old_logprobs(actor: Actor, batch: Batch) -> Batch:
    with torch.no_grad():
        old = branch_logprobs(actor.policy, batch.prompts, batch.branches, actor.space)
    return replace(batch, old_logprobs=old)


def _reference_logprobs(actor: Actor, batch: Batch) -> Tensor | None:
    if actor.reference is None:
        return None
    with torch.no_grad():
        return branch_logprobs(actor.reference, batch.prompts, batch.branches, actor.space)


def _step(actor: Actor, batches: list[Batch], references: list[Tensor | None]) -> Metrics:
    tokens = max(sum(int(batch.loss_mask.sum()) for batch in batches), 1)
    # The targets of a prompt share its weight, so a prompt counts once however many it has.
    nll_tokens = max(sum(int((batch.nll_weight != 0).any(1).sum()) for batch in batches), 1)
    actor.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(4, dtype=torch.float64)
    for batch, ref_logprobs in zip(batches, references, strict=True):
        logprobs = branch_logprobs(actor.policy, batch.prompts, batch.branches, actor.space)
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        policy_loss = _masked_sum(actor.loss(logprobs, old, batch.advantages), batch.loss_mask)
        nll = -(logprobs * batch.nll_weight).sum()
        total = policy_loss / tokens + nll / nll_tokens
        kl = torch.zeros(())
        if ref_logprobs is not None:
            kl = _masked_sum(kl_k3(logprobs, ref_logprobs), batch.loss_mask)
            total = total + actor.kl_coef * kl / tokens
        total.backward()
        moved = _masked_sum(((logprobs - old).detach().exp() - 1).abs(), batch.loss_mask)
        sums += torch.stack([policy_loss, nll, kl, moved]).detach().double().cpu()
    parameters = actor.policy.model.parameters()
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, actor.max_grad_norm)
    actor.optimizer.step()
    kl_metric = {} if actor.reference is None else {"actor/kl": float(sums[2]) / tokens}
    return kl_metric | {
        "actor/policy_loss": float(sums[0]) / tokens,
        "actor/nll": float(sums[1]) / nll_tokens,
        "actor/ratio_deviation": float(sums[3]) / tokens,
        "actor/grad_norm": float(grad_norm),
    }


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum()
