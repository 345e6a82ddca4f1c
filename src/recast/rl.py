"""READ FIRST. The loop of post-training: roll out, reward, signal, update, evaluate, save.

A policy and rows of the `rl` slice in, a better policy (one hopes) out. The loop knows no paper: a
`Method` names the sampler, the reward, the signal and the loss.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from recast.config import RLConfig
from recast.data.folder import data_hash
from recast.methods.guard import blame, guard_inputs, guard_signal, versions
from recast.methods.parts import supply
from recast.methods.table import Method
from recast.policy.load import save_policy
from recast.policy.memory import peak_bytes
from recast.rollout.fill import Rewarded
from recast.run.log import RunLog
from recast.train.actor import update
from recast.train.learnability import group_metrics
from recast.train.setup import RLSetup, set_up_rl
from recast.train.state import LoopState
from recast.types import Metrics, RolloutGroups, Signal


def train_rl(config: RLConfig, log: RunLog | None = None, method: Method | None = None) -> Metrics:
    """Post-train `config.policy` with `method`, by default the one that `config.method` names; the
    last state goes to `config.output`/policy.

    All methods see the same prompts in the same order and make the same number of steps, each of
    one optimizer step or of one for every mini-batch. Returns the last validation metrics, the
    number of rollouts and optimizer steps, and the CPU seconds without validation.
    """
    setup = set_up_rl(config, method)
    policy = setup.policy
    state = LoopState(model=policy.model, optimizer=setup.actor.optimizer)
    with RunLog(config.output, setup.settings, parent=log) as run:
        run.environment(data_hash(config.data))
        run.say(setup.text)
        state.valid = setup.validate()
        run.metrics(0, state.valid | setup.clock.read(), stage=setup.name)
        with run.stage(setup.name, total=config.steps) as stage:
            while state.step < config.steps:
                done = train_step(setup, state)
                run.rollouts(state.step, *done.drawn, done.signal, done.given)
                metrics = done.metrics
                if state.step % config.eval_every == 0 or state.step == config.steps:
                    state.valid = setup.validate()
                    metrics |= state.valid | setup.clock.read()
                stage.advance(metrics, step=state.step)
        save_policy(policy, Path(config.output) / "policy", merge=config.lora.merge)
    return state.valid | state.counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one step did."""

    drawn: Rewarded
    """Of the groups that went into the update."""
    given: RolloutGroups
    """The same as the signal got them."""
    signal: Signal
    metrics: Metrics


def train_step(setup: RLSetup, state: LoopState) -> Step:
    """Rollout, reward, signal, update; the state moves one step on."""
    started = time.process_time()
    method, actor, search = setup.method, setup.actor, setup.search
    computing = setup.policy.computing_in(setup.precision)
    rows, further = setup.batches[state.step], setup.surplus[state.further :]
    with computing:
        batch, everything = search.batch(state.step, rows, further)
    groups, rewards = batch.given
    drawn = [one.drawn for one in everything]
    signal_of = supply(method.signal, {"natural_frac": state.natural_frac})
    before = versions(groups, rewards)
    with setup.clock.measure("time/signal_s"), blame("signal", method.signal):
        signal = signal_of(groups, rewards)
    guard_signal(method.signal, groups, signal, search.folder, setup.policy)
    guard_inputs(method.signal, before, versions(groups, rewards))
    if method.nll_coef:
        signal = replace(signal, nll_weight=signal.nll_weight + method.nll_coef)
    for group in actor.optimizer.param_groups:
        group["lr"] = method.lr * min((state.step + 1) / max(setup.warmup_steps, 1), 1.0)
    with blame("loss", method.loss), computing:
        metrics = group_metrics(drawn, signal) | update(actor, signal)
    state.step += 1
    state.further += len(drawn) - 1
    state.remember(metrics.get("group/natural_frac", 0.0))
    state.num_rollouts += sum(int(groups.exists.sum()) for groups, _ in drawn)
    state.optimizer_steps += int(metrics.get("actor/optimizer_steps", 0))
    state.cpu_s += time.process_time() - started
    metrics |= setup.clock.read()
    metrics["memory/peak_gb"] = peak_bytes(setup.policy.catalog.device) / 1e9
    return Step(drawn=batch.drawn, given=groups, signal=signal, metrics=metrics)
