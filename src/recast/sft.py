"""Supervised training: windows of users' histories in, a policy that writes the next item out.

The loop of `rl.py` with one verb fewer: window, update, evaluate, save. Only events of split
`train` are read for training; the `rl` slice, validation and test are never seen.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from recast.config import SFTConfig
from recast.data.folder import data_hash, load_data
from recast.draws import uniforms
from recast.evaluation.rank import sample_rows, validate
from recast.items.catalog import load_catalog
from recast.policy.load import Policy, create_policy, save_policy
from recast.policy.logprobs import vocabulary_scores
from recast.policy.prompts import check_catalog
from recast.policy.threads import choose_threads
from recast.run.files import refuse_existing
from recast.run.log import RunLog
from recast.types import SPLITS, Interactions, Metrics, RecastError


def train_sft(config: SFTConfig, log: RunLog | None = None) -> Metrics:
    """Train a policy on next items, stop early on validation NDCG@10, keep the best epoch.

    Writes the policy to `config.output`/policy. Returns the best validation metrics and the cost.
    """
    refuse_existing(config.output)
    interactions, catalog = load_data(config.data), load_catalog(config.catalog)
    check_catalog(config.data, catalog)
    policy = create_policy(config.model, catalog, config.window, config.seed).to(config.device)
    policy.model.float()  # a small step is lost on weights of 8 bits
    torch.manual_seed(config.seed)  # dropout is the only draw that is not counter-based
    windows = user_windows(interactions, config, epoch=0)
    if not len(windows):
        raise RecastError(f"{config.data} has no user with 2 training events: give more data")
    first = windows[: config.batch_windows]
    threads = choose_threads(
        lambda: window_loss(policy, first, 0.0).backward(), config.threads, config.device
    )
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    total = config.epochs * math.ceil(len(windows) / config.batch_windows)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, total))
    valid_rows = sample_rows(interactions, "valid", config.valid_rows)
    best, waited, cpu_s = {"valid/ndcg@10": -math.inf}, 0, 0.0
    with RunLog(config.output, asdict(config) | {"threads": threads}, parent=log) as run:
        run.environment(data_hash(config.data))
        run.say(f"{len(windows)} windows of {config.window} items, torch threads: {threads}")
        with run.stage("SFT", total=config.epochs) as stage:
            for epoch in range(config.epochs):
                started = time.process_time()
                windows = user_windows(interactions, config, epoch)
                loss = train_epoch(policy, windows, optimizer, schedule, config)
                cpu_s += time.process_time() - started
                metrics = {"sft/loss": loss} | validate(policy, interactions, valid_rows)
                stage.advance(metrics, step=schedule.last_epoch)
                waited += 1
                if metrics["valid/ndcg@10"] > best["valid/ndcg@10"]:
                    best, waited = metrics | {"sft/epoch": float(epoch + 1)}, 0
                    weights = {k: v.clone() for k, v in policy.model.state_dict().items()}
                if waited >= config.patience:
                    break
        policy.model.load_state_dict(weights)
        save_policy(policy, Path(config.output) / "policy")
    steps = float(schedule.last_epoch)
    return best | {"rollouts": 0.0, "cpu_s": cpu_s, "optimizer_steps": steps}


def train_epoch(
    policy: Policy,
    windows: Int[Tensor, "N W"],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    config: SFTConfig,
) -> float:
    """One pass over the windows; returns the mean loss of its batches."""
    policy.model.train()
    losses = []
    for batch in windows.split(config.batch_windows):
        with policy.computing_in(config.precision):
            loss = window_loss(policy, batch, config.dropout)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def user_windows(interactions: Interactions, config: SFTConfig, epoch: int) -> Int[Tensor, "N W"]:
    """Every user's training events cut into windows of items, shuffled; -1 pads on the right.

    Each epoch cuts at new offsets, except users who fit one window, and reorders the events that
    share user and time: their order is unknown, so any of them is as true as another. A part of
    the windows is read backwards. Windows of a single item are dropped.
    """
    window, seed = config.window, config.seed
    chosen = (interactions.splits == SPLITS.index("train")).nonzero()[:, 0]
    tie_break = uniforms(seed, epoch, chosen, "order", 1)[:, 0]
    order = tie_break.argsort()
    for key in (interactions.times, interactions.users):
        order = order[key[chosen[order]].argsort(stable=True)]
    users, items = interactions.users[chosen[order]], interactions.items[chosen[order]]
    index = torch.arange(len(users))
    first = torch.searchsorted(users, users)  # sorted: the first event of the same user
    count = torch.searchsorted(users, users, right=True) - first
    shift = (uniforms(seed, epoch, users, "offset", 1)[:, 0] * window).long() * (count > window)
    place = index - first + shift
    starts = (place % window == 0) | (index == first)
    row = starts.long().cumsum(0) - 1
    column = index - index[starts][row]
    windows = items.new_full((int(row[-1]) + 1 if len(row) else 0, window), -1)
    windows[row, column] = items
    windows = windows[windows[:, 1] >= 0]
    number = torch.arange(len(windows))
    backwards = uniforms(seed, epoch, number, "backwards", 1) < config.backwards_frac
    mirrored = ((windows >= 0).sum(1, keepdim=True) - 1 - torch.arange(window)) % window
    windows = torch.where(backwards, windows.gather(1, mirrored), windows)
    return windows[uniforms(seed, epoch, number, "shuffle", 1)[:, 0].argsort()]


def window_loss(policy: Policy, windows: Int[Tensor, "N W"], dropout: float) -> Float[Tensor, ""]:
    """Mean negative log-likelihood over all tokens of all items of the windows."""
    catalog = policy.catalog
    windows = windows[:, : int((windows >= 0).sum(1).max())].to(catalog.device)
    tokens = catalog.tokens(windows).flatten(1)
    inputs = F.pad(tokens[:, :-1], (1, 0), value=catalog.bos_token)
    embedded = F.dropout(policy.model.get_input_embeddings()(inputs), dropout)
    # Explicit, as in every packed call: some models count positions from elsewhere by themselves.
    positions = torch.arange(inputs.shape[1], device=inputs.device).expand(len(inputs), -1)
    hidden = policy.model.base_model(
        inputs_embeds=embedded, position_ids=positions, use_cache=False
    ).last_hidden_state
    known = (windows >= 0).repeat_interleave(catalog.num_levels, dim=1)
    return -vocabulary_scores(policy.model, hidden[known], tokens[known][:, None]).mean()


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
