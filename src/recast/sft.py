"""Supervised training: token sequences of a task in, a policy that writes the next item out.

The loop of `rl.py` with one verb fewer: sequences, update, evaluate, save. Only events of split
`train` are read for training; the `rl` slice, validation and test are never seen.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from recast.config import Precision, SFTConfig
from recast.data.folder import data_hash
from recast.evaluation.rank import validate
from recast.policy.load import Policy, save_policy
from recast.run.log import RunLog
from recast.train.sequences import Learned, learn
from recast.train.setup import set_up_sft
from recast.train.state import LoopState
from recast.types import Metrics, Sequences


def train_sft(config: SFTConfig, log: RunLog | None = None) -> Metrics:
    """Train a policy on next items, stop early on validation NDCG@10, keep the best epoch.

    Writes the policy to `config.output`/policy. Returns the best validation metrics and the cost.
    """
    setup = set_up_sft(config)
    policy, task = setup.policy, setup.task
    total = config.epochs * math.ceil(setup.num_windows / config.batch_windows)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, total))
    state = LoopState(model=policy.model, optimizer=optimizer)
    with RunLog(config.output, setup.settings, parent=log) as run:
        run.environment(data_hash(config.data))
        said = f"{setup.num_windows} windows of {config.window} items"
        run.say(f"{said}, torch threads: {setup.settings['threads']}")
        if setup.text:
            run.say(setup.text)
        with run.stage("SFT", total=config.epochs) as stage:
            while state.step < config.epochs and state.waited < config.patience:
                learned = train_epoch(
                    state,
                    schedule,
                    policy,
                    task.sequences(setup.rows, state.step),
                    batch_size=config.batch_windows,
                    dropout=config.dropout,
                    precision=config.precision,
                    pass_tokens=setup.pass_tokens,
                )
                state.valid = validate(policy, task, setup.valid_rows, config.valid_metrics)
                metrics = learned | state.valid
                stage.advance(metrics, step=state.optimizer_steps)
                state.keep_if_best(metrics | {"sft/epoch": float(state.step)})
        policy.model.load_state_dict(state.best_weights)
        save_policy(policy, Path(config.output) / "policy")
    return state.best | state.counts


def train_epoch(
    state: LoopState,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    policy: Policy,
    sequences: Sequences,
    *,
    batch_size: int,
    dropout: float,
    precision: Precision,
    pass_tokens: int,
) -> Metrics:
    """One pass over the sequences in their order; returns the mean loss of its batches, and the
    tokens sent per real one."""
    started = time.process_time()
    policy.model.train()
    done: list[Learned] = []
    for index in torch.arange(len(sequences), device=policy.catalog.device).split(batch_size):
        state.optimizer.zero_grad(set_to_none=True)
        learned = learn(
            policy,
            *sequences.batch(index),
            dropout=dropout,
            precision=precision,
            pass_tokens=pass_tokens,
        )
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        state.optimizer.step()
        schedule.step()
        done.append(learned)
    state.step += 1
    state.optimizer_steps += len(done)
    state.cpu_s += time.process_time() - started
    sent, real = (sum(batch[i] for batch in done) for i in (1, 2))
    mean = float(torch.stack([batch.loss for batch in done]).mean())
    return {"sft/loss": mean, "sft/padding": float(sent / real)}


def cosine(step: int, steps: int, warmup_frac: float = 0.05) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to zero.

    >>> [round(cosine(step, 100), 3) for step in (0, 4, 5, 99)]
    [0.2, 1.0, 1.0, 0.0]
    """
    warmup = max(round(steps * warmup_frac), 1)
    if step < warmup:
        return (step + 1) / warmup
    # An epoch may hold a few windows more than the first one, from which `steps` was counted.
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))
