"""What one rank and two make of the same steps: run by `test_ranks.py`, once on each of two ranks.

Enters: the folder of the small walk and one for runs. Leaves, from the first rank: a JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from small_encoder import WORDS
from small_experiment import cells_of
from small_walk import rl_config, sft_config
from torch import Tensor
from torch.distributed.tensor import DTensor

from recast import experiment, rl
from recast.cell import Cell
from recast.config import EvaluateConfig, LoRAConfig, RLConfig, StratifyConfig
from recast.data.history import history
from recast.evaluation.evaluate import evaluate_policy
from recast.evaluation.stratify import stratify_policy
from recast.items.catalog import load_catalog
from recast.items.encoder import _BATCH_TEXTS, embed_texts
from recast.methods.assembly import in_space_of, resolve
from recast.methods.parts import resources
from recast.methods.table import METHODS, Method
from recast.policy.tasks import HistoryTask, load_source
from recast.rl import learn, roll_out, train_rl
from recast.run.launched import join, leave
from recast.run.world import alone, gathered, is_first
from recast.sft import train_sft
from recast.train import keeper
from recast.train.state import LoopState
from recast.train.step import StepSetup, draw_batches, load_step, set_up_step
from recast.types import Metrics, RolloutGroups, Signal

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

RL_RUNS: dict[str, dict[str, Any]] = {
    "dapo": {"method": "dapo", "lr": 1e-3, "prompts_per_step": 5},
    "recast": {"method": "recast", "lr": 1e-3, "patience": 1, "eval_every": 1, "keep": "best"},
    "sharded": {
        "method": "recast",
        "lr": 1e-3,
        "kl_coef": 0.1,
        "ref_every": 1,
        "ref_mix": 0.5,
        "keep": "best",
        "save_every": 2,
        "checkpoint_s": 0.0,
        "fsdp_size": 2,
    },
}
FOLLOW = experiment.follow
SFT_RUN: dict[str, Any] = {
    "lr": 1e-3,
    "epochs": 2,
    "layer_dropout": 0.3,
    "dropout": 0.3,
    "ema": 0.9,
}


def against_the_batch(groups: RolloutGroups, rewards: Tensor) -> Signal:
    """A user's signal that reads the whole batch."""
    advantages = (rewards - rewards.mean())[..., None] * (0.5 + torch.rand(()))
    weight = rewards.new_zeros(len(rewards))
    return Signal(
        groups=groups, advantages=advantages, keep=groups.exists, nll_weight=weight, metrics={}
    )


def cases(walk: Path, runs: Path) -> Iterator[tuple[str, RLConfig, Method | None]]:
    """Every method on 7 prompts, which two ranks cannot halve, and what else may differ."""
    embeddings = str(walk / "catalog")
    for name, method in METHODS.items():
        asked = set[str]().union(*(resources(p) for p in (method.reward, method.signal)))
        more: dict[str, Any] = {"ranker": "item_knn"} if "ranker" in asked else {}
        if "embeddings" in asked:
            more["embeddings"] = embeddings
        yield name, _config(walk, runs, method=name, **more), None
    users = replace(METHODS["recast"], signal=against_the_batch, label="users")
    yield "of a user", _config(walk, runs), users
    yield "one prompt", _config(walk, runs, method="recast", prompts_per_step=1), None
    yield "mini-batches", _config(walk, runs, method="openonerec_rl", mini_batch_rows=9), None
    yield "small passes", _config(walk, runs, method="rere_anchored", micro_batch_tokens=64), None


def _config(walk: Path, runs: Path, **changes: Any) -> RLConfig:
    settings = {"steps": 1, "prompts_per_step": 7, "valid_rows": 4, "max_grad_norm": float("inf")}
    return rl_config(walk, runs / "none", **settings | changes)


def sharded_cases(walk: Path, runs: Path) -> Iterator[tuple[str, RLConfig]]:
    """What two ranks that share weights may make unequal numbers of passes in."""
    small = {"micro_batch_tokens": 64}
    yield "sharded", _config(walk, runs, method="openonerec_rl", kl_coef=0.1, **small)
    yield "sharded, one prompt", _config(walk, runs, prompts_per_step=1)
    yield "sharded, mini-batches", _config(walk, runs, method="recast", mini_batch_rows=5, **small)
    lora = LoRAConfig(rank=2)
    yield "sharded, adapters", _config(walk, runs, method="openonerec_rl", kl_coef=0.1, lora=lora)


def one_step(setup: StepSetup) -> tuple[Metrics, Tensor]:
    """The metrics of the first step and its gradient; the weights stay as they are."""
    model, optimizer = setup.policy.model, setup.actor.optimizer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = LoopState(model=model, optimizer=optimizer, keep="last")
    torch.manual_seed(3)
    metrics = learn(setup, state, roll_out(setup, state)) | state.counts
    model.load_state_dict(before)
    optimizer.state.clear()
    gradients = [full(p.grad).flatten() for p in model.parameters() if p.grad is not None]
    measured = ("time/", "memory/", "actor/padding", "cpu_s")  # by the machine, and by the parts
    metrics = {name: x for name, x in metrics.items() if not name.startswith(measured)}
    return metrics, torch.cat(gradients or [torch.zeros(0)])


def compare(walk: Path, runs: Path) -> dict[str, Any]:
    """By case: how far the gradients are apart, relative to their norm; that norm; whether both
    ranks have the same; the metrics of one rank and of two."""
    found = {}
    _, policy, task = load_step(_config(walk, runs))
    for name, config, given in cases(walk, runs):
        method = in_space_of(resolve(config, given), config, policy)
        batches = draw_batches(config, task, config.max_rollout_batches)
        setup = set_up_step(config, method, policy, task, batches)
        two, gradient = one_step(setup)
        one, wanted = two, gradient
        if is_first():
            with alone():
                one, wanted = one_step(setup)
        same = all(torch.equal(gradient, other) for other in gathered(gradient))
        norm = float(wanted.norm())
        found[name] = (float((gradient - wanted).norm()) / norm, norm, same, one, two)
    return found


def full(values: Tensor) -> Tensor:
    return values.full_tensor() if isinstance(values, DTensor) else values


def compare_sharded(walk: Path, runs: Path) -> dict[str, Any]:
    """The same of two ranks that share the weights."""
    found = {}
    for name, config in sharded_cases(walk, runs):
        both = []
        for fsdp_size in (2, 1):
            method, policy, task = load_step(config)
            batches = draw_batches(config, task, config.max_rollout_batches)
            setup = set_up_step(config, method, policy, task, batches, fsdp_size=fsdp_size)
            if fsdp_size == 2:
                both.append(one_step(setup))
            elif is_first():
                with alone():
                    both.append(one_step(setup))
        (two, gradient), (one, wanted) = both[0], both[-1]
        norm = float(wanted.norm())
        found[name] = (float((gradient - wanted).norm()) / norm, norm, True, one, two)
    return found


def write_lists(walk: Path, file: Path) -> None:
    """Published lists of the walk's test rows, each of its target alone."""
    catalog, source = load_catalog(walk / "catalog"), load_source(str(walk / "data"))
    task = HistoryTask(interactions=source, catalog=catalog, window=1)
    names = ["".join(map(catalog.names.name, range(3), sid)) for sid in catalog.codes.tolist()]
    rows = task.rows("test")
    pasts, targets = history(source, rows, 100).tolist(), task.targets(rows)[:, 0].tolist()
    entries = [
        {
            "input": " ".join(names[item] for item in past if item >= 0),
            "output": names[target],
            "predict": [names[target]],
        }
        for past, target in zip(pasts, targets, strict=True)
    ]
    file.write_text(json.dumps(entries))


def embed_on_both(encoder: Path) -> bool:
    """Whether texts of three batches have the vectors that one rank gives them, bit for bit."""
    texts = [f"{one} {other}" for one in WORDS[4:] for other in WORDS[4:]]
    texts = (texts * 3 * _BATCH_TEXTS)[: 3 * _BATCH_TEXTS]
    vectors = embed_texts(texts, str(encoder)).vectors
    with alone():
        return torch.equal(vectors, embed_texts(texts, str(encoder)).vectors)


def stratify(walk: Path, output: Path) -> None:
    policy = str(walk / "sft" / "policy")
    stratify_policy(
        StratifyConfig(
            data=str(walk / "data"), policy=policy, ranker="popularity", output=str(output), rows=30
        )
    )


class EndedError(Exception):
    """What ends a run before its time."""


def begin(config: RLConfig, step: int) -> None:
    """The run up to a step, with a checkpoint behind every one."""

    def learn_until(setup: StepSetup, state: LoopState, found: Any) -> Metrics:
        if state.step == step:
            raise EndedError
        return learn(setup, state, found)

    rl.learn, keeper._MOST = learn_until, float("inf")
    try:
        train_rl(config)
    except EndedError:
        pass
    finally:
        rl.learn = learn


def run_list(walk: Path, root: Path) -> tuple[dict[str, Metrics], list[list[str]]]:
    """What a list of cells returned, to all alike; those that each rank followed another in."""
    followed = []

    def follow(cell: Cell) -> None:
        followed.append(cell.name)
        FOLLOW(cell)

    experiment.follow = follow
    returned = experiment.run_cells(root, cells_of(root, walk / "events.csv"))
    assert all(other == returned for other in gathered(returned))
    return returned, gathered(followed)


def main() -> None:
    torch.set_num_threads(1)
    join()
    walk, runs = map(Path, sys.argv[1:])
    found = compare(walk, runs) | compare_sharded(walk, runs)
    for name, settings in RL_RUNS.items():
        config = rl_config(walk, runs / name, **settings)
        if config.fsdp_size > 1:  # by ranks that share the weights, then by ranks that do not
            begin(config, step=2)
            config = replace(config, resume=True, fsdp_size=1)
        train_rl(config)
    for fsdp_size in (1, 2):
        train_sft(sft_config(walk, runs / f"sft{fsdp_size}", **SFT_RUN, fsdp_size=fsdp_size))
    data, catalog, lists = walk / "data", walk / "catalog", runs / "lists.json"
    evaluate_policy(
        EvaluateConfig(
            data=str(data), catalog=str(catalog), predictions=str(lists), output=str(runs / "lists")
        )
    )
    stratify(walk, runs / "strata")
    is_same = all(gathered(embed_on_both(runs / "encoder")))
    returned, followed = run_list(walk, runs / "list")
    if is_first():
        (runs / "texts.json").write_text(json.dumps(is_same))
        (runs / "list.json").write_text(json.dumps([returned, followed]))
        print(json.dumps(found))
    leave()


if __name__ == "__main__":
    main()
