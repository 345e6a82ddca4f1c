"""The whole walk in one command: MovieLens-100K in, a table that a person can judge out.

Every stage is the verb of the same name and writes a folder of its own below `output`. The tables
are drawn from `results.json`, which holds all of their numbers: `sample` with rollouts by
constrained sampling (the main table), `beam` with rollouts by constrained beam search.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from recast.cell import Cell
from recast.config import (
    EvaluateConfig,
    PrepareConfig,
    QuickstartConfig,
    RLConfig,
    SFTConfig,
    TokenizeConfig,
)
from recast.data.folder import data_hash, load_data
from recast.evaluation.compare import compare
from recast.evaluation.knn_quality import knn_quality
from recast.evaluation.metrics import read_ranks, write_evaluation
from recast.evaluation.rank import rank_scores, sample_rows
from recast.evaluation.results import Results, save_tables
from recast.experiment import run_cells
from recast.items.catalog import Catalog, load_catalog
from recast.methods.table import METHODS
from recast.policy.baselines import FIT_SPLITS, Scorer, fit_item_knn, popularity
from recast.policy.knn_search import tune_item_knn
from recast.policy.threads import choose_threads
from recast.report.table import markdown, plain
from recast.run.doors import enter
from recast.run.files import staged_file
from recast.run.log import RunLog
from recast.run.space import require_space
from recast.types import Interactions, Metrics, RecastError

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

_BYTES = 13_000_000  # of a whole run, measured
_COSTS = ("rollouts", "cpu_s", "optimizer_steps")


def quickstart(config: QuickstartConfig) -> str:
    """Run the walk into `config.output` and return both tables as text; what an earlier run of the
    same settings has finished there is not run again.

    Test rows are ranked once, by finished models; everything is chosen on validation rows.
    """
    enter(config, QuickstartConfig, goes_on=True)
    out = Path(config.output)
    if config.resume and not (out / "config.yaml").is_file():
        raise RecastError(f"{out} holds no quickstart that was begun: start without --resume")
    if not out.exists():
        require_space(out, _BYTES)
    metrics = run_cells(out, cells_of(config), asdict(config))
    results: dict[str, Results] = {
        sampler: tabulate(out, metrics, sampler, config.seed) for sampler in SAMPLERS
    }
    return _write_tables(results, out)


def cells_of(config: QuickstartConfig) -> list[Cell]:
    """Data, items, baselines, SFT, every RL run from it, and the evaluation of each policy.

    The estimates are for 2 idle cores.
    """
    out = Path(config.output)
    data, catalog, seed = str(out / "data"), str(out / "catalog"), config.seed
    prepare = PrepareConfig(output=data, interactions=config.interactions)
    tokenize = TokenizeConfig(data=data, output=catalog, **TOKENIZE_SETTINGS)
    cells = [
        Cell(name="data", config=prepare, estimate_s=5.0),
        Cell(name="items", config=tokenize, estimate_s=15.0),
    ]
    for name, run, seconds in (
        ("popularity", rank_popularity, 0.0),
        ("item_knn", rank_item_knn, 20.0),
    ):
        ranked = BaselineConfig(data=data, catalog=catalog, output=str(out / "eval" / name))
        cells.append(Cell(name=name, config=ranked, run=run, stage="baselines", estimate_s=seconds))
    sft = SFTConfig(
        data=data,
        catalog=catalog,
        output=str(out / "sft"),
        epochs=config.epochs,
        seed=seed,
        **SFT_SETTINGS,
    )
    cells.append(Cell(name="sft", config=sft, estimate_s=10.0 * config.epochs))
    policies = {"sft": str(out / "sft" / "policy")}
    runs: list[tuple[str, Sampler | None]] = [("sft_continued", None)]
    runs += [(method, sampler) for sampler in SAMPLERS for method in COMPARED]
    for method, sampler in runs:
        name = run_name(method, sampler)
        rl = RLConfig(
            data=data,
            policy=policies["sft"],
            output=str(out / "rl" / name),
            method=method,
            sampler=sampler,
            steps=config.steps,
            lr=RL_LR[method],
            seed=seed,
        )
        seconds = 0.2 * config.steps
        cells.append(Cell(name=name, config=rl, stage="rl", unit="runs", estimate_s=seconds))
        policies[name] = str(out / "rl" / name / "policy")
    for name, policy in policies.items():
        judged = EvaluateConfig(data=data, policy=policy, output=str(out / "eval" / name))
        cell = Cell(name=f"evaluate {name}", config=judged, unit="policies", estimate_s=15.0)
        cells.append(replace(cell, stage="evaluate"))
    return cells


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


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """A baseline ranked on the test rows."""

    data: str
    catalog: str
    output: str


def rank_popularity(config: BaselineConfig, log: RunLog) -> Metrics:
    interactions, catalog = load_data(config.data), load_catalog(config.catalog)
    _rank_on_test(popularity(interactions), interactions, catalog, config)
    return {}


def rank_item_knn(config: BaselineConfig, log: RunLog) -> Metrics:
    """An item-kNN tuned on validation rows; returns what the tuning cost."""
    interactions, catalog = load_data(config.data), load_catalog(config.catalog)
    quality = knn_quality(interactions, sample_rows(interactions.rows("valid"), 2000))
    choose_threads(lambda: quality(fit_item_knn(interactions)), None)
    started = time.process_time()
    knn, value = tune_item_knn(interactions, quality)
    cpu_s = time.process_time() - started
    log.say(f"item-kNN: validation NDCG@10 {value:.4f} with {knn.settings}")
    _rank_on_test(knn.scorer, interactions, catalog, config)
    return {"cpu_s": cpu_s}


def _rank_on_test(
    scorer: Scorer, interactions: Interactions, catalog: Catalog, config: BaselineConfig
) -> None:
    rows = interactions.rows("test")
    ranks = rank_scores(scorer, interactions, catalog, rows, events_seen=FIT_SPLITS)
    ranks = replace(ranks, facts=replace(ranks.facts, data=data_hash(config.data)))
    facts = {"split": "test", "split_name": interactions.split_name}
    write_evaluation(ranks, config.output, facts)


def tabulate(out: Path, metrics: dict[str, Metrics], sampler: str, seed: int) -> Results:
    """The table of one sampler: baselines, SFT and its continuation, then the compared methods.

    `metrics` is what the cells of `cells_of` returned.
    """
    names = {
        "Popularity": "popularity",
        "item-kNN": "item_knn",
        "SFT": "sft",
        METHODS["sft_continued"].label: "sft_continued",
    }
    names |= {METHODS[method].label: run_name(method, sampler) for method in COMPARED}
    return compare(
        {label: read_ranks(out / "eval" / name) for label, name in names.items()},
        ("SFT", METHODS["openonerec_rl"].label),
        training_seeds=[seed],
        extras={label: _cost(name, metrics) for label, name in names.items()},
    )


def _cost(name: str, metrics: dict[str, Metrics]) -> Metrics:
    """What a row of the table cost to make, and a policy's share of invalid beams."""
    cost = {key: metrics[name][key] for key in _COSTS if key in metrics[name]}
    if (frac := metrics.get(f"evaluate {name}", {}).get("invalid_frac")) is not None:
        cost["invalid_frac"] = frac
    return cost
