"""Sequences of unequal lengths: what padding costs, in supervised training and in a step of RL.

The floor of a row sends real tokens alone, in transformers' own forward.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.harness import (
    MAX_GRAD_NORM,
    Row,
    actor_of,
    main,
    paired,
    random_catalog,
    stock_attention,
    tiny_qwen3,
)
from benchmarks.update import floor_tokens, plain_logprobs, policy_gradient
from recast.groups import select
from recast.items.catalog import Catalog
from recast.methods.table import METHODS
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.passes import MOST_PASS_TOKENS, measure_pass_tokens
from recast.policy.prompts import make_prompts
from recast.policy.tasks import HistoryTask
from recast.rewards.hit import set_ratio
from recast.rollout.beam import beam_search
from recast.sft import train_batch
from recast.signals.grpo import grpo
from recast.train.actor import update
from recast.train.rates import rates_of
from recast.train.search import Search
from recast.train.state import LoopState
from recast.types import Interactions, Prompts, Sequences


def policy_of(catalog: Catalog, hidden: int, layers: int, window: int) -> Policy:
    model = tiny_qwen3(catalog.vocab_size, attention=ATTENTION, hidden=hidden, layers=layers)
    return Policy(model=model, catalog=catalog, window=window)


def short_histories(num_users: int, num_items: int) -> Interactions:
    """Users of 2 events and more, 10 in the mean: exponential, as catalogues of shops have them."""
    draw = torch.Generator().manual_seed(0)
    rate = torch.rand(num_users, generator=draw).clamp(min=1e-6)
    counts = 2 + (-8 * rate.log()).long()
    users = torch.arange(num_users).repeat_interleave(counts)
    return Interactions(
        users=users,
        items=torch.randint(num_items, (len(users),), generator=draw),
        times=torch.arange(len(users)),
        starts=torch.searchsorted(users, users),
        splits=torch.zeros_like(users),
        num_users=num_users,
        num_items=num_items,
        exclude_seen=False,
        split_name="made up",
    )


class Epoch:
    """An epoch of SFT, and plain transformers over the same sequences, the longest together."""

    def __init__(self, policy: Policy, events: Interactions, batch_size: int) -> None:
        task = HistoryTask(interactions=events, catalog=policy.catalog, window=policy.window)
        self.policy, self.batch_size = policy, batch_size
        self.sequences: Sequences = task.sequences(task.rows("train"), 0)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.0, weight_decay=0.0)
        self.state = LoopState(model=policy.model, optimizer=optimizer, keep="best")
        self.rates = rates_of(policy, 1e-3, None)
        self.padding = 0.0

    def ours(self) -> None:
        for index in torch.arange(len(self.sequences)).split(self.batch_size):
            train_batch(
                self.policy,
                self.state,
                *self.sequences.batch(index),
                rates=self.rates,
                factor=0.0,
                dropout=0.0,
                layer_dropout=0.0,
                precision="float32",
                pass_tokens=MOST_PASS_TOKENS,
            )
        self.padding = self.state.epoch_metrics()["sft/padding"]
        self.state.end_epoch()

    def floor(self) -> None:
        model = self.policy.model
        order = self.sequences.lengths.argsort()
        with stock_attention(model):
            for index in order.split(self.batch_size):
                tokens, mask = self.sequences.batch(index)
                self.state.optimizer.zero_grad(set_to_none=True)
                loss = model(
                    input_ids=tokens, labels=tokens.masked_fill(~mask, -100), use_cache=False
                ).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
                self.state.optimizer.step()


def sft_row(smoke: bool) -> Row:
    hidden, layers, users, repeats = (64, 2, 60, 1) if smoke else (256, 4, 1200, 5)
    catalog = random_catalog(500, 32)
    epoch = Epoch(policy_of(catalog, hidden, layers, 12), short_histories(users, 500), 32)
    ours_s, floor_s = paired(epoch.ours, epoch.floor, repeats)
    return Row(
        name="sft_short_histories",
        what=f"SFT epoch, users of 10 events in the mean, windows of 12 items, {hidden} x {layers}",
        against="plain transformers over the real tokens: sequences of like length together",
        value=ours_s / floor_s,
        bar=1.2,
        at_least=False,
        details=f"Recast {ours_s:.2f} s, floor {floor_s:.2f} s, {repeats} repeats, "
        f"{len(epoch.sequences):,} sequences, {epoch.padding:.2f} tokens sent per real one",
    )


class MixedStep:
    """A step of RL over prompts from the shortest to the longest, and its floor."""

    def __init__(self, policy: Policy, prompts: Prompts, width: int) -> None:
        catalog, self.width = policy.catalog, width
        groups = beam_search(policy, prompts, width)
        hit = groups.items[:, width // 2, None]  # so that no group is dropped
        self.prompts = make_prompts(
            catalog,
            text=(prompts.tokens, prompts.lengths),
            targets=torch.cat([hit, prompts.target_items], dim=1),
            row_ids=prompts.row_ids,
        )
        self.lengths = self.prompts.lengths.tolist()
        reference = replace(policy, model=copy.deepcopy(policy.model).requires_grad_(False))
        self.policy, self.reference = policy, reference

        def work(rows: int) -> int:
            some = select(self.prompts, torch.arange(rows))
            branch_logprobs(policy, some, some.targets, "full").sum().backward()
            return rows * int(some.lengths.max())

        self.pass_tokens = measure_pass_tokens(work, len(prompts), "cpu")
        self.search = Search(
            policy=policy,
            task=None,  # type: ignore[arg-type]
            method=METHODS["openonerec_rl"],
            sampler=beam_search,
            group_size=width,
            seed=0,
            max_batches=1,
            micro_batch_tokens=65536,
            pass_tokens=self.pass_tokens,
            folder="",
        )
        self.actor = actor_of(policy, reference, pass_tokens=self.pass_tokens)
        self.padding = 0.0
        rows = range(len(prompts))
        self.floors: list[tuple[Tensor, int]] = [
            floor_tokens(catalog, self.lengths[row], groups.tokens[row : row + 1]) for row in rows
        ]

    def ours(self) -> None:
        groups = self.search.roll_out(0, self.prompts)
        metrics = update(self.actor, grpo(groups, set_ratio(groups)))
        assert metrics["actor/sent_rows"] == groups.exists.numel(), "a rollout was dropped"
        self.padding = metrics["actor/padding"]

    def floor(self) -> None:
        """Two forwards and one forward + backward over the distinct tokens, prompt by prompt."""
        for tokens, count in self.floors:
            with torch.no_grad():
                plain_logprobs(self.policy, tokens, count)
                plain_logprobs(self.reference, tokens, count)
            policy_gradient(self.policy, plain_logprobs(self.policy, tokens, count))
        torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), MAX_GRAD_NORM)
        self.actor.optimizer.step()


def step_row(smoke: bool) -> Row:
    hidden, layers, num_prompts, width, least, most, repeats = (
        (64, 2, 4, 4, 3, 9, 1) if smoke else (256, 4, 8, 32, 33, 171, 7)
    )
    catalog = random_catalog(60, 8) if smoke else random_catalog(100_000, 256)
    span = (most - least) / (num_prompts - 1)
    counts = [math.floor(least + span * place) for place in range(num_prompts)]
    counts = [counts[(3 * place) % num_prompts] for place in range(num_prompts)]
    history = torch.full((num_prompts, max(counts)), -1)
    draw = torch.Generator().manual_seed(0)
    for row, count in enumerate(counts):
        history[row, :count] = torch.randint(catalog.num_items, (count,), generator=draw)
    nothing = torch.empty(num_prompts, 0, dtype=torch.long)
    prompts = make_prompts(catalog, history=history, targets=nothing)
    step = MixedStep(policy_of(catalog, hidden, layers, most + 1), prompts, width)
    return against_floor("step_mixed_prompts", step, f"{hidden} x {layers}", repeats)


def against_floor(name: str, step: MixedStep, shape: str, repeats: int, kind: str = "") -> Row:
    """Time against the passes that no step can do without."""
    ours_s, floor_s = paired(step.ours, step.floor, repeats)
    return Row(
        name=name,
        what=f"whole step (rollout, reference, update), P {len(step.lengths)}, G {step.width}, "
        f"{kind}prompts of {min(step.lengths)} to {max(step.lengths)} tokens, {shape}",
        against="the floor: two forwards and one forward + backward over the distinct tokens, "
        "prompt by prompt; optimizer step on both sides",
        value=ours_s / floor_s,
        bar=1.2,
        at_least=False,
        details=f"Recast {ours_s:.2f} s, floor {floor_s:.2f} s, {repeats} repeats, "
        f"{step.padding:.2f} tokens sent per real one, a pass weighs {step.pass_tokens} tokens",
    )


def run(smoke: bool) -> list[Row]:
    """Two rows: an epoch of SFT and a step of RL."""
    return [sft_row(smoke), step_row(smoke)]


if __name__ == "__main__":
    main(run)
