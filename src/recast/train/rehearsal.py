"""A few prompts of the data through all parts of a method, as a step does it, before there is a
run: what a part raises or returns is said before the first validation. No model is updated."""

from __future__ import annotations

from dataclasses import replace

import torch

from recast.groups import select
from recast.methods.guard import ask_reward, ask_signal, blame
from recast.methods.parts import is_users, owner, supply
from recast.rollout.add_gt import add_gt
from recast.run.world import is_first
from recast.train.actor import Actor, rollouts_to_send
from recast.train.batches import check_thoughts, micro_batches
from recast.train.search import Search
from recast.train.terms import loss_of
from recast.types import Prompts, RecastError, Signal

_PROMPTS = 4  # two kinds of prompts and two neighbours for signals that read other prompts


def rehearse(search: Search, actor: Actor, prompts: Prompts) -> None:
    """Raise `RecastError` for the first part that cannot work; its group is in the search's folder.

    Our own parts are known to work: without one of the user's only the sampler is tried.
    """
    method = search.method
    parts = (search.sampler, method.reward, method.signal, method.loss)
    asks = search.sampler is not None and (
        any(part is not None and is_users(part) for part in parts) or _has_ranker(search)
    )
    count = min(_PROMPTS, len(prompts)) if asks else 1
    few = select(prompts, torch.arange(count, device=prompts.tokens.device))
    groups = search.roll_out(0, few)
    if not (asks and is_first()):  # which asks the others' parts too
        return
    if method.add_gt:
        groups = add_gt(groups)
    rewards = ask_reward(method.reward, groups, search.folder)
    signal_of = supply(method.signal, {"natural_frac": 0.0})
    signal = ask_signal(signal_of, groups, rewards, search.folder, search.policy)
    if signal.groups.thoughts is not None:
        check_thoughts(signal)
    if is_users(method.loss):
        with blame("loss", method.loss, (signal.groups,), search.folder):
            _rehearse_loss(actor, signal)


def _has_ranker(search: Search) -> bool:
    """Whether something of a user's scores items."""
    parts = (search.method.reward, search.method.signal)
    return any("ranker" in getattr(part, "keywords", {}) for part in parts)


def _rehearse_loss(actor: Actor, signal: Signal) -> None:
    """The loss of what was rolled out, as if every token had 1 / e, and its slope."""
    sent, loss = rollouts_to_send(actor, signal), actor.loss
    for batch in micro_batches(signal, sent, actor.micro_batch_tokens, actor.pass_tokens):
        if not batch.advantages.shape[1]:
            continue
        same = torch.full_like(batch.advantages, -1.0, dtype=torch.float32)
        logprobs = same.clone().requires_grad_()
        total = loss_of(
            loss,
            replace(batch, ref_logprobs=same),
            logprobs,
            same,
            (1, 1, 1),
            actor.loss_agg,
            actor.folder,
        )
        [slope] = torch.autograd.grad(total, [logprobs], allow_unused=True)
        if slope is None or not bool(slope.isfinite().all()):
            what = "no gradient" if slope is None else "a gradient that is not finite"
            raise RecastError(f"{owner('loss', loss)} gave {what}: compute it from `logprobs`")
