"""READ FIRST. The loop of post-training: rollout, reward, signal, update, evaluate, save.

A policy and rows of the `rl` slice in, a better policy (one hopes) out. The loop knows no paper: a
`Method` names the sampler, the reward, the signal and the loss.
"""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.actor import Actor, update
from recast.checkpoint import refuse_existing
from recast.config import RLConfig
from recast.data.folder import data_hash, load_data
from recast.draws import uniforms
from recast.evaluate import sample_rows, validate
from recast.log import RunLog
from recast.methods import Method, find_method
from recast.policy.load import Policy, disable_dropout, load_policy, save_policy
from recast.policy.prompts import build_prompts, check_catalog
from recast.policy.threads import choose_threads
from recast.rollout.beam import beam_search
from recast.rollout.sample import sample
from recast.types import Interactions, Metrics, Prompts, RecastError, RolloutGroups, Signal

SAMPLERS = {"sample": sample, "beam": beam_search}


def train_rl(config: RLConfig, log: RunLog | None = None) -> Metrics:
    """Post-train `config.policy` with `config.method`; its last state goes to `output`/policy.

    All methods see the same prompts in the same order and make the same number of optimizer
    steps. Returns the last validation metrics, the number of rollouts and optimizer steps, and the
    CPU seconds without validation.
    """
    refuse_existing(config.output)
    method = resolve(config)
    interactions, policy = load_data(config.data), load_policy(config.policy)
    check_catalog(config.data, policy.catalog)
    batches = prompt_batches(interactions, config)
    disable_dropout(policy.model)
    actor = Actor(
        policy=policy,
        reference=_frozen_copy(policy) if method.kl_coef else None,
        optimizer=torch.optim.AdamW(policy.model.parameters(), lr=method.lr, weight_decay=0.0),
        loss=method.loss,
        kl_coef=method.kl_coef,
        max_grad_norm=config.max_grad_norm,
        space=config.logprob_space,
        micro_batch_tokens=config.micro_batch_tokens,
        updates_per_rollout=config.updates_per_rollout,
    )
    valid_rows = sample_rows(interactions, "valid", config.valid_rows)
    first = build_prompts(interactions, policy.catalog, batches[0], policy.window)
    threads = choose_threads(lambda: beam_search(policy, first, config.group_size), config.threads)
    resolved = asdict(config) | {"threads": threads}
    resolved |= {name: getattr(method, name) for name in ("sampler", "lr", "kl_coef")}
    rollouts, optimizer_steps, cpu_s = 0, 0, 0.0
    with RunLog(config.output, resolved, parent=log) as run:
        run.environment(data_hash(config.data))
        valid = validate(policy, interactions, valid_rows)
        name = f"{method.label}, {method.sampler} rollouts" if method.sampler else method.label
        run.metrics(0, valid, stage=name)
        with run.stage(name, total=config.steps) as stage:
            for step, rows in enumerate(batches):
                started = time.process_time()
                prompts = build_prompts(interactions, policy.catalog, rows, policy.window)
                groups = roll_out(method, policy, prompts, config, step)
                rewards = method.reward(groups)
                signal = method.signal(groups, rewards)
                for group in actor.optimizer.param_groups:
                    group["lr"] = method.lr * min((step + 1) / max(config.warmup_steps, 1), 1.0)
                metrics = group_metrics(groups, rewards, signal) | update(actor, signal)
                cpu_s += time.process_time() - started
                rollouts += int(groups.exists.sum())
                optimizer_steps += config.updates_per_rollout * ("actor/grad_norm" in metrics)
                run.rollouts(step + 1, groups, rewards, signal)
                if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
                    valid = validate(policy, interactions, valid_rows)
                    metrics |= valid
                stage.advance(metrics, step=step + 1)
        save_policy(policy, Path(config.output) / "policy")
    counts = {"rollouts": float(rollouts), "optimizer_steps": float(optimizer_steps)}
    return valid | counts | {"cpu_s": cpu_s}


def resolve(config: RLConfig) -> Method:
    """The method of that name with the settings that the config overrides.

    Raises `RecastError` for an unknown name, or a sampler for a method without rollouts.
    """
    method = find_method(config.method)
    if config.sampler and method.sampler is None:
        raise RecastError(
            f"sampler is {config.sampler!r}: method {config.method!r} makes no rollouts, "
            "leave it out"
        )
    settings = {
        name: getattr(config, name)
        for name in ("sampler", "lr", "kl_coef")
        if getattr(config, name) is not None
    }
    return replace(method, **settings)


def prompt_batches(interactions: Interactions, config: RLConfig) -> Int[Tensor, "steps B"]:
    """Row ids of the prompts of every step, seeded; a row comes again only in a later pass.

    A pass leaves out the rows that do not fill a step, other ones each time.
    """
    rows, size = interactions.rows("rl"), config.prompts_per_step
    if len(rows) < size:
        raise RecastError(
            f"prompts_per_step is {size}: {config.data} has {len(rows)} rows in the rl slice; "
            "give fewer, or prepare with a larger rl_frac"
        )
    per_pass = len(rows) // size
    passes = [
        rows[uniforms(config.seed, epoch, rows, "prompts", 1)[:, 0].argsort()[: per_pass * size]]
        for epoch in range(-(-config.steps // per_pass))
    ]
    return torch.cat(passes).view(-1, size)[: config.steps]


def roll_out(
    method: Method, policy: Policy, prompts: Prompts, config: RLConfig, step: int
) -> RolloutGroups:
    """`group_size` rollouts per prompt, or empty groups for a method without a sampler."""
    if method.sampler is None:
        batch, num_levels = len(prompts), policy.catalog.num_levels
        empty = prompts.targets.new_empty(batch, 0, num_levels)
        return RolloutGroups(
            prompts=prompts,
            tokens=empty,
            items=empty[..., 0],
            rollout_logprobs=empty.float(),
            target_logprobs=torch.full(prompts.targets.shape, torch.nan),
            loss_mask=empty.bool(),
            policy_version=step,
            seed=config.seed,
            step=step,
        )
    return SAMPLERS[method.sampler](
        policy,
        prompts,
        config.group_size,
        space=config.logprob_space,
        seed=config.seed,
        step=step,
        policy_version=step,
    )


def group_metrics(groups: RolloutGroups, rewards: Float[Tensor, "B G"], signal: Signal) -> Metrics:
    """Learnability first: what part of the groups can teach anything.

    `group/trainable_frac` counts the groups to which the signal gave a non-zero advantage.
    """
    if not groups.tokens.shape[1]:
        return {}
    hits = (rewards > 0).sum(1)
    trainable = ((signal.advantages != 0) & signal.keep[..., None]).flatten(1).any(1)
    return {
        "group/all_zero_frac": float((hits == 0).float().mean()),
        "group/single_hit_frac": float((hits == 1).float().mean()),
        "group/trainable_frac": float(trainable.float().mean()),
        "group/repaired_frac": 0.0,
        "reward/mean": float(rewards[groups.exists].mean()),
        "group/target_logprob": float(groups.target_logprobs.sum(-1).mean()),
    } | signal.metrics


def _frozen_copy(policy: Policy) -> Policy:
    model = deepcopy(policy.model)
    return replace(policy, model=model.requires_grad_(False))
