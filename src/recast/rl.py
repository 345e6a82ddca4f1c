"""READ FIRST. The loop of post-training: rollout, reward, signal, update, evaluate, save.

A policy and rows of the `rl` slice in, a better policy (one hopes) out. The loop knows no paper: a
`Method` names the sampler, the reward, the signal and the loss.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.config import RLConfig
from recast.data.folder import data_hash, load_data
from recast.evaluation.rank import sample_rows, validate
from recast.groups import select
from recast.methods.assembly import equip, resolve
from recast.methods.guard import blame, guard_inputs, guard_signal, versions
from recast.methods.parts import spell, supply
from recast.methods.table import Method
from recast.policy.load import Policy, disable_dropout, load_policy, save_policy
from recast.policy.memory import MemoryPlan, plan_memory
from recast.policy.prompts import build_prompts, check_catalog
from recast.policy.threads import choose_threads
from recast.rollout.beam import beam_search
from recast.run.files import refuse_existing
from recast.run.log import RunLog
from recast.train.actor import Actor, needs, update
from recast.train.learnability import group_metrics
from recast.train.search import Search, branch_tokens, prompt_batches
from recast.types import Metrics, RolloutGroups, Signal

_MEMORY = 0.9  # of the running trainable fraction, per step


def train_rl(config: RLConfig, log: RunLog | None = None) -> Metrics:
    """Post-train `config.policy` with `config.method`; its last state goes to `output`/policy.

    All methods see the same prompts in the same order and make the same number of optimizer
    steps. Returns the last validation metrics, the number of rollouts and optimizer steps, and the
    CPU seconds without validation.
    """
    refuse_existing(config.output)
    method = resolve(config)
    interactions = load_data(config.data)
    policy = load_policy(config.policy).to(config.device)
    check_catalog(config.data, policy.catalog)
    policy.model.float()  # a small step is lost on weights of 8 bits
    method = equip(method, config, policy)
    rows = prompt_batches(interactions, config, method)
    disable_dropout(policy.model)
    first = build_prompts(interactions, policy.catalog, rows[0], policy.window)
    longest = 1 + (policy.window - 1) * policy.catalog.num_levels
    longest += branch_tokens(config, method, policy, first.targets.shape[1])
    compares = bool(method.kl_coef) or needs(method.loss, "ref_logprobs")
    reads = config.prompts_per_step * branch_tokens(config, method, policy, first.targets.shape[1])
    plan = plan_memory(policy, longest, config.micro_batch_tokens, reference=compares, reads=reads)
    actor = _actor(config, method, policy, plan, compares)
    if plan.checkpointing:
        policy.model.activation_checkpointing_enable()
    valid_rows = sample_rows(interactions, "valid", config.valid_rows)
    search = Search(
        method=method,
        policy=policy,
        interactions=interactions,
        config=config,
        max_tokens=plan.micro_batch_tokens,
    )
    search.roll_out(0, first)  # a sampler that cannot work says so before there is a folder
    count = min(len(first), plan.micro_batch_tokens // longest + 1)
    few = select(first, torch.arange(count, device=policy.catalog.device))
    width = config.group_size * method.list_length
    threads = choose_threads(lambda: beam_search(policy, few, width), config.threads, config.device)
    further = iter(rows[config.steps :])
    rollouts, optimizer_steps, cpu_s, natural_frac = 0, 0, 0.0, 0.0
    with RunLog(config.output, _settings(config, method, threads, plan), parent=log) as run:
        run.environment(data_hash(config.data))
        run.say(plan.text)
        valid = validate(policy, interactions, valid_rows)
        name = f"{method.label}, {method.sampler} rollouts" if method.sampler else method.label
        run.metrics(0, valid, stage=name)
        with run.stage(name, total=config.steps) as stage:
            for step in range(config.steps):
                started = time.process_time()
                done = train_step(search, actor, step, rows[step], further, natural_frac)
                metrics = done.metrics
                natural = metrics.get("group/natural_frac", 0.0)
                natural_frac = _MEMORY * natural_frac + (1 - _MEMORY) * natural
                cpu_s += time.process_time() - started
                rollouts += done.num_rollouts
                optimizer_steps += config.updates_per_rollout * ("actor/grad_norm" in metrics)
                run.rollouts(step + 1, done.groups, done.rewards, done.signal)
                if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
                    valid = validate(policy, interactions, valid_rows)
                    metrics |= valid
                stage.advance(metrics, step=step + 1)
        save_policy(policy, Path(config.output) / "policy")
    counts = {"rollouts": float(rollouts), "optimizer_steps": float(optimizer_steps)}
    return valid | counts | {"cpu_s": cpu_s}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one step did."""

    groups: RolloutGroups
    rewards: Float[Tensor, "B G"]
    signal: Signal
    metrics: Metrics
    num_rollouts: int
    """All that were drawn, those of groups that were left out included."""


def train_step(
    search: Search,
    actor: Actor,
    step: int,
    rows: Int[Tensor, " B"],
    further: Iterator[Int[Tensor, " B"]],
    natural_frac: float,
) -> Step:
    """Rollout, reward, signal, update. `natural_frac`: mean share of mixed groups so far."""
    config, method = search.config, search.method
    computing = search.policy.computing_in(config.precision)
    with computing:
        (groups, rewards), drawn = search.batch(step, rows, further)
    signal_of = supply(method.signal, {"natural_frac": natural_frac})
    before = versions(groups, rewards)
    with blame("signal", method.signal):
        signal = signal_of(groups, rewards)
    guard_signal(method.signal, groups, signal, config.output)
    guard_inputs(method.signal, before, versions(groups, rewards))
    if method.nll_coef:
        signal = replace(signal, nll_weight=signal.nll_weight + method.nll_coef)
    for group in actor.optimizer.param_groups:
        group["lr"] = method.lr * min((step + 1) / max(config.warmup_steps, 1), 1.0)
    with blame("loss", method.loss), computing:
        metrics = group_metrics(drawn, signal) | update(actor, signal)
    count = sum(int(found.exists.sum()) for found, _ in drawn)
    return Step(groups=groups, rewards=rewards, signal=signal, metrics=metrics, num_rollouts=count)


def _actor(
    config: RLConfig, method: Method, policy: Policy, plan: MemoryPlan, compares: bool
) -> Actor:
    return Actor(
        policy=policy,
        reference=_frozen_copy(policy) if compares else None,
        optimizer=torch.optim.AdamW(policy.model.parameters(), lr=method.lr, weight_decay=0.0),
        loss=method.loss,
        kl_coef=method.kl_coef,
        kl_rollouts=config.kl_rollouts,
        max_grad_norm=config.max_grad_norm,
        space=method.space,
        micro_batch_tokens=plan.micro_batch_tokens,
        updates_per_rollout=config.updates_per_rollout,
    )


def _settings(config: RLConfig, method: Method, threads: int, plan: MemoryPlan) -> dict[str, Any]:
    """What a run used: the config, with what it left to the method filled in."""
    used = asdict(config) | {"threads": threads, "logprob_space": method.space}
    used["micro_batch_tokens"] = plan.micro_batch_tokens
    for kind in ("reward", "signal", "loss"):
        used[kind], used[f"{kind}_args"] = spell(getattr(method, kind))
    names = ("sampler", "lr", "kl_coef", "nll_coef", "add_gt", "list_length")
    return used | {name: getattr(method, name) for name in names}


def _frozen_copy(policy: Policy) -> Policy:
    model = deepcopy(policy.model)
    return replace(policy, model=model.requires_grad_(False))
