"""`recast baselines`: a data folder in, what every policy has to beat out.

The folder holds `popularity/` and `item_knn/`, which `recast.policy.baseline_folder` reads,
`sasrec/`, a run whose policy writes the one-level `catalog/`, and, once all is there,
`baselines.json` with the validation of each. Each part is there whole or not at all; the same
command goes on behind those that are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from recast.config import BaselinesConfig, ModelConfig, SFTConfig, TokenizeConfig
from recast.config.settings_file import read_settings
from recast.data.folder import data_hash, load_data
from recast.evaluation.baseline import items_alone
from recast.evaluation.knn_quality import knn_quality
from recast.evaluation.metrics import row_metrics
from recast.evaluation.rank import rank_scores, rows_to_rank, sample_rows
from recast.items.catalog import load_catalog
from recast.items.tokenize import tokenize
from recast.policy.baseline_folder import load_baseline, save_baseline
from recast.policy.baselines import Baseline, fit_item_knn, fit_popularity
from recast.policy.knn_search import tune_item_knn
from recast.policy.load import load_policy
from recast.policy.threads import choose_threads
from recast.run.doors import enter
from recast.run.files import alone_in, is_ended_run, refuse_existing, staged_file
from recast.run.log import RunLog
from recast.run.reading import read_json, reading
from recast.sft import train_sft
from recast.types import Interactions, Metrics, RecastError

RESULT = "baselines.json"
LABELS = {"popularity": "Popularity", "item_knn": "item-kNN", "sasrec": "SASRec"}
_MOST = 2**20  # bytes of the result; it has about 1,000

SASREC_MODEL = ModelConfig(
    hidden_size=64,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=64,
    intermediate_size=128,
)
SASREC: dict[str, Any] = {
    "window": 50,
    "batch_windows": 128,
    "lr": 1e-3,
    "weight_decay": 0.01,
    "dropout": 0.2,
    "layer_dropout": 0.2,
    "ema": 0.0,
    "patience": 10,
}
"""One block and one head of width 64, windows of 50 items, dropout .2: the SASRec with a sampled
softmax of github.com/blondered/transformer_benchmark (2309.07602)."""


def fit_baselines(config: BaselinesConfig, log: RunLog | None = None) -> Metrics:
    """Make the baselines that are not yet there. Returns the validation of each, such as
    `item_knn/ndcg@10`, and the CPU seconds that it took.

    The item-kNN is the best on the validation rows of `recast.policy.knn_search`, SASRec its best
    epoch there. `log` is that of an experiment. Raises `RecastError` when the output holds what
    other settings made and when there are no events to learn from.
    """
    enter(config, BaselinesConfig, goes_on=True)
    out = Path(config.output)
    _refuse_other(config, out)
    interactions = load_data(config.data)
    if not len(interactions.rows("train")):
        raise RecastError(f"{config.data} has no user with 2 training events: give more data")
    rows_to_rank(interactions, config.data, "valid")
    with alone_in(out):
        _refuse_other(config, out)
        makers = {
            "popularity": lambda: _popularity(config, interactions),
            "item_knn": lambda: _item_knn(config, interactions),
        }
        found: dict[str, Metrics] = {}
        for name in LABELS:
            if name in makers and name in config.only:
                found[name] = _keep(config, out, name, makers[name])
        if "sasrec" in config.only:
            found["sasrec"] = _sasrec(config, out, interactions.num_items, log)
        content = asdict(config) | {"data_hash": data_hash(config.data), "valid": found}
        with staged_file(out / RESULT) as file:
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return {f"{name}/{key}": value for name, m in found.items() for key, value in m.items()}


def describe(folder: str | Path) -> str:
    """The validation of every baseline, for the screen."""
    file = Path(folder) / RESULT
    with reading(file, "make it again with `recast baselines`"):
        content = read_json(file, dict, _MOST)
        lines = [f"{'':<12}{'HR@10':>8}{'NDCG@10':>10}{'CPU s':>8}"]
        for name, valid in content["valid"].items():
            hits, gain = float(valid["hr@10"]), float(valid["ndcg@10"])
            cost = f"{float(valid['cpu_s']):.0f}" if "cpu_s" in valid else "-"
            lines.append(f"{LABELS[name]:<12}{hits:>8.4f}{gain:>10.4f}{cost:>8}")
        lines.append(
            f"validation, a sample of {content['valid_rows']:,} rows at most that also chose the "
            f"settings; shown {' + '.join(content['splits'])}"
        )
    return "\n".join(lines)


def _refuse_other(config: BaselinesConfig, out: Path) -> None:
    """Raise `RecastError` unless the output is free or was begun with the same settings."""
    if not out.is_dir() or not any(out.iterdir()):
        refuse_existing(out)
        return
    if (out / RESULT).exists():
        raise RecastError(f"{out} holds finished baselines: choose another output")
    if not (out / "config.yaml").is_file():
        refuse_existing(out)
    then, now = read_settings(str(out / "config.yaml")), asdict(config)
    if then.keys() != now.keys():  # another verb's
        refuse_existing(out)
    for name in now:
        if name not in ("output", "threads") and then.get(name) != now[name]:
            raise RecastError(
                f"{name} is {now[name]!r}, {out} was begun with {then.get(name)!r}: go on with "
                "that, or choose another output"
            )


def _begin(config: BaselinesConfig, out: Path) -> None:
    if not (out / "config.yaml").exists():
        with staged_file(out / "config.yaml") as file:
            file.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")


def _keep(
    config: BaselinesConfig, out: Path, name: str, make: Callable[[], tuple[Baseline, Metrics]]
) -> Metrics:
    """The part, made unless it is there."""
    if not (out / name).exists():
        baseline, measured = make()
        _begin(config, out)
        save_baseline(baseline, out / name, config.data, measured)
        return measured
    baseline, facts = load_baseline(out / name)
    _require_same_events(config, out / name, facts["data"])
    splits = list(baseline.splits)
    if (baseline.kind, splits) != (name, config.splits):
        raise RecastError(
            f"{out / name} holds {baseline.kind} shown {' + '.join(splits)}, not {name} shown "
            f"{' + '.join(config.splits)}: remove it, then it is made again"
        )
    measured = facts["measured"]
    return {str(key): float(value) for key, value in measured.items()}


def _require_same_events(config: BaselinesConfig, part: Path, then: str) -> None:
    if then != data_hash(config.data):
        raise RecastError(
            f"{part} was fitted on other events than {config.data} now holds: choose another output"
        )


def _popularity(config: BaselinesConfig, interactions: Interactions) -> tuple[Baseline, Metrics]:
    began = time.process_time()
    baseline = fit_popularity(interactions, config.splits)
    return baseline, _validate(config, interactions, baseline, time.process_time() - began)


def _item_knn(config: BaselinesConfig, interactions: Interactions) -> tuple[Baseline, Metrics]:
    rows = sample_rows(interactions.rows("valid"), config.valid_rows)
    quality = knn_quality(interactions, rows)
    default = fit_item_knn(interactions, splits=config.splits)
    choose_threads(lambda: quality(default), config.threads)
    began = time.process_time()
    baseline, _ = tune_item_knn(interactions, quality, config.splits)
    return baseline, _validate(config, interactions, baseline, time.process_time() - began)


def _validate(
    config: BaselinesConfig, interactions: Interactions, baseline: Baseline, cpu_s: float
) -> Metrics:
    rows = sample_rows(interactions.rows("valid"), config.valid_rows)
    ranks = rank_scores(baseline.scorer, interactions, items_alone(config.data), rows)
    found = row_metrics(ranks, [10], ["item"])
    means = {name.removeprefix("item/"): float(found[name].mean()) for name in found}
    return means | {"cpu_s": cpu_s}


def _sasrec(config: BaselinesConfig, out: Path, num_items: int, log: RunLog | None) -> Metrics:
    """A policy of one-level semantic IDs."""
    _begin(config, out)
    catalog, run = out / "catalog", out / "sasrec"
    if not catalog.exists():
        tokenize(TokenizeConfig(data=config.data, output=str(catalog), num_levels=1))
    elif (levels := load_catalog(catalog).num_levels) != 1:
        raise RecastError(f"{catalog} has {levels} levels, SASRec one: remove it, it is made again")
    is_begun = is_ended_run(run)
    if is_begun or not run.exists():
        sft = SFTConfig(
            data=config.data,
            catalog=str(catalog),
            output=str(run),
            resume=is_begun,
            model=SASREC_MODEL,
            epochs=config.epochs,
            valid_rows=config.valid_rows,
            seed=config.seed,
            threads=config.threads,
            splits=config.splits,
            negatives=config.negatives if config.negatives < num_items else None,
            **SASREC,
        )
        kept = train_sft(sft, log)
        return _named(kept) | {"cpu_s": kept["cpu_s"]}
    remedy = f"remove {run}, then it is made again"
    with reading(run / "env.json", remedy):
        _require_same_events(config, run, read_json(run / "env.json", dict)["data_hash"])
    with reading(run / "config.yaml", remedy):
        splits = read_settings(str(run / "config.yaml"))["splits"]
        if splits != config.splits:
            raise ValueError(f"splits is {splits}, not {config.splits}")
    with reading(run / "policy", remedy):
        if load_policy(run / "policy").catalog.num_levels != 1:
            raise ValueError("it writes several tokens per item")
    return _best_of(run)


def _best_of(run: Path) -> Metrics:
    """Validation of the best epoch of a run that had ended before; nobody kept what it cost."""
    with reading(run / "metrics.jsonl", f"remove {run}, then it is made again"):
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        epochs = [line for line in map(json.loads, lines) if "valid/ndcg@10" in line]
        if not epochs:
            raise ValueError("it has no validation")
        best = _named(max(epochs, key=lambda line: line["valid/ndcg@10"]))
        if not all(0 <= value <= 1 for value in best.values()):
            raise ValueError(f"its best validation is {best}")
        return best


def _named(valid: dict[str, Any]) -> Metrics:
    return {name: float(valid[f"valid/{name}"]) for name in ("hr@10", "ndcg@10")}
