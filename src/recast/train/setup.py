"""What a run stands on: a config in; data, policy, parts, plan and threads out, nothing trained."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config import Precision, RLConfig
from recast.evaluation.rank import require_valid, rows_of_tasks, validate
from recast.groups import select
from recast.methods.assembly import equip, in_space_of, resolve, sampler_of
from recast.methods.parts import find_part, needs, spell
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
from recast.policy.passes import MOST_PASS_TOKENS, measure_pass_tokens
from recast.policy.save import rounding
from recast.policy.tasks import Task, load_task
from recast.policy.threads import choose_threads
from recast.run.clock import Clock
from recast.run.doors import enter
from recast.train.actor import Actor
from recast.train.keeper import RunFacts, find_checkpoint
from recast.train.mixture import check_weights, mixed_batches
from recast.train.reference import frozen_reference
from recast.train.rehearsal import rehearse
from recast.train.result import require_room
from recast.train.search import Search, branch_tokens
from recast.train.state import adamw
from recast.types import Metrics, Prompts, RolloutGroups

_MEASURED = 4096  # tokens of a pass that is timed: more says the same


@dataclass(frozen=True, kw_only=True, slots=True)
class RLSetup:
    """What `train_rl` stands on."""

    name: str
    """Of the run's stage on screen."""
    method: Method
    policy: Policy
    task: Task
    search: Search
    actor: Actor
    clock: Clock
    """That both report their phases to."""
    batches: Int[Tensor, "steps B"]
    """Row ids of every step."""
    surplus: Int[Tensor, "batches B"]
    """Row ids that a method fills its batches from."""
    valid_rows: Int[Tensor, " N"]
    valid_metrics: list[str]
    warmup_steps: int
    precision: Precision
    text: str
    """Its memory and what becomes of its weights, for the screen."""
    run: RunFacts
    """Its settings are the config, with what it left to the method filled in."""

    @property
    def valid_counts(self) -> dict[str, int]:
        """Validation rows: all, under an empty name, and those of each of several tasks."""
        parts = rows_of_tasks(self.task, self.valid_rows)
        counts = {name: int(inside.sum()) for name, inside in parts.items()}
        return {"": len(self.valid_rows)} | counts

    def tasks_of(self, groups: RolloutGroups) -> list[str] | None:
        """The task of every prompt by name; None where there is one."""
        if len(self.task.tasks) == 1:
            return None
        number = self.task.task_of(groups.prompts.row_ids.cpu())
        return [self.task.tasks[place] for place in number.tolist()]

    def validate(self) -> Metrics:
        """The chosen metrics on the validation rows."""
        with self.clock.measure("time/valid_s"):
            return validate(self.policy, self.task, self.valid_rows, self.valid_metrics)


def set_up_rl(config: RLConfig, method: Method | None = None) -> RLSetup:
    """Load, bind and check everything; the method's parts are tried on a few prompts.

    Raises `RecastError` for whatever does not fit together, before there is a folder.
    """
    enter(config, RLConfig)
    resumed = find_checkpoint(config.output, config.resume)
    config = replace(config, **(resumed.measured(config) if resumed else {}))
    find_device(config.device)
    method = resolve(config, method)
    policy = load_policy(config.policy, config.catalog).to(config.device)
    method = in_space_of(method, config, policy)
    task = load_task(config.data, policy)
    policy = _trainable(policy, config)
    require_room(
        config.output, policy, copies=3 + (config.keep == "best"), checkpoints=1 if resumed else 2
    )
    method = equip(
        method, policy, config.ranker, config.embeddings, config.output, data=config.data
    )
    count = config.steps * (config.max_rollout_batches if method.fill_batch else 1)
    rows = task.rows("rl")
    check_weights(task, rows, config.task_weights)
    batches = mixed_batches(
        task,
        rows,
        config.task_weights,
        size=config.prompts_per_step,
        count=count,
        seed=config.seed,
    )
    disable_dropout(policy.model)
    prompts = task.prompts(batches[0])
    width = branch_tokens(policy, config.group_size * method.list_length, prompts.targets.shape[1])
    plan = plan_memory(
        policy,
        int(task.lengths(batches.flatten()).max()) + width,
        config.micro_batch_tokens,
        reference=_compares(method) and not has_adapters(policy.model),
        reads=config.prompts_per_step * width,
    )
    name, clock = method.sampler, Clock(device=policy.catalog.device)
    search = Search(
        policy=policy,
        task=task,
        method=method,
        sampler=sampler_of(method, name, config.sampler_args) if name else None,
        group_size=config.group_size,
        seed=config.seed,
        max_batches=config.max_rollout_batches,
        micro_batch_tokens=plan.micro_batch_tokens,
        pass_tokens=MOST_PASS_TOKENS,
        folder=config.output,
        clock=clock,
    )
    threads, pass_tokens = _measure(config, policy, prompts, plan)
    actor = replace(_actor(config, method, policy, plan, pass_tokens), clock=clock)
    valid_rows = require_valid(task, config.data, config.valid_rows)
    notes = task.notes(torch.cat([batches.flatten().unique(), valid_rows]))
    drawn_from = {}
    if torch.equal(rows, task.rows("train")):
        drawn_from["drawn_from"] = "train"
        notes.append("the data has no rl rows: prompts are drawn from train")
    rehearse(search, actor, prompts)  # a part that cannot work says so before there is a folder
    return RLSetup(
        name=f"{method.label}, {name} rollouts" if name else method.label,
        method=method,
        policy=policy,
        task=task,
        search=replace(search, pass_tokens=pass_tokens),
        actor=actor,
        clock=clock,
        batches=batches[: config.steps],
        surplus=batches[config.steps :],
        valid_rows=valid_rows,
        valid_metrics=config.valid_metrics,
        warmup_steps=config.warmup_steps,
        precision=config.precision,
        text="\n".join([plan.text, *rounding(policy.model), *notes]),
        run=RunFacts(
            output=config.output,
            settings=_settings(config, method, threads, plan)
            | {"pass_tokens": pass_tokens}
            | drawn_from,
            parts={kind: getattr(method, kind) for kind in ("reward", "signal", "loss")}
            | ({"sampler": find_part("sampler", name)} if name else {}),
            resumed=resumed,
        ),
    )


def _trainable(policy: Policy, config: RLConfig) -> Policy:
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
    config: RLConfig, policy: Policy, prompts: Prompts, plan: MemoryPlan
) -> tuple[int, int]:
    """Threads, and the tokens that take as long as one more pass: by passes of the update over a
    few prompts and their targets, which every method makes."""
    fits = min(plan.micro_batch_tokens, _MEASURED) // max(int(prompts.lengths.max()), 1)
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


def _actor(
    config: RLConfig, method: Method, policy: Policy, plan: MemoryPlan, pass_tokens: int
) -> Actor:
    reference = None
    if _compares(method):
        frozen = policy  # with adapters: itself, these turned off
        if not has_adapters(policy.model):
            frozen = replace(policy, model=deepcopy(policy.model).requires_grad_(False))
        reference = frozen_reference(frozen, method.space)
    if plan.checkpointing:
        policy.model.activation_checkpointing_enable()
    return Actor(
        policy=policy,
        reference=reference,
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
        folder=config.output,
    )


def _settings(config: RLConfig, method: Method, threads: int, plan: MemoryPlan) -> dict[str, Any]:
    used = asdict(config) | {"threads": threads, "logprob_space": method.space}
    used["micro_batch_tokens"] = plan.micro_batch_tokens
    for kind in ("reward", "signal", "loss"):
        used[kind], used[f"{kind}_args"] = spell(getattr(method, kind))
    names = ("sampler", "lr", "kl_coef", "loss_agg", "nll_coef", "add_gt", "list_length")
    return used | {name: getattr(method, name) for name in names}
