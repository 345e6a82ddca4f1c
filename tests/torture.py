"""Kill runs at random moments and go on with them: `python tests/torture.py --kills 100`.

However often it was killed, a run must end like the one that was left alone: every byte of the
policy, every step once in `metrics.jsonl` and in the rollouts (all but seconds and memory), the
same points in TensorBoard. Runs are processes of their own, forked behind the imports, which would
take longer than the runs do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import torch
from small_experiment import NAMES, cells_of
from small_walk import metric_lines, numbers, rl_config, sft_config, write_events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recast.config import EvaluateConfig, LoRAConfig, PrepareConfig, TokenizeConfig
from recast.data.prepare import prepare
from recast.evaluation import rank
from recast.evaluation.evaluate import evaluate_policy
from recast.experiment import run_cells
from recast.items.tokenize import tokenize
from recast.rl import train_rl
from recast.run import parts
from recast.run.files import CHECKPOINTS
from recast.run.stop import Stopped, listening
from recast.sft import train_sft
from recast.train import keeper

MOST_KILLS = 3
"""Of one run; then it is left to end."""

Run = Callable[[Path, Path, bool], object]


def _sft(walk: Path, output: Path, resume: bool) -> object:
    settings = {
        "epochs": 6,
        "dropout": 0.1,
        "layer_dropout": 0.2,
        "ema": 0.9,
        "patience": 2,
        "checkpoint_s": 0.0,
    }
    return train_sft(sft_config(walk, output, **settings, resume=resume))


def _rl(**settings: Any) -> Run:
    def run(walk: Path, output: Path, resume: bool) -> object:
        used = {"steps": 16, "eval_every": 5, "warmup_steps": 4, "checkpoint_s": 0.0} | settings
        return train_rl(rl_config(walk, output, **used, resume=resume))

    return run


def _experiment(walk: Path, output: Path, resume: bool) -> object:
    cells = cells_of(output, walk / "events.csv", steps=8, checkpoint_s=0.0)
    sft = next(cell for cell in cells if cell.name == "sft")
    often = replace(sft, config=replace(sft.config, checkpoint_s=0.0))
    return run_cells(output, [often if cell is sft else cell for cell in cells])


def _evaluate(walk: Path, output: Path, resume: bool) -> object:
    config = EvaluateConfig(
        data=str(walk / "data"), policy=str(walk / "sft" / "policy"), output=str(output), threads=1
    )
    return evaluate_policy(config)


RUNS: dict[str, Run] = {
    "sft": _sft,
    "recast": _rl(),
    "dapo": _rl(method="dapo"),  # fills its batch, and remembers how far it has read
    "recast_adaptive": _rl(method="recast_adaptive"),
    "gumbel_pg": _rl(method="gumbel_pg"),
    "dpo": _rl(method="dpo"),
    "rere_anchored": _rl(method="rere_anchored"),
    "lora": _rl(lora=LoRAConfig(rank=4)),
    "mini_batches": _rl(mini_batch_rows=4),
    "evaluate": _evaluate,
    "experiment": _experiment,
}


@dataclass
class Count:
    """What happened to the runs of a kind."""

    kills: int = 0
    from_checkpoint: int = 0
    runs: int = 0
    bytes: int = 0
    lines: int = 0


def main(kills: int, names: list[str], seed: int, folder: Path) -> bool:
    """Whether all runs ended alike."""
    draw, walk = random.Random(seed), folder / "walk"
    _wait(_start(lambda: _make_walk(walk), folder / "walk.log"))
    total = Count()
    for number, name in enumerate(names):
        share = kills // len(names) + (number < kills % len(names))
        count = _torture(name, walk, folder / name, share, draw)
        if count is None:
            return False
        print(
            f"{name:<16} {count.kills} kills, {count.from_checkpoint} times on from what was kept, "
            f"{count.runs} runs compared: {count.bytes:,} bytes of policies and {count.lines} "
            "lines of metrics are equal",
            flush=True,
        )
        for key, value in vars(count).items():
            setattr(total, key, getattr(total, key) + value)
    print(f"{total.kills} kills, {total.runs} runs compared, {total.bytes:,} bytes, rows lost: 0")
    return True


def _torture(name: str, walk: Path, folder: Path, kills: int, draw: random.Random) -> Count | None:
    """Runs of a kind until it was killed that often; None as soon as one ends otherwise."""
    run, alone, count = RUNS[name], folder / "alone", Count()
    began = time.monotonic()
    _wait(_start(lambda: run(walk, alone, False), folder / "alone.log"))
    seconds = time.monotonic() - began
    while count.kills < kills:
        output, log = folder / f"killed-{count.runs}", folder / f"killed-{count.runs}.log"
        go_on = partial(_go_on, run, walk, output)
        for _ in range(min(MOST_KILLS, kills - count.kills)):
            child = _start(go_on, log)
            time.sleep(draw.uniform(0, seconds))
            os.kill(child, draw.choice([signal.SIGKILL] * 3 + [signal.SIGTERM]))
            if _ended_well(child):
                break
            count.kills += 1
            if not _can_go_on(output) and name not in ("evaluate", "experiment"):
                shutil.rmtree(output, ignore_errors=True)
            kept = [*output.glob("**/checkpoints/step-*"), *folder.glob(".*.parts/part-*")]
            count.from_checkpoint += bool(kept)
        _wait(_start(go_on, log))
        compared = folder / "compared.json"
        # In a process of its own too: polars' threads, once started, would hang the next fork.
        _wait(_start(partial(_compare, name, alone, output, compared), log))
        differences, num_bytes, num_lines = json.loads(compared.read_text())
        count.bytes += num_bytes
        count.lines += num_lines
        if differences:
            print(f"{name}: {differences}, see {output} and {log}", file=sys.stderr)
            return None
        count.runs += 1
    return count


def _go_on(run: Run, walk: Path, output: Path) -> None:
    if _can_go_on(output) or not any((output / done).exists() for done in ("policy", "eval.json")):
        run(walk, output, _can_go_on(output))


def _can_go_on(output: Path) -> bool:
    return (output / CHECKPOINTS).is_dir()


def _compare(name: str, alone: Path, killed: Path, report: Path) -> None:
    count = Count()
    differences = _compared(name, alone, killed, count)
    report.write_text(json.dumps([differences, count.bytes, count.lines]))


def _compared(name: str, alone: Path, killed: Path, count: Count) -> str:
    """What differs, or nothing."""
    cells = [Path()] if name != "experiment" else [Path(), *map(Path, NAMES)]
    for part in cells:
        one, other = alone / part, killed / part
        for file in sorted((one / "policy").rglob("*")):
            if file.is_file():
                content = file.read_bytes()
                if content != (other / file.relative_to(one)).read_bytes():
                    return f"{file.relative_to(alone)} differs"
                count.bytes += len(content)
        if (one / "metrics.jsonl").exists():
            lines = [[numbers(line) for line in metric_lines(run)] for run in (one, other)]
            if lines[0] != lines[1]:
                return f"{part / 'metrics.jsonl'} differs"
            count.lines += len(lines[0])
        if (one / "eval.json").exists():
            texts = [
                # The digest knows the folder, which is not the same.
                json.loads((run / part / "eval.json").read_text().replace(str(run), "RUN"))
                | {"digest": ""}
                for run in (alone, killed)
            ]
            if texts[0] != texts[1]:
                return f"{part / 'eval.json'} differs"
        if (one / "tb").exists() and _points(one) != _points(other):
            return f"{part / 'tb'} differs"
        for tables in ("rollouts/*.parquet", "rows.parquet"):
            files = [sorted(run.glob(tables)) for run in (one, other)]
            if files[0] and not pl.read_parquet(files[0]).equals(pl.read_parquet(files[1])):
                return f"{part / tables} differs"
    left = [str(path) for path in killed.rglob("*.partial")]
    left += [str(path) for path in killed.rglob(CHECKPOINTS)]
    return f"{left} are left" if left else ""


def _points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, less seconds and memory."""
    board = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0})
    board.Reload()
    tags = numbers(dict.fromkeys(board.Tags()["scalars"]))
    return {tag: [(point.step, point.value) for point in board.Scalars(tag)] for tag in tags}


def _make_walk(folder: Path) -> None:
    folder.mkdir()
    write_events(folder / "events.csv")
    data, catalog = str(folder / "data"), str(folder / "catalog")
    prepare(PrepareConfig(interactions=str(folder / "events.csv"), output=data))
    tokenize(TokenizeConfig(data=data, output=catalog, items_as="codes", collaborative_weight=1.0))
    train_sft(sft_config(folder, folder / "sft"))


def _start(run: Callable[[], object], log: Path) -> int:
    """A process that does it; returns its number."""
    log.parent.mkdir(exist_ok=True)
    if child := os.fork():
        return child
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        # As often as can be: the moments count here, not what they cost.
        keeper._MOST, parts._MOST, parts._EVERY_S, rank._MAX_BATCH = 1.0, 1e9, 0.0, 4
        with listening():
            run()
        os._exit(0)
    except Stopped as stopped:
        os._exit(128 + stopped.number)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _ended_well(child: int) -> bool:
    """Whether it had ended before it was killed; one that failed by itself ends this."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 1:
        raise SystemExit("a run failed by itself, see its log")
    return code == 0


def _wait(child: int) -> None:
    if not _ended_well(child):
        raise SystemExit("a run was killed by another")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps what the runs wrote")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        where = asked.folder or Path(scratch)
        where.mkdir(exist_ok=True)
        sys.exit(not main(asked.kills, asked.runs, asked.seed, where))
