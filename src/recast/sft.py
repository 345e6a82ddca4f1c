"""Supervised training: token sequences of a task in, a policy that writes the next item out.

The loop of `rl.py` with one verb fewer: sequences, update, evaluate, save. Only events of the
config's `splits` are read for training, by default `train`; validation and test are never seen.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recast.config import Precision, SFTConfig
from recast.evaluation.text import tell
from recast.evaluation.validation import validate
from recast.policy.load import Policy, trained_parameters
from recast.policy.sharded import clip_gradients
from recast.policy.tasks import HistoryTask
from recast.run.log import RunLog
from recast.run.world import add_gradients, agreed, total
from recast.train.diverged import DivergedError, prompts_kept, windows_learned
from recast.train.keeper import Keeper
from recast.train.rates import Rates, schedule_factor
from recast.train.result import save_result
from recast.train.sequences import draw_negatives, learn
from recast.train.sft_rows import NO_LIMIT
from recast.train.sft_setup import SFTSetup, set_up_sft
from recast.train.state import LoopState, adamw
from recast.types import Metrics, Sequences


def train_sft(config: SFTConfig, log: RunLog | None = None) -> Metrics:
    """Train a policy on next items, stop early on validation NDCG@10, keep the best epoch
    (`config.keep`).

    Writes the policy to `config.output`/policy. Returns its validation metrics and the cost.
    """
    setup = set_up_sft(config)
    policy, task, ema = setup.policy, setup.task, config.resolved.ema
    decay = setup.rates.decay(config.weight_decay)
    optimizer = adamw(trained_parameters(policy), setup.rates.lr, decay)
    state = LoopState(model=policy.model, optimizer=optimizer, keep=config.keep, ema=ema)
    with setup.run.open(state, log) as (run, keeper):
        said = f"{setup.num_windows} windows of {config.window} items"
        if not (isinstance(task, HistoryTask) and task.has_windows):
            said = f"{setup.num_windows} rows, up to {setup.longest} tokens with their answers"
        run.say(f"{said}, torch threads: {torch.get_num_threads()}")
        if setup.text:
            run.say(setup.text)
        heard = partial(tell, run, policy, setup.probe, stage="SFT")
        if not state.count:
            heard(step=0, when="before")
        if not config.epochs:
            run.say("epochs is 0: nothing is trained or validated, policy/ is the start")
        num_epochs = -(-setup.num_steps // setup.epoch_steps)
        with run.stage("SFT", total=num_epochs, done=state.step) as stage:
            while goes_on(setup, config, state):
                train_epoch(setup, config, state, setup.epochs.sequences(state.step), keeper)
                valid = judge(setup, config, state)
                with keeper.step():
                    metrics = state.epoch_metrics() | valid
                    stage.advance(metrics, step=state.optimizer_steps)
                    state.end_epoch()
                    state.validated(metrics | {"sft/epoch": float(state.step)})
        kept = state.take()
        save_result(policy, Path(config.output) / "policy")
        kept |= heard(step=state.optimizer_steps, when="after")
    return kept | state.counts


def judge(setup: SFTSetup, config: SFTConfig, state: LoopState) -> Metrics:
    """Validate the policy as it would be kept."""
    with state.judged():
        return agreed(validate(setup.policy, setup.task, setup.valid_rows, config.valid_metrics))


def goes_on(setup: SFTSetup, config: SFTConfig, state: LoopState) -> bool:
    """Whether there is another epoch, or the beginning of one."""
    has_steps = config.max_steps is None or state.optimizer_steps < config.max_steps
    return state.step < config.epochs and state.waited < config.patience and has_steps


def train_epoch(
    setup: SFTSetup, config: SFTConfig, state: LoopState, sequences: Sequences, keeper: Keeper
) -> None:
    """One pass over the sequences in their order, from the batch on where the state stands, as far
    as there are steps."""
    order = torch.arange(len(sequences), device=setup.policy.catalog.device)
    left = None if config.max_steps is None else config.max_steps - state.optimizer_steps
    for index in order.split(config.batch_windows)[len(state.losses) :][:left]:
        batch = sequences.batch(index)
        rows = partial(windows_learned, state.optimizer_steps + 1, index, *batch)
        with keeper.step(), prompts_kept(config.output, rows):
            train_batch(
                setup.policy,
                state,
                *batch,
                rates=setup.rates,
                factor=schedule_factor(config.schedule, state.optimizer_steps, setup.num_steps),
                dropout=config.resolved.dropout,
                layer_dropout=config.resolved.layer_dropout,
                precision=config.precision,
                pass_tokens=setup.pass_tokens,
                micro_batch_tokens=setup.micro_batch_tokens,
                negatives=draw_negatives(
                    setup.policy.catalog, config.negatives, config.seed, state.optimizer_steps
                ),
            )


def train_batch(
    policy: Policy,
    state: LoopState,
    tokens: Int[Tensor, "B P"],
    loss_mask: Bool[Tensor, "B P"],
    *,
    rates: Rates,
    factor: float,
    dropout: float,
    layer_dropout: float,
    precision: Precision,
    pass_tokens: int,
    micro_batch_tokens: int = NO_LIMIT,
    negatives: Int[Tensor, " C"] | None = None,
) -> None:
    """One optimizer step.

    Raises `DivergedError` for a loss or a gradient that is not finite; the weights stay the same.
    """
    started = time.process_time()
    policy.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    learned = learn(
        policy,
        tokens,
        loss_mask,
        dropout=dropout,
        layer_dropout=layer_dropout,
        precision=precision,
        pass_tokens=pass_tokens,
        micro_batch_tokens=micro_batch_tokens,
        negatives=negatives,
    )
    add_gradients([p for p in policy.model.parameters() if p.requires_grad])
    rates.mask_gradients()
    norm = clip_gradients(policy.model.parameters(), 1.0)
    for what, value in (("loss", learned.loss), ("gradient", norm)):
        if not bool(value.isfinite()):
            raise DivergedError(
                f"the {what} of SFT is {float(value)} in optimizer step "
                f"{state.optimizer_steps + 1}: the run has diverged, start it again with a lower lr"
            )
    rates.step(state.optimizer, factor)
    state.remember_batch(*learned)
    state.cpu_s += total(time.process_time() - started)
