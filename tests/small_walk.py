"""A data set small enough to train on in a second, and the settings that go with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recast import cli
from recast.config import ModelConfig, RLConfig, SFTConfig

NUM_USERS, NUM_ITEMS = 60, 48
MODEL = ModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=64)
MODEL_FLAGS = [f"--model.{name}={value}" for name, value in vars(MODEL).items() if value]


def write_events(file: Path) -> None:
    """60 users walk a ring of 48 items: one item on (3 in 4) or two; 20 to 29 events each.

    Users take turns, so the split by global time cuts every user's walk. Nobody comes round twice.
    """
    draw = torch.Generator().manual_seed(1)
    label = torch.randperm(NUM_ITEMS, generator=draw)
    rows = []
    for user in range(NUM_USERS):
        hops = 1 + (torch.rand(20 + user % 10, generator=draw) < 0.25).long()
        places = int(torch.randint(NUM_ITEMS, (1,), generator=draw)) + hops.cumsum(0)
        places = places[places < places[0] + NUM_ITEMS]
        items = label[places % NUM_ITEMS].tolist()
        rows += [(user, item, 100 * turn + user) for turn, item in enumerate(items)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(file)


def sft_config(walk: Path, output: Path, **changes: Any) -> SFTConfig:
    settings = {"model": MODEL, "window": 8, "epochs": 10, "lr": 1e-2, "threads": 1}
    settings |= {"pass_tokens": 4096, "micro_batch_tokens": 65536}
    settings |= {"batch_windows": 32, "weight_decay": 0.01, "dropout": 0.1}
    settings |= {"layer_dropout": 0.0, "ema": 0.0, "logprob_space": "full"} | changes
    data, catalog = str(walk / "data"), str(walk / "catalog")
    return SFTConfig(**({"data": data, "catalog": catalog} | settings), output=str(output))


def rl_config(walk: Path, output: Path, **changes: Any) -> RLConfig:
    settings = {"group_size": 6, "prompts_per_step": 8, "steps": 3, "eval_every": 2, "threads": 1}
    settings |= {"pass_tokens": 4096, "valid_rows": 40}
    data, policy = str(walk / "data"), str(walk / "sft" / "policy")
    settings = {"data": data, "policy": policy} | settings | changes
    return RLConfig(**settings, output=str(output))


def sft_args(walk: Path, output: Path, *more: str) -> list[object]:
    args = ["sft", "--data", walk / "data", "--catalog", walk / "catalog", "--output", output]
    args += ["--window=8", "--threads=1", "--pass_tokens=4096", "--epochs=2"]
    args += ["--batch_windows=32", "--lr=2e-3", "--layer_dropout=0", "--ema=0"]
    return [*args, *MODEL_FLAGS, *more]


def rl_args(walk: Path, output: Path, *more: str, policy: Path | None = None) -> list[object]:
    folder = policy or walk / "sft" / "policy"
    args = ["rl", "--data", walk / "data", "--policy", folder, "--output", output, "--threads=1"]
    args += ["--pass_tokens=4096", "--steps=3", "--group_size=4", "--prompts_per_step=4"]
    return [*args, *more]


def weights(run: Path, policy: str = "policy") -> dict[str, Tensor]:
    return load_file(run / policy / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metric_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what the machine decides: seconds and memory."""
    measured = ("time_s", "time/", "memory/")
    return {name: value for name, value in line.items() if not name.startswith(measured)}


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, int]:
    """The one line on stderr, without its prefix, and the exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(args))
    err = capsys.readouterr().err
    assert err.startswith("recast: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("recast: error: ").rstrip(), int(left.value.code or 0)
