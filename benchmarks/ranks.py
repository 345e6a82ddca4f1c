"""Two processes of one thread against one: a whole step (beam rollout, reward, signal, reference,
update), its prompts split as `recast rl` splits them.

python -m benchmarks.ranks [--rounds 3] [--fsdp_size 1] [--smoke]

Both sides take turns, on cores that nobody else may use. The CPU seconds say what is left of the
ratio where others do: one process's against those of the slower of two.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from statistics import median

import torch

from benchmarks.harness import actor_of, random_catalog, random_prompts, tiny_qwen3
from recast.methods.assembly import sampler_of
from recast.methods.table import METHODS
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy, trained_parameters
from recast.policy.passes import MOST_PASS_TOKENS
from recast.policy.prompts import make_prompts
from recast.policy.sharded import shard, whole_weights
from recast.rewards.hit import set_ratio
from recast.run.launched import join, leave
from recast.run.world import gathered, is_first
from recast.signals.grpo import grpo
from recast.train.actor import update
from recast.train.exchange import signal_of_first
from recast.train.search import Search
from recast.train.state import adamw

HIDDEN, LAYERS, PROMPTS, GROUP, LENGTH, STEPS = 256, 4, 32, 16, 300, 3
SMOKE = 128, 1, 4, 4, 16, 1


def measure(fsdp_size: int, *, smoke: bool) -> list[tuple[float, float]]:
    """Seconds of every step, and the CPU seconds of the rank that took most."""
    hidden, layers, prompts, group, length, steps = (
        SMOKE if smoke else (HIDDEN, LAYERS, PROMPTS, GROUP, LENGTH, STEPS)
    )
    catalog = random_catalog(60, 8) if smoke else random_catalog(1682, 32)
    model = tiny_qwen3(catalog.vocab_size, attention=ATTENTION, hidden=hidden, layers=layers)
    policy = Policy(model=model, catalog=catalog, window=2 * length)
    reference = tiny_qwen3(catalog.vocab_size, attention=ATTENTION, hidden=hidden, layers=layers)
    frozen = Policy(model=reference.requires_grad_(False), catalog=catalog, window=2 * length)
    search = Search(
        policy=policy,
        task=None,  # type: ignore[arg-type]  # no row is read
        method=METHODS["openonerec_rl"],
        sampler=sampler_of(METHODS["openonerec_rl"], "beam", {}),
        group_size=group,
        seed=0,
        max_batches=1,
        micro_batch_tokens=65536,
        pass_tokens=MOST_PASS_TOKENS,
        folder="",
    )
    asked = random_prompts(catalog, prompts, length)
    target = search.roll_out(0, asked).items[:, group // 2, None]
    asked = make_prompts(catalog, history=asked.history, targets=target, row_ids=asked.row_ids)
    for one in (model, reference):
        shard(one, fsdp_size)
    actor = actor_of(policy, frozen, adamw(trained_parameters(policy), 0.0, 0.0))
    taken = []
    for _ in range(steps + 1):
        gathered(None)
        wall, cpu = time.perf_counter(), time.process_time()
        with whole_weights(model):
            groups = search.roll_out(0, asked)
        signal = signal_of_first(lambda: grpo(groups, set_ratio(groups)), asked)  # noqa: B023
        update(actor, signal)
        spent = max(gathered(time.process_time() - cpu))
        taken.append((time.perf_counter() - wall, spent))
    return taken[1:]


def started(size: int, *args: str) -> list[tuple[float, float]]:
    """What so many processes measure."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]
    told = {"WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    told |= {"OMP_NUM_THREADS": 1, "LOCAL_WORLD_SIZE": size}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ranks", "--rounds=0", *args],
            env=os.environ | {k: str(v) for k, v in (told | {"RANK": rank}).items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    first, *_ = [process.communicate()[0] for process in processes]
    found: list[tuple[float, float]] = json.loads(first.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fsdp_size", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    asked = parser.parse_args()
    if not asked.rounds:
        torch.set_num_threads(1)
        join()
        taken = measure(asked.fsdp_size, smoke=asked.smoke)
        if is_first():
            print(json.dumps(taken))
        leave()
        return
    more = ["--smoke"] if asked.smoke else []
    one, two = [], []
    for _ in range(asked.rounds):
        one += started(1, *more)
        two += started(2, f"--fsdp_size={asked.fsdp_size}", *more)
    for place, what in enumerate(("seconds", "CPU seconds")):
        single, both = (median(x[place] for x in side) for side in (one, two))
        print(f"{what} of a step: {single:.2f} by one, {both:.2f} by two, {single / both:.2f} x")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
