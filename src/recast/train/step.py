"""What a single step stands on: its settings in; data, policy, parts, plan and threads out, nothing
trained."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config import Precision, Schedule, StepConfig
from recast.groups import select
from recast.methods.assembly import equip, in_space_of, resolve, sampler_of
from recast.methods.parts import needs, parameters, traits_of
from recast.methods.table import Method
from recast.policy.device import find_device
from recast.policy.load import (
    Policy,
    disable_dropout,
    load_policy,
    trained_parameters,
)
from recast.policy.logprobs import branch_logprobs
from recast.policy.lora import add_adapters, has_adapters
from recast.policy.memory import MemoryPlan, plan_memory
from recast.policy.needs import tell_needs
from recast.policy.passes import MOST_MEASURED, MOST_PASS_TOKENS, measure_pass_tokens
from recast.policy.save import rounding
from recast.policy.sharded import shard
from recast.policy.tasks import Task, load_task
from recast.policy.threads import choose_threads
from recast.rollout.think import require_thoughts
from recast.run.clock import Clock
from recast.run.world import is_first
from recast.train.actor import Actor
from recast.train.handover import Handover, server_of
from recast.train.mixture import check_weights, mixed_batches
from recast.train.premises import check_lengths, check_prompts, check_target_is_best, check_tokens
from recast.train.reference import frozen_reference
from recast.train.rehearsal import rehearse
from recast.train.search import Search, branch_tokens, thought_tokens
from recast.train.state import adamw
from recast.types import Prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSetup:
    """What a step stands on."""

    method: Method
    policy: Policy
    task: Task
    search: Search
    actor: Actor
    clock: Clock
    """That both report their phases to."""
    reference: torch.nn.Module | None
    """That of the actor, where it is a copy of the policy."""
    batches: Int[Tensor, "steps B"]
    """Row ids of every step."""
    surplus: Int[Tensor, "batches B"]
    """Row ids that a method fills its batches from."""
    warmup_steps: int
    schedule: Schedule
    precision: Precision
    threads: int
    text: str
    """Its memory and what becomes of its weights, for the screen."""


def load_step(
    config: StepConfig, method: Method | None = None, fsdp_size: int = 1
) -> tuple[Method, Policy, Task]:
    """The method in the policy's space, the policy as it is trained and the task."""
    find_device(config.device)
    method = resolve(config, method)
    is_whole = config.lora.rank is None
    reference = _compares(method) and is_whole
    tell_needs(
        config.policy,
        config.device,
        lora=config.lora,
        reference=reference,
        fsdp_size=fsdp_size,
    )
    policy = load_policy(config.policy, config.catalog, masters=is_whole).to(config.device)
    method = in_space_of(method, config, policy)
    task = load_task(config.data, policy)
    policy = _trainable(policy, config)
    disable_dropout(policy.model)
    return method, policy, task


def drawn_split(task: Task, split: str) -> str:
    """The split that the rows of `split` are of: `train`, where the data has none of `rl`."""
    is_train = split == "rl" and torch.equal(task.rows("rl"), task.rows("train"))
    return "train" if is_train else split


def draw_batches(
    config: StepConfig, task: Task, count: int, split: str = "rl"
) -> Int[Tensor, "batches B"]:
    """Row ids of so many steps, of each task the share that its weight says."""
    rows = task.rows(split)
    check_weights(task, rows, config.task_weights)
    return mixed_batches(
        task,
        rows,
        config.task_weights,
        size=config.prompts_per_step,
        count=count,
        seed=config.seed,
        split=split,
    )


def set_up_step(
    config: StepConfig,
    method: Method,
    policy: Policy,
    task: Task,
    batches: Int[Tensor, "batches B"],
    *,
    steps: int = 1,
    warmup_steps: int = 0,
    schedule: Schedule = "constant",
    folder: str = "",
    fsdp_size: int = 1,
) -> StepSetup:
    """Bind, plan, measure, check and shard; what a part fails on goes into `folder`.

    Raises `RecastError` for whatever does not fit together.
    """
    method = equip(method, policy, config.ranker, config.embeddings, folder, data=config.data)
    lengths = task.lengths(batches.flatten())
    check_lengths(policy, batches.flatten(), lengths)
    prompts = task.prompts(batches[0])
    check_tokens(policy)
    check_prompts(policy, prompts)
    name = method.sampler
    sampler = sampler_of(method, name, config.sampler_args) if name else None
    server = None
    if sampler is not None and traits_of(sampler).thinks:
        require_thoughts(policy, int(lengths.max()), parameters(sampler))
        server = server_of(sampler)
        sampler = partial(sampler, server=server) if server else sampler
    width = branch_tokens(policy, config.group_size * method.list_length, prompts.targets.shape[1])
    width += thought_tokens(sampler)
    plan = plan_memory(
        policy,
        int(lengths.max()) + width,
        config.micro_batch_tokens,
        reference=_compares(method) and not has_adapters(policy.model),
        reads=config.prompts_per_step * width,
        fsdp_size=fsdp_size,
    )
    clock = Clock(device=policy.catalog.device)
    search = Search(
        policy=policy,
        task=task,
        method=method,
        sampler=sampler,
        group_size=config.group_size,
        seed=config.seed,
        max_batches=config.max_rollout_batches,
        micro_batch_tokens=plan.micro_batch_tokens,
        pass_tokens=MOST_PASS_TOKENS,
        folder=folder,
        handover=Handover(server=server, policy=config.policy, run=folder) if server else None,
        clock=clock,
    )
    threads, pass_tokens = _measure(config, policy, prompts, plan)
    frozen = _frozen(method, policy)
    actor = _actor(config, method, policy, frozen, plan, pass_tokens, folder)
    actor = replace(actor, clock=clock)
    rehearse(search, actor, prompts)  # a part that cannot work says so before there is a folder
    for model in (policy.model, actor.reference_model):
        shard(model, fsdp_size)
    actor = replace(actor, optimizer=adamw(trained_parameters(policy), method.lr, 0.0))
    if name and config.target_is_best and is_first():
        check_target_is_best(
            method.reward,
            policy.catalog,
            prompts,
            search.num_rollouts,
            list_length=method.list_length,
            seed=config.seed,
            folder=folder,
        )
    return StepSetup(
        method=method,
        policy=policy,
        task=task,
        search=replace(search, pass_tokens=pass_tokens),
        actor=actor,
        clock=clock,
        reference=frozen.model if frozen and not has_adapters(policy.model) else None,
        batches=batches[:steps],
        surplus=batches[steps:],
        warmup_steps=warmup_steps,
        schedule=schedule,
        precision=config.precision,
        threads=threads,
        text="\n".join([plan.text, *rounding(policy.model)]),
    )


def _trainable(policy: Policy, config: StepConfig) -> Policy:
    """The policy with what is trained in float32: a small step is lost on weights of 8 bits."""
    if config.lora.rank is None:
        policy.model.float()
        return policy
    return replace(
        policy, model=add_adapters(policy.model, config.lora, config.policy, config.seed)
    )


def _compares(method: Method) -> bool:
    return bool(method.kl_coef) or needs(method.loss, "ref_logprobs")


def _measure(
    config: StepConfig, policy: Policy, prompts: Prompts, plan: MemoryPlan
) -> tuple[int, int]:
    """Threads, and the tokens that take as long as one more pass: by passes of the update over a
    few prompts and their targets, which every method makes."""
    fits = min(plan.micro_batch_tokens, MOST_MEASURED) // max(int(prompts.lengths.max()), 1)
    few = max(1, min(len(prompts), fits))
    order = prompts.lengths.argsort(stable=True)

    def work(rows: int = few) -> int:
        some = select(prompts, order[len(order) // 2 - rows // 2 :][:rows])
        space = policy.logprob_space
        branch_logprobs(policy, some, some.targets, space, some.target_mask).sum().backward()
        policy.model.zero_grad(set_to_none=True)
        return rows * int(some.lengths.max())

    threads = choose_threads(work, config.threads, config.device)
    return threads, config.pass_tokens or measure_pass_tokens(work, few, config.device)


def _frozen(method: Method, policy: Policy) -> Policy | None:
    """What the method compares with: a copy, with adapters the policy itself, these turned off."""
    if not _compares(method):
        return None
    if has_adapters(policy.model):
        return policy
    return replace(policy, model=deepcopy(policy.model).requires_grad_(False))


def _actor(
    config: StepConfig,
    method: Method,
    policy: Policy,
    frozen: Policy | None,
    plan: MemoryPlan,
    pass_tokens: int,
    folder: str,
) -> Actor:
    if plan.checkpointing:
        policy.model.activation_checkpointing_enable()
    return Actor(
        policy=policy,
        reference=frozen_reference(frozen, method.space) if frozen else None,
        reference_model=frozen.model if frozen else None,
        optimizer=adamw(trained_parameters(policy), method.lr, 0.0),
        loss=method.loss,
        kl_coef=method.kl_coef,
        kl_rollouts=config.kl_rollouts,
        kl_estimator=config.kl_estimator,
        loss_agg=method.loss_agg,
        max_grad_norm=config.max_grad_norm,
        space=method.space,
        micro_batch_tokens=plan.micro_batch_tokens,
        updates_per_rollout=config.updates_per_rollout,
        mini_batch_rows=config.mini_batch_rows,
        pass_tokens=pass_tokens,
        folder=folder,
    )
