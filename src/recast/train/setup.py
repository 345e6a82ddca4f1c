"""What a run stands on: a config in; the step that it repeats, its rows and its facts out, nothing
trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config import RLConfig, ThinkConfig
from recast.config.think import NO_THOUGHT
from recast.data.plain_text import read_plain_text
from recast.evaluation.free import FREE_ROWS, free_metrics
from recast.evaluation.rank import rows_of_tasks, sample_rows
from recast.evaluation.text import TextProbe, make_probe
from recast.evaluation.validation import require_valid, validate
from recast.methods.parts import find_part, parameters, spell, traits_of
from recast.methods.table import Method
from recast.policy.sharded import whole_weights
from recast.rollout.think import require_thoughts
from recast.run.fingerprint import meet
from recast.train.keeper import RunFacts
from recast.train.result import require_room
from recast.train.resumed import find_checkpoint
from recast.train.step import StepSetup, draw_batches, drawn_split, load_step, set_up_step
from recast.train.steps import count_due
from recast.types import Metrics, RolloutGroups, require


@dataclass(frozen=True, kw_only=True, slots=True)
class RLSetup(StepSetup):
    """What `train_rl` stands on."""

    name: str
    """Of the run's stage on screen."""
    valid_rows: Int[Tensor, " N"]
    valid_metrics: list[str]
    think: ThinkConfig
    """Of validations."""
    probe: TextProbe | None
    """Tells what the policy can still say."""
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
        with self.clock.measure("valid"):
            return validate(self.policy, self.task, self.valid_rows, self.valid_metrics, self.think)

    def decode_freely(self) -> Metrics:
        """What the policy writes without the trie for some of the validation rows."""
        rows = sample_rows(self.valid_rows, FREE_ROWS)
        with self.clock.measure("valid"), whole_weights(self.policy.model):
            found = free_metrics(self.policy, self.task, rows, at=[10], think=self.think)
        return {f"valid/{name}": value for name, value in found.items()}


def set_up_rl(config: RLConfig, method: Method | None = None) -> RLSetup:
    """Load, bind and check everything; the method's parts are tried on a few prompts.

    Raises `RecastError` for whatever does not fit together, before there is a folder.
    """
    meet(config, RLConfig)
    resumed = find_checkpoint(config.output, config.resume)
    config = replace(config, **(resumed.measured(config) if resumed else {}))
    plain = read_plain_text(config.plain_text) if config.plain_text else None
    method, policy, task = load_step(config, method, config.fsdp_size)
    served = 0 if config.sampler_args.get("server") is None else 2  # the next while one is read
    copies = 3 + (config.keep == "best") + (config.ref_every is not None)
    require_room(
        config.output,
        policy,
        copies=copies,
        checkpoints=1 if resumed else 2,
        policies=1 + count_due(config.save_every, config.steps) + served,
    )
    count = config.steps * (config.max_rollout_batches if method.fill_batch else 1)
    batches = draw_batches(config, task, count)
    valid_rows = require_valid(task, config.data, config.valid_rows)
    step = set_up_step(
        config,
        method,
        policy,
        task,
        batches,
        steps=config.steps,
        warmup_steps=config.warmup_steps,
        schedule=config.schedule,
        folder=config.output,
        fsdp_size=config.fsdp_size,
    )
    moves = config.ref_every is None or step.reference is not None
    need = f"{method.label} compares with no reference here, give kl_coef or leave it out"
    require(moves, "ref_every", config.ref_every, need)
    method, name = step.method, step.method.sampler
    notes, drawn_from = task.notes(torch.cat([batches.flatten().unique(), valid_rows])), {}
    if (split := drawn_split(task, "rl")) != "rl":
        drawn_from["drawn_from"] = split
        notes.append(f"the data has no rl rows: prompts are drawn from {split}")
    step = replace(step, text="\n".join([step.text, *notes]))
    return RLSetup(
        **{field.name: getattr(step, field.name) for field in fields(step)},
        name=f"{method.label}, {name} rollouts" if name else method.label,
        valid_rows=valid_rows,
        valid_metrics=config.valid_metrics,
        think=_valid_think(config, step, valid_rows),
        probe=make_probe(policy, plain) if plain else None,
        run=RunFacts(
            output=config.output,
            settings=_settings(config, step) | drawn_from,
            parts={kind: getattr(method, kind) for kind in ("reward", "signal", "loss")}
            | ({"sampler": find_part("sampler", name)} if name else {}),
            resumed=resumed,
        ),
    )


def _valid_think(config: RLConfig, step: StepSetup, valid_rows: Int[Tensor, " N"]) -> ThinkConfig:
    """The thoughts of validations; `RecastError` where they do not fit behind the prompts."""
    sampler, count = step.search.sampler, config.valid_thoughts
    if sampler is None or not traits_of(sampler).thinks:
        need = "its sampler does not think, leave it out or give --sampler think"
        require(not count, "valid_thoughts", count, need)
        return NO_THOUGHT
    if count == 0:
        return NO_THOUGHT
    settings = parameters(sampler)
    think = ThinkConfig(
        thoughts=count or 1,
        max_thought_tokens=settings["max_thought_tokens"],
        prefix=settings.get("prefix", ThinkConfig.prefix),
    )
    longest = int(step.task.lengths(valid_rows).max())
    require_thoughts(step.policy, longest, asdict(think) | {"closes": True})
    return think


def _settings(config: RLConfig, step: StepSetup) -> dict[str, Any]:
    method = step.method
    used = asdict(config) | {"threads": step.threads, "logprob_space": method.space}
    used["micro_batch_tokens"] = step.search.micro_batch_tokens
    used["pass_tokens"] = step.search.pass_tokens
    for kind in ("reward", "signal", "loss"):
        used[kind], used[f"{kind}_args"] = spell(getattr(method, kind))
    names = ("sampler", "lr", "kl_coef", "loss_agg", "nll_coef", "add_gt", "list_length")
    return used | {name: getattr(method, name) for name in names}
