"""READ FIRST. The loop of post-training: roll out, reward, signal, update, evaluate, save.

A policy and rows of the `rl` slice in, a better policy (one hopes) out. The loop knows no paper: a
`Method` names the sampler, the reward, the signal and the loss.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from recast.config import RLConfig
from recast.evaluation.text import tell
from recast.methods.guard import ask_signal, blame
from recast.methods.parts import supply
from recast.methods.table import Method
from recast.policy.sharded import whole_weights
from recast.rollout.fill import Drawn
from recast.run.log import RunLog
from recast.run.world import agreed, once, total
from recast.train.actor import update
from recast.train.alarms import watch_tasks
from recast.train.diverged import prompts_kept, rollouts_learned
from recast.train.exchange import signal_of_first
from recast.train.learnability import group_metrics, metrics_by_task
from recast.train.rates import schedule_factor
from recast.train.result import save_result
from recast.train.setup import RLSetup, set_up_rl
from recast.train.state import LoopState
from recast.train.step import StepSetup
from recast.train.steps import is_due, save_step, steps_table
from recast.types import Metrics, Signal


def train_rl(config: RLConfig, log: RunLog | None = None, method: Method | None = None) -> Metrics:
    """Post-train `config.policy` with `method`, by default the one that `config.method` names; the
    weights that `config.keep` names go to `config.output`/policy.

    All methods see the same prompts in the same order and make the same number of steps, each of
    one optimizer step or of one for every mini-batch. Returns the validation metrics of those
    weights, the number of rollouts and optimizer steps, and the CPU seconds without validation.
    `log` is that of an experiment, which removes the checkpoints once the run is marked.
    """
    setup = set_up_rl(config, method)
    policy = setup.policy
    state = LoopState(
        model=policy.model,
        optimizer=setup.actor.optimizer,
        keep=config.keep,
        reference=setup.reference if config.ref_every else None,
    )
    args = config.sampler_args
    is_free = args.get("constrained") is False or args.get("strict_think") is True
    is_free |= config.sampler == "openonerec"
    watch = partial(watch_tasks, valid_rows=setup.valid_counts, is_free=is_free)
    with setup.run.open(state, log) as (run, keeper):
        run.say(setup.text)
        heard = partial(tell, run, policy, setup.probe, stage=setup.name)
        if not state.valid:
            heard(step=0, when="before")
            with keeper.step():
                metrics = judge(setup, state)
                if config.save_every:
                    metrics |= setup.decode_freely()
                run.metrics(0, metrics, stage=setup.name)
                watch(state.watched, 0, metrics)
        with run.stage(setup.name, total=config.steps, done=state.step) as stage:
            while state.step < config.steps and state.waited < (config.patience or math.inf):
                found = roll_out(setup, state)
                with keeper.step():
                    metrics = learn(setup, state, found)
                    if config.ref_every and state.step % config.ref_every == 0:
                        state.move_reference(config.ref_mix)
                    drawn, given = found.batch.drawn, found.batch.given[0]
                    run.rollouts(state.step, *drawn, found.signal, given, setup.tasks_of(given))
                    if state.step % config.eval_every == 0 or state.step == config.steps:
                        metrics |= judge(setup, state)
                    lost = ""
                    if is_due(config.save_every, state.step, config.steps):
                        metrics |= setup.decode_freely()
                        lost = save_step(policy, run.folder, state.step, merge=config.lora.merge)
                    alarms, lines = watch(state.watched, state.step, metrics)
                    stage.advance(metrics | alarms, step=state.step)
                    for line in filter(None, [*lines, lost]):
                        run.say(line)
        if told := _ending(config, state):
            run.say(told)
        if config.save_every:
            run.say(once(partial(steps_table, run.folder)))
        kept = state.take()
        save_result(policy, Path(config.output) / "policy", merge=config.lora.merge)
        kept |= heard(step=state.step, when="after")
    return kept | state.counts


def judge(setup: RLSetup, state: LoopState) -> Metrics:
    """Validate the policy as it is; the state remembers that."""
    valid = agreed(setup.validate())
    state.validated(valid | {"rl/step": float(state.step)})
    return valid | setup.clock.read()


def _ending(config: RLConfig, state: LoopState) -> str:
    """What `policy/` holds, where that is not simply what all steps led to."""
    is_early = state.step < config.steps
    if not is_early and config.keep == "last":
        return ""
    value, step = state.best["valid/ndcg@10"], state.best["rl/step"]
    said = f"stopped at step {state.step} by patience {config.patience}: " if is_early else ""
    best = f"valid/ndcg@10 was best at step {step:.0f} ({value:.4f})"
    return f"{said}{best}; policy/ holds the {config.keep} weights"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a step learns from."""

    batch: Drawn
    """The groups that go into the update."""
    everything: list[Drawn]
    """All that were drawn for it."""
    signal: Signal
    began: float
    """CPU seconds of the process when it began."""


def roll_out(setup: StepSetup, state: LoopState) -> Found:
    """Rollout, reward, signal; the state stays where it is."""
    began = time.process_time()
    method, search = setup.method, setup.search
    rows, further = setup.batches[state.step], setup.surplus[state.further :]
    with whole_weights(setup.policy.model):
        with setup.policy.computing_in(setup.precision):
            batch, everything = search.batch(state.step, rows, further)
        groups, rewards = batch.given
        signal_of = supply(method.signal, {"natural_frac": state.natural_frac})
        with setup.clock.measure("signal"):
            signal = signal_of_first(
                lambda: ask_signal(signal_of, groups, rewards, search.folder, setup.policy),
                groups.prompts,
            )
    if method.nll_coef:
        signal = replace(signal, nll_weight=signal.nll_weight + method.nll_coef)
    return Found(batch=batch, everything=everything, signal=signal, began=began)


def learn(setup: StepSetup, state: LoopState, found: Found) -> Metrics:
    """The update; the state moves one step on."""
    method, actor = setup.method, setup.actor
    drawn = [one.drawn for one in found.everything]
    steps, warmup = len(setup.batches), setup.warmup_steps
    for group in actor.optimizer.param_groups:
        group["lr"] = method.lr * schedule_factor(setup.schedule, state.step, steps, warmup)
    rows = partial(rollouts_learned, found.signal, found.batch.given[1])
    kept, blamed = prompts_kept(setup.search.folder, rows), blame("loss", method.loss)
    with kept, blamed, setup.policy.computing_in(setup.precision):
        metrics = group_metrics(drawn, found.signal)
        metrics |= metrics_by_task(setup.task, drawn, found.signal)
        metrics |= update(actor, found.signal)
    state.step += 1
    state.further += len(drawn) - 1
    state.remember(metrics.get("group/natural_frac", 0.0))
    state.num_rollouts += sum(int(groups.exists.sum()) for groups, _ in drawn)
    state.optimizer_steps += int(metrics.get("actor/optimizer_steps", 0))
    state.cpu_s += total(time.process_time() - found.began)
    return metrics | setup.clock.read()
