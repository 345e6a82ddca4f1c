"""The whole walk in one command: MovieLens-100K in, a table that a person can judge out.

Every stage is the verb of the same name and writes a folder of its own below `output`. The tables
are drawn from `results.json`, which holds all of their numbers: `sample` with rollouts by
constrained sampling (the main table), `beam` with rollouts by constrained beam search.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from recast.cell import Cell
from recast.config import (
    BaselinesConfig,
    EvaluateConfig,
    PrepareConfig,
    QuickstartConfig,
    RLConfig,
    SFTConfig,
    TokenizeConfig,
)
from recast.config.baselines import BaselineName
from recast.config.check import Shown
from recast.evaluation.compare import compare
from recast.evaluation.disk import read_ranks
from recast.evaluation.results import Results, save_tables
from recast.experiment import follow, run_cells
from recast.methods.table import METHODS
from recast.report.table import markdown, plain
from recast.run.files import staged_file
from recast.run.fingerprint import meet
from recast.run.lead import led
from recast.run.space import require_space
from recast.tabulate import refuse_outside, refuse_unknown
from recast.types import Metrics, RecastError

COMPARED = ("openonerec_rl", "recast")
"""Methods with rollouts; each runs once per sampler of `SAMPLERS`."""

Sampler = Literal["sample", "beam"]

SAMPLERS: dict[Sampler, str] = {
    "sample": "constrained sampling",
    "beam": "constrained beam search",
}

FITS: dict[str, list[Shown]] = {"": ["train"], "_rl": ["train", "rl"]}
"""Both fits of what needs no rollouts: a suffix of its folders, the events that it was shown. RL
goes on from the first, on the events that the first has not seen."""

TOKENIZE_SETTINGS: dict[str, Any] = {
    "items_as": "item",
    "codebook_size": 32,
    "collaborative_weight": 1.0,
}
SFT_SETTINGS: dict[str, Any] = {
    "backwards_frac": 0.3,
    "window": 12,
    "batch_windows": 32,
    "lr": 2e-3,
    "dropout": 0.2,
    "layer_dropout": 0.2,
    "ema": 0.99,
}
"""Both chosen on validation (docs/log.md); on this data the order of events says little."""

RL_LR = {"sft_continued": 1e-5, "openonerec_rl": 3e-5, "recast": 1e-5}
"""Each method's best on the validation rows of those tried, see docs/log.md."""

AGAINST = ("item-kNN (train + rl)", "SFT (train)", "SFT (train + rl)")
"""What every row is compared with: the best that was shown the same events, and the start and its
control of RL."""

_BYTES = 40_000_000  # of a whole run, about; half of it the votes of the item-kNN
_COSTS = ("rollouts", "cpu_s", "optimizer_steps")


def quickstart(config: QuickstartConfig) -> str:
    """Run the walk into `config.output` and return both tables as text; what an earlier run of the
    same settings has finished there is not run again.

    Test rows are ranked once, by finished models; everything is chosen on validation rows. With
    `verify` raises `RecastError` for a value outside of its band.
    """
    meet(config, QuickstartConfig, goes_on=True)
    return led(partial(_walk, config), follow)


def _walk(config: QuickstartConfig) -> str:
    refuse_unknown(config.expected, list(rows_of("sample")), EvaluateConfig.beam_width)
    out = Path(config.output)
    if config.resume and not (out / "config.yaml").is_file():
        raise RecastError(f"{out} holds no quickstart that was begun: start without --resume")
    if not out.exists():
        require_space(out, _BYTES)
    settings = {k: v for k, v in asdict(config).items() if k not in ("verify", "expected")}
    metrics = run_cells(out, cells_of(config), settings)
    results: dict[str, Results] = {
        sampler: tabulate(out, metrics, sampler, config.seed) for sampler in SAMPLERS
    }
    text = _write_tables(results, out)
    if config.verify:
        table = results["sample"].methods.items()
        values = {name: {k: m.value for k, m in row.metrics.items()} for name, row in table}
        refuse_outside(config.expected, values)
    return text


def cells_of(config: QuickstartConfig) -> list[Cell]:
    """Data, items, baselines and SFT in both fits, every RL run, and the evaluation of each.

    The estimates are for 2 idle cores.
    """
    out = Path(config.output)
    data, catalog, seed = str(out / "data"), str(out / "catalog"), config.seed
    prepare = PrepareConfig(output=data, interactions=config.interactions)
    tokenize = TokenizeConfig(data=data, output=catalog, **TOKENIZE_SETTINGS)
    cells = [
        Cell(name="data", config=prepare, estimate_s=5.0),
        Cell(name="items", config=tokenize, estimate_s=3.0),
    ]
    judged: dict[str, tuple[str, dict[str, Any]]] = {}
    for suffix, splits in FITS.items():
        name = f"baselines{suffix}"
        only: list[BaselineName] = ["item_knn", "sasrec"]
        baselines = BaselinesConfig(
            data=data,
            output=str(out / name),
            splits=splits,
            only=["popularity", *only] if suffix else only,
            epochs=2 * config.epochs,
            seed=seed,
        )
        cell = Cell(name=name, config=baselines, unit="fits", estimate_s=25 + 4.0 * config.epochs)
        cells.append(replace(cell, stage="baselines"))
        for baseline in baselines.only:
            folder = f"{baseline}/policy" if baseline == "sasrec" else baseline
            judged[f"{baseline}{suffix}"] = f"{out / name}/{folder}", {}
    for suffix, splits in FITS.items():
        name = f"sft{suffix}"
        sft = SFTConfig(
            data=data,
            catalog=catalog,
            output=str(out / name),
            splits=splits,
            epochs=config.epochs,
            seed=seed,
            **SFT_SETTINGS,
        )
        cells.append(
            Cell(name=name, config=sft, stage="sft", unit="fits", estimate_s=5.0 * config.epochs)
        )
        judged[name] = f"{out / name}/policy", {}
    runs: list[tuple[str, Sampler | None]] = [("sft_continued", None)]
    runs += [(method, sampler) for sampler in SAMPLERS for method in COMPARED]
    for method, sampler in runs:
        name = run_name(method, sampler)
        rl = RLConfig(
            data=data,
            policy=str(out / "sft" / "policy"),
            output=str(out / "rl" / name),
            method=method,
            sampler=sampler,
            steps=config.steps,
            lr=RL_LR[method],
            seed=seed,
        )
        seconds = 0.1 * config.steps
        cells.append(Cell(name=name, config=rl, stage="rl", unit="runs", estimate_s=seconds))
        judged[name] = f"{out}/rl/{name}/policy", {}
    guide = f"item_knn:{out / 'baselines_rl'}"
    judged["mixture"] = f"{out}/sft_rl/policy", {"decoder": "mixture", "guide": guide}
    for name, (policy, settings) in judged.items():
        evaluation = EvaluateConfig(
            data=data, policy=policy, output=str(out / "eval" / name), **settings
        )
        cell = Cell(name=f"evaluate {name}", config=evaluation, unit="rankings", estimate_s=8.0)
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


def rows_of(sampler: str) -> dict[str, str]:
    """Label of each row of a sampler's table -> name of its evaluation."""
    names = {"Popularity": "popularity_rl"}
    for kind, label in (("item_knn", "item-kNN"), ("sasrec", "SASRec"), ("sft", "SFT")):
        for suffix, splits in FITS.items():
            names[f"{label} ({' + '.join(splits)})"] = f"{kind}{suffix}"
    names |= {"SFT+kNN (train + rl)": "mixture", METHODS["sft_continued"].label: "sft_continued"}
    names |= {METHODS[method].label: run_name(method, sampler) for method in COMPARED}
    return names


def tabulate(out: Path, metrics: dict[str, Metrics], sampler: str, seed: int) -> Results:
    """The table of one sampler: baselines, SFT and its continuation, then the compared methods.

    `metrics` is what the cells of `cells_of` returned.
    """
    names = rows_of(sampler)
    return compare(
        {label: read_ranks(out / "eval" / name) for label, name in names.items()},
        AGAINST,
        training_seeds=[seed],
        extras={label: _cost(name, metrics) for label, name in names.items()},
    )


def _cost(name: str, metrics: dict[str, Metrics]) -> Metrics:
    """What a row of the table cost to make, and a policy's share of invalid beams."""
    cost = {key: metrics[name][key] for key in _COSTS if name in metrics and key in metrics[name]}
    baseline = name.removesuffix("_rl")
    fitted = metrics.get(f"baselines{name.removeprefix(baseline)}", {})
    if (seconds := fitted.get(f"{baseline}/cpu_s")) is not None:
        cost["cpu_s"] = seconds
    if (frac := metrics.get(f"evaluate {name}", {}).get("invalid_frac")) is not None:
        cost["invalid_frac"] = frac
    return cost
