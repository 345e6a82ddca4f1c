"""What every benchmark shares: rows, clocks, memory, and the tiny model that both sides run.

A benchmark is a module with `run(smoke) -> list[Row]`. Both sides of a row run in one process on
the same model object, with one torch thread; times are CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from recast.items.catalog import Catalog, build_catalog
from recast.losses import ppo_clip
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy, trained_parameters
from recast.policy.passes import MOST_PASS_TOKENS
from recast.policy.prompts import make_prompts
from recast.train.actor import Actor
from recast.train.reference import frozen_reference
from recast.types import Loss, Prompts

MAX_GRAD_NORM = 1.0

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table; `value` is in `unit`, `bar` is what it should reach."""

    name: str
    what: str
    against: str
    value: float
    bar: float
    at_least: bool
    unit: str = "x"
    details: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        met = "met" if self.met else "MISSED"
        return f"{self.name}: {self.value:.4g} {self.unit} (bar {sign} {self.bar:g}, {met})"


def main(run: Callable[[bool], list[Row]]) -> None:
    """The command line of one benchmark: measurements first, ratios last."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)  # for `python -m benchmarks`
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(arguments.smoke)
    for row in rows:
        print(f"{row.what} | {row.against} | {row.details}")
    for row in rows:
        print(row)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows]))


def cpu_seconds(work: Work, repeats: int, warmups: int = 1) -> float:
    """Median CPU seconds of `work`."""
    for _ in range(warmups):
        work()
    return median(_seconds(work) for _ in range(repeats))


def paired(
    slow: Work, fast: Work, repeats: int, slow_repeats: int | None = None
) -> tuple[float, float]:
    """Median CPU seconds of both, run in turns after a warm-up each, so that load hits both."""
    slow(), fast()
    slow_times, fast_times = [], []
    for repeat in range(repeats):
        if slow_repeats is None or repeat < slow_repeats:
            slow_times.append(_seconds(slow))
        fast_times.append(_seconds(fast))
    return median(slow_times), median(fast_times)


def _seconds(work: Work) -> float:
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_bytes(work: Work) -> int:
    """The most bytes that torch's CPU allocator held at once during `work`, above the start.

    The sum of every allocation and release that the profiler saw, not the process's resident set.
    Releases of what was allocated before do not count.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        peak = max(peak, held)
    return peak


def peak_rss_bytes(work: Work) -> int:
    """Peak resident set of the process during `work`, above the start (Linux); for numpy, faiss."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the heap keeps for later would hide what `work` takes
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    start = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - start


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def tiny_qwen3(
    vocab_size: int, attention: str = "sdpa", hidden: int = 128, layers: int = 4
) -> PreTrainedModel:
    """The model of the CPU rows."""
    return tiny_model(Qwen3Config, vocab_size, attention, hidden, layers, tie_word_embeddings=True)


def tiny_model(
    kind: type, vocab_size: int, attention: str, hidden: int, layers: int, **others: Any
) -> PreTrainedModel:
    """A causal LM of this kind of config: float32, seeded random weights, no dropout.

    The weights are larger than transformers' own start, so that a beam search finds no ties.
    """
    config = kind(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=2**14,
        initializer_range=0.1,
        bos_token_id=1,
        pad_token_id=0,
        eos_token_id=None,
        **others,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def actor_of(
    policy: Policy,
    reference: Policy,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    loss: Loss = ppo_clip,
    micro_batch_tokens: int = 65536,
    pass_tokens: int = MOST_PASS_TOKENS,
) -> Actor:
    """One update per rollout with a KL to the reference; by default AdamW that moves nothing."""
    parameters = trained_parameters(policy)
    return Actor(
        policy=policy,
        reference=frozen_reference(reference, "full"),
        optimizer=optimizer or torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0),
        loss=loss,
        kl_coef=0.001,
        kl_rollouts="kept",
        max_grad_norm=MAX_GRAD_NORM,
        space="full",
        micro_batch_tokens=micro_batch_tokens,
        updates_per_rollout=1,
        pass_tokens=pass_tokens,
    )


def tiny_policy(catalog: Catalog) -> Policy:
    """The tiny model as a policy of Recast; `stock_attention` lends it to the other side."""
    model = tiny_qwen3(catalog.vocab_size, attention=ATTENTION)
    return Policy(model=model, catalog=catalog, window=86)


@contextmanager
def stock_attention(model: PreTrainedModel) -> Iterator[None]:
    """The same model object with transformers' own attention."""
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION)


def random_catalog(
    num_items: int,
    codebook_size: int,
    num_levels: int = 3,
    seed: int = 0,
    first_token: int = 2,
) -> Catalog:
    """Items with distinct random codes, in random order."""
    draw = torch.Generator().manual_seed(seed)
    sizes = (codebook_size,) * num_levels
    assert num_items <= math.prod(sizes), "more items than SIDs"
    found = torch.empty(0, dtype=torch.long)
    while len(found) < num_items:
        more = torch.randint(math.prod(sizes), (2 * num_items,), generator=draw)
        found = torch.cat([found, more]).unique()
    chosen = found[torch.randperm(len(found), generator=draw)[:num_items]]
    levels = [chosen // codebook_size**level % codebook_size for level in range(num_levels)]
    return build_catalog(torch.stack(levels[::-1], dim=1), sizes, first_token=first_token)


def random_prompts(catalog: Catalog, count: int, length: int, seed: int = 0) -> Prompts:
    """Random histories and one target each: BOS and as many whole items as `length` tokens hold."""
    draw = torch.Generator().manual_seed(seed)
    items = (length - 1) // catalog.num_levels
    history = torch.randint(catalog.num_items, (count, items), generator=draw)
    targets = torch.randint(catalog.num_items, (count, 1), generator=draw)
    return make_prompts(catalog, history=history, targets=targets)
