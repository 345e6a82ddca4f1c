"""The whole walk in one command: MovieLens-100K in, a table that a person can judge out.

Every stage is the verb of the same name and writes a folder of its own below `output`. The tables
are drawn from `results.json`, which holds all of their numbers: `sample` with rollouts by
constrained sampling (the main table), `beam` with rollouts by constrained beam search.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from recast.config import (
    EvaluateConfig,
    PrepareConfig,
    QuickstartConfig,
    RLConfig,
    SFTConfig,
    TokenizeConfig,
)
from recast.data.folder import data_hash
from recast.data.folder import describe as describe_data
from recast.data.prepare import prepare
from recast.evaluation.compare import compare
from recast.evaluation.metrics import PRIMARY, Ranks, read_ranks, row_metrics, write_evaluation
from recast.evaluation.rank import evaluate_policy, rank_scores, sample_rows
from recast.evaluation.results import Results, save_tables
from recast.items.card import describe as describe_catalog
from recast.items.catalog import Catalog
from recast.items.tokenize import tokenize
from recast.methods.table import METHODS
from recast.policy.baselines import FIT_SPLITS, Scorer, item_knn, popularity, tune_item_knn
from recast.policy.threads import choose_threads
from recast.report.table import markdown, plain
from recast.rl import train_rl
from recast.run.files import staged_file
from recast.run.log import RunLog
from recast.sft import train_sft
from recast.types import Interactions, Metrics

COMPARED = ("openonerec_rl", "recast")
"""Methods with rollouts; each runs once per sampler of `SAMPLERS`."""

Sampler = Literal["sample", "beam"]

SAMPLERS: dict[Sampler, str] = {
    "sample": "constrained sampling",
    "beam": "constrained beam search",
}

TOKENIZE_SETTINGS: dict[str, Any] = {"balance": True}
"""Half the collisions of plain k-means here, the same quality on validation (docs/log.md)."""

SFT_SETTINGS: dict[str, Any] = {"backwards_frac": 0.3}
"""Chosen on validation: on this data the order of events says little (docs/log.md)."""

RL_LR = {"sft_continued": 1e-5, "openonerec_rl": 3e-5, "recast": 1e-5}
"""Each method's best on the validation rows of those tried, see docs/log.md."""

ESTIMATES_S = {
    "data": 5.0,
    "items": 15.0,
    "baselines": 20.0,
    "sft": 10.0,
    "rl": 0.2,
    "evaluate": 15.0,
}
"""Seconds on 2 idle cores: per epoch of SFT, per step of RL, per evaluated policy."""


def quickstart(config: QuickstartConfig) -> str:
    """Run the walk into `config.output` and return both tables as text.

    Test rows are ranked once, by finished models; everything is chosen on validation rows.
    """
    out = Path(config.output)
    runs: list[tuple[str, Sampler | None]] = [("sft_continued", None)]
    runs += [(method, sampler) for sampler in SAMPLERS for method in COMPARED]
    with RunLog(out, asdict(config)) as log:
        log.plan(_plan(config, len(runs)))
        interactions, catalog = _data_and_items(config, out, log)
        with log.stage("baselines", total=1, estimate_s=ESTIMATES_S["baselines"]):
            ranks, extras = rank_baselines(interactions, catalog, out / "eval", log)
        cost, threads = _train(config, out, runs, log)
        estimate_s = ESTIMATES_S["evaluate"] * len(cost)
        with log.stage("evaluate", total=len(cost), estimate_s=estimate_s) as stage:
            for name, metrics in cost.items():
                folder = out / ("sft" if name == "sft" else f"rl/{name}") / "policy"
                ranks[name], extras[name] = rank_on_test(
                    str(out / "data"), folder, out / "eval" / name, metrics, threads
                )
                stage.advance()
        results: dict[str, Results] = {
            sampler: tabulate(ranks, extras, sampler, config.seed) for sampler in SAMPLERS
        }
        return _write_tables(results, out)


def _plan(config: QuickstartConfig, num_runs: int) -> list[tuple[str, float]]:
    """The stages and their seconds."""
    rl_s = ESTIMATES_S["rl"] * config.steps * num_runs
    num_policies = num_runs + 1
    return [
        ("data", ESTIMATES_S["data"]),
        ("items", ESTIMATES_S["items"]),
        ("baselines", ESTIMATES_S["baselines"]),
        ("sft", ESTIMATES_S["sft"] * config.epochs),
        (f"rl, {num_runs} runs", rl_s),
        (f"evaluate, {num_policies} policies", ESTIMATES_S["evaluate"] * num_policies),
    ]


def _data_and_items(
    config: QuickstartConfig, out: Path, log: RunLog
) -> tuple[Interactions, Catalog]:
    data, folder = str(out / "data"), str(out / "catalog")
    with log.stage("data", total=1, estimate_s=ESTIMATES_S["data"]):
        interactions = prepare(PrepareConfig(output=data, interactions=config.interactions))
    log.environment(data_hash(data))
    log.say(describe_data(data))
    with log.stage("items", total=1, estimate_s=ESTIMATES_S["items"]):
        catalog = tokenize(TokenizeConfig(data=data, output=folder, **TOKENIZE_SETTINGS))
    log.say(describe_catalog(folder))
    return interactions, catalog


def _train(
    config: QuickstartConfig, out: Path, runs: list[tuple[str, Sampler | None]], log: RunLog
) -> tuple[dict[str, Metrics], int | None]:
    """SFT and every RL run from it: what each cost, and the threads they used."""
    sft = SFTConfig(
        data=str(out / "data"),
        catalog=str(out / "catalog"),
        output=str(out / "sft"),
        epochs=config.epochs,
        seed=config.seed,
        **SFT_SETTINGS,
    )
    cost = {"sft": train_sft(sft, log)}
    threads = None  # measured by the first run and kept, so that CPU seconds compare
    for method, sampler in runs:
        rl = RLConfig(
            data=str(out / "data"),
            policy=str(out / "sft" / "policy"),
            output=str(out / "rl" / run_name(method, sampler)),
            method=method,
            sampler=sampler,
            steps=config.steps,
            lr=RL_LR[method],
            seed=config.seed,
            threads=threads,
        )
        cost[run_name(method, sampler)] = train_rl(rl, log)
        threads = torch.get_num_threads()
    return cost, threads


def _write_tables(results: dict[str, Results], out: Path) -> str:
    """`results.json` and `results.md`; returns the tables as text."""
    save_tables(results, out / "results.json")
    titles = {sampler: f"Rollouts by {words}" for sampler, words in SAMPLERS.items()}
    with staged_file(out / "results.md") as file:
        pages = [f"## {titles[name]}\n\n{markdown(results[name])}" for name in SAMPLERS]
        file.write_text("\n".join(pages))
    return "\n".join(plain(results[sampler], title) for sampler, title in titles.items())


def run_name(method: str, sampler: str | None) -> str:
    """Name of a run and of its evaluation; sampling is the main table and needs no suffix."""
    return f"{method}_beam" if sampler == "beam" else method


def rank_baselines(
    interactions: Interactions, catalog: Catalog, folder: Path, log: RunLog
) -> tuple[dict[str, Ranks], dict[str, Metrics]]:
    """Popularity and an item-kNN tuned on validation rows, ranked on the test rows."""
    valid = sample_rows(interactions.rows("valid"), 2000)
    test = interactions.rows("test")

    def quality(scorer: Scorer) -> float:
        return float(row_metrics(rank_scores(scorer, interactions, catalog, valid))[PRIMARY].mean())

    choose_threads(lambda: quality(item_knn(interactions)), None)
    started = time.process_time()
    knn, settings, value = tune_item_knn(interactions, quality)
    cpu_s = time.process_time() - started
    log.say(f"item-kNN: validation NDCG@10 {value:.4f} with {settings}")
    ranks = {}
    for name, scorer in (("popularity", popularity(interactions)), ("item_knn", knn)):
        ranks[name] = rank_scores(scorer, interactions, catalog, test, events_seen=FIT_SPLITS)
        facts = {"split": "test", "split_name": interactions.split_name}
        write_evaluation(ranks[name], folder / name, facts)
    return ranks, {"popularity": {}, "item_knn": {"cpu_s": cpu_s}}


def rank_on_test(
    data: str, policy: Path, folder: Path, cost: Metrics, threads: int | None
) -> tuple[Ranks, Metrics]:
    """Evaluate a policy on the test rows; its ranks, and what it cost to make."""
    found = evaluate_policy(
        EvaluateConfig(data=data, policy=str(policy), output=str(folder), threads=threads)
    )
    extras = {key: cost[key] for key in ("rollouts", "cpu_s", "optimizer_steps")}
    return read_ranks(folder), extras | {"invalid_frac": found["invalid_frac"]}


def tabulate(
    ranks: dict[str, Ranks],
    extras: dict[str, Metrics],
    sampler: str,
    seed: int,
) -> Results:
    """The table of one sampler: baselines, SFT and its continuation, then the compared methods."""
    names = {
        "Popularity": "popularity",
        "item-kNN": "item_knn",
        "SFT": "sft",
        METHODS["sft_continued"].label: "sft_continued",
    }
    names |= {METHODS[method].label: run_name(method, sampler) for method in COMPARED}
    return compare(
        {label: ranks[name] for label, name in names.items()},
        ("SFT", METHODS["openonerec_rl"].label),
        training_seeds=[seed],
        extras={label: extras[name] for label, name in names.items()},
    )
