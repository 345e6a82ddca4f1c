"""On a GPU: a Qwen3 of the 1.7B shape in bfloat16, random weights, naive against pair and packed.

naive    every rollout behind its own copy of the prompt, in passes that fit the memory
pair     the same for 2 rollouts of a group, as the ReCast paper trains
packed   Recast: `beam_search`, and `branch_logprobs` over the micro-batches of `update`

First every path must give on the device, in float32, what it gives on the CPU. Then the phases are
timed with the device's own clock (medians after a warm-up, no gradient checkpointing):

rollout     naive: prefill of G copies, then a token at a time, the most probable one read and the
            beam's one fed: no search, no constraint, no reordering, so less than any real one does
old, ref    a forward pass each, timed once: the reference has the policy's own weights
update      forward and backward, no optimizer step
optimizer   clipping and AdamW with moments in bfloat16, at a learning rate of 0
step        rollout + ref + update + optimizer; neither side needs `old` while it makes one update
            per rollout. Packed: `beam_search` and `train.actor.update`, timed as one, every time on
            prompts of its own, so that what is built anew for new shapes is in the time

Naive passes are alike, so `passes` of them at most are timed, and scaled to all rows. Both sides
use the same output layer, on the positions that are read.

MFU of the update = useful FLOPs / seconds / rate of a large bfloat16 matrix product on this card,
where useful FLOPs = 6 x (parameters without the embedding) x distinct tokens
+ 6 x (parameters of the tied embedding) x distinct positions whose logits are read
+ 12 x layers x heads x head_dim x pairs of a token and one that it attends to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.device import (
    FULL,
    SMOKE,
    AttentionKernels,
    Sizes,
    flops,
    large_policy,
    matrix_rate,
    milliseconds,
    moved_to,
    naive_logprobs,
    naive_rollout,
    peak_gigabytes,
    with_a_hit,
)
from benchmarks.device_check import check_device
from benchmarks.harness import (
    MAX_GRAD_NORM,
    Row,
    Work,
    actor_of,
    main,
    random_catalog,
    random_prompts,
)
from recast.groups import select
from recast.items.catalog import Catalog
from recast.losses import ppo_clip
from recast.policy.logprobs import branch_logprobs
from recast.policy.memory import plan_memory
from recast.rewards.hit import set_ratio
from recast.rollout.beam import beam_search
from recast.signals.grpo import grpo
from recast.train.actor import Actor, rollouts_to_send, update
from recast.train.batches import micro_batches
from recast.types import Prompts

Pass = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phases:
    """Milliseconds of each phase, and the gigabytes of the update above weights and moments."""

    rollout: float
    score: float
    update: float
    optimizer: float
    step: float
    peak: float

    @property
    def actor(self) -> float:
        """Old log-probabilities, reference and update."""
        return 2 * self.score + self.update


class Bench:
    """One shape: P prompts, G rollouts, a length."""

    def __init__(self, sizes: Sizes, actor: Actor, catalog: Catalog, width: int, length: int):
        self.sizes, self.actor, self.width, self.length = sizes, actor, width, length
        self.policy, self.device = actor.policy, actor.policy.catalog.device
        self.levels = catalog.num_levels
        drawn = (
            random_prompts(catalog, sizes.prompts, length, s) for s in range(sizes.repeats + 1)
        )
        self.fresh = [with_a_hit(self.policy, moved_to(x, self.device), width)[0] for x in drawn]
        self.prompts, self.groups = with_a_hit(self.policy, self.fresh[0], width)

    def packed(self) -> Phases:
        signal = grpo(self.groups, set_ratio(self.groups))
        sent = rollouts_to_send(self.actor, signal)
        passes: list[Pass] = [
            partial(branch_logprobs, self.policy, batch.prompts, batch.branches, "full")
            for batch in micro_batches(signal, sent, self.actor.micro_batch_tokens)
        ]
        rollout = self._time(lambda: beam_search(self.policy, self.prompts, self.width))
        phases = self._phases(rollout, passes)
        fresh = iter(self.fresh)
        return replace(phases, step=self._time(lambda: self._whole(next(fresh))))

    def _whole(self, prompts: Prompts) -> None:
        groups = beam_search(self.policy, prompts, self.width)
        metrics = update(self.actor, grpo(groups, set_ratio(groups)))
        assert metrics["actor/sent_rows"] == groups.exists.numel(), "a rollout was dropped"

    def naive(self, trained: int, rollout: float | None = None) -> Phases:
        """Update of the first `trained` of every group; the rollout is one of the whole group."""
        branches = self.groups.tokens[:, :trained]
        copies = self.prompts.tokens.repeat_interleave(trained, dim=0)
        rows = torch.cat([copies, branches.flatten(0, 1)], dim=1)
        size = max(self.actor.micro_batch_tokens // rows.shape[1], 1)
        parts = list(rows.split(size)[: self.sizes.passes])
        scale = len(rows) / sum(len(part) for part in parts)
        if rollout is None:
            rollout = scale * self._time(lambda: naive_rollout(self.policy, parts))
        return self._phases(
            rollout, [partial(naive_logprobs, self.policy, x) for x in parts], scale
        )

    def _phases(self, rollout: float, passes: list[Pass], scale: float = 1.0) -> Phases:
        """The other phases; `scale` is all rows over those of `passes`."""
        model = self.policy.model

        @torch.no_grad()
        def score() -> None:
            for logprobs in passes:
                logprobs()

        def train() -> None:
            model.zero_grad(set_to_none=True)
            for logprobs in passes:
                found = logprobs()
                ppo_clip(found, found.detach(), torch.randn_like(found)).mean().backward()

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            self.actor.optimizer.step()

        scored, trained = scale * self._time(score), scale * self._time(train)
        stepped = self._time(step)
        model.zero_grad(set_to_none=True)
        return Phases(
            rollout=rollout,
            score=scored,
            update=trained,
            optimizer=stepped,
            step=rollout + scored + trained + stepped,
            peak=peak_gigabytes(self.device, train),
        )

    def _time(self, work: Work) -> float:
        return milliseconds(self.device, work, self.sizes.repeats)

    def agree(self) -> float:
        """Mean difference of the log-probabilities of both sides on the first group."""
        first = select(self.prompts, torch.zeros(1, dtype=torch.long, device=self.device))
        branches = self.groups.tokens[:1, :4]
        rows = torch.cat([first.tokens.expand(branches.shape[1], -1), branches[0]], dim=1)
        with torch.no_grad():
            packed = branch_logprobs(self.policy, first, branches, "full")[0]
            return float((packed - naive_logprobs(self.policy, rows)).abs().mean())

    def kernels(self) -> str:
        """The attention kernels of a packed forward."""
        with AttentionKernels() as seen, torch.no_grad():
            branch_logprobs(self.policy, self.prompts, self.groups.tokens, "full")
        return " and ".join(sorted(seen.names))

    def packed_flops(self) -> float:
        """Useful FLOPs of the packed update: each distinct token once."""
        nodes = [
            sum(len(group[:, :level].unique(dim=0)) for group in self.groups.tokens)
            for level in range(1, self.levels)
        ]
        count, causal = len(self.prompts), self.length * (self.length + 1) // 2
        return flops(
            self.policy,
            tokens=count * self.length + sum(nodes),
            pairs=count * causal + sum(n * (self.length + i) for i, n in enumerate(nodes, 1)),
            reads=count + sum(nodes),
        )

    def naive_flops(self) -> float:
        """What the naive update computes, copies included."""
        rows, width = self.groups.exists.numel(), self.length + self.levels - 1
        pairs = rows * width * (width + 1) // 2
        return flops(self.policy, tokens=rows * width, pairs=pairs, reads=rows * self.levels)


def rows_of(bench: Bench, naive: Phases, packed: Phases, rate: float) -> list[Row]:
    """Both sides at one length."""
    length = bench.length
    shape = f"P {len(bench.prompts)}, G {bench.width}, prompt {length}"
    busy, copies = (
        100 * work / (phases.update / 1e3) / rate
        for work, phases in ((bench.packed_flops(), packed), (bench.naive_flops(), naive))
    )
    return [
        Row(
            name=f"gpu_actor_{length}",
            what=f"actor side (old, reference, update), {shape}",
            against="naive: a copy of the prompt per rollout",
            value=naive.actor / packed.actor,
            bar=25,
            at_least=True,
            details=f"naive {naive.actor:,.0f} ms ({copies:.0f} % of the card's rate, copies "
            f"counted), Recast {packed.actor:,.1f} ms; peak of the update {naive.peak:.1f} GB in "
            f"passes of {bench.actor.micro_batch_tokens:,} tokens against {packed.peak:.1f} GB",
        ),
        Row(
            name=f"gpu_mfu_{length}",
            what=f"MFU of the update, {shape}",
            against="the measured bfloat16 matrix rate of the card",
            value=busy,
            bar=45,
            at_least=True,
            unit="%",
            details=f"{bench.packed_flops() / 1e12:.3g} TFLOP in {packed.update:,.1f} ms, card "
            f"{rate / 1e12:,.3g} TFLOP/s; attention by {bench.kernels()}",
        ),
        Row(
            name=f"gpu_step_{length}",
            what=f"whole step (rollout, reference, update, optimizer), {shape}",
            against="naive: a copy of the prompt per rollout",
            value=naive.step / packed.step,
            bar=10,
            at_least=True,
            details=f"naive {naive.step:,.0f} ms, Recast {packed.step:,.1f} ms",
        ),
    ]


def width_row(bench: Bench, narrow: Phases, wide: Phases) -> Row:
    """What search width costs."""
    return Row(
        name=f"gpu_width_{bench.length}",
        what=f"whole step, P {len(bench.prompts)}, G {bench.width}, prompt {bench.length}",
        against=f"itself at G {bench.sizes.widths[0]}",
        value=wide.step / narrow.step,
        bar=1.3,
        at_least=False,
        details=f"{wide.step:,.1f} ms against {narrow.step:,.1f} ms; peak of the update "
        f"{wide.peak:.1f} GB against {narrow.peak:.1f} GB",
    )


def _table(found: dict[tuple[int, int, str], Phases]) -> list[str]:
    names = ("rollout", "score", "update", "optimizer", "step", "peak")
    heads = ("rollout", "old = ref", "update", "optimizer", "step", "GB")
    lines = ["prompt    G side  " + "".join(f"{name:>11}" for name in heads)]
    for (length, width, side), phases in found.items():
        cells = (f"{getattr(phases, name):11,.1f}" for name in names)
        lines.append(f"{length:6} {width:4} {side:6}" + "".join(cells))
    return lines


def run(smoke: bool) -> list[Row]:
    """Correctness, the card's rate, then three sides at every shape; the phases as a table."""
    if not (smoke or torch.cuda.is_available()):
        print("not run: no CUDA device")
        return []
    sizes = SMOKE if smoke else FULL
    device = torch.device("cpu" if smoke else "cuda")
    check_device(device)
    rate = matrix_rate(device, sizes.matrix)
    catalog = random_catalog(sizes.items, sizes.codebook, first_token=sizes.words)
    policy = large_policy(sizes.model, catalog, device)
    longest = max(sizes.lengths) + max(sizes.widths) * (catalog.num_levels - 1)
    plan = plan_memory(policy, longest, None)
    print(plan.text)
    assert not plan.checkpointing, "the longest prompt does not fit without checkpointing"
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.0, weight_decay=0.0)
    actor = actor_of(policy, policy, optimizer, micro_batch_tokens=plan.micro_batch_tokens)
    rows: list[Row] = []
    found: dict[tuple[int, int, str], Phases] = {}
    for length in sizes.lengths:
        packed: list[Phases] = []
        for width in sizes.widths:
            bench = Bench(sizes, actor, catalog, width, length)
            difference = bench.agree()
            assert difference < 0.05, f"packed and naive log-probabilities differ by {difference}"
            naive = bench.naive(width)
            packed.append(bench.packed())
            sides = {"naive": naive, "pair": bench.naive(2, naive.rollout), "packed": packed[-1]}
            found |= {(length, width, side): phases for side, phases in sides.items()}
            if width == sizes.widths[0]:
                rows += rows_of(bench, naive, packed[0], rate)
        rows.append(width_row(bench, *packed))
    print(*_table(found), sep="\n")
    return rows


if __name__ == "__main__":
    main(run)
