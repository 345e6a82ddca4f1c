"""`recast compare` through the command line on the small walk: what it writes, says and refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from small_walk import failure, metric_lines

from recast import cli
from recast.cell import settings_of
from recast.compare import compare_methods, rows_of, run_cell
from recast.config import CompareConfig, QuickstartConfig
from recast.evaluation.disk import read_ranks
from recast.evaluation.metrics import row_metrics
from recast.methods.check import check_methods
from recast.quickstart import rows_of as quickstart_rows
from recast.tabulate import START
from recast.types import RecastError

ROOT = Path(__file__).parent.parent
PRIMARY = "item/ndcg@10"
RECIPE = """\
data: {walk}/data
policy: {walk}/sft/policy
output: {out}
methods: recast,rere
rl: {{rere: {rere}}}
seeds: 2
group_sizes: [4]
lrs: [1e-4, 1e-2]
steps: 2
prompts_per_step: 4
eval_every: 1
valid_rows: 30
expected: {{recast: {{item/ndcg@10: [0.0, 1.0]}}}}
"""
RERE = "method: rere\ngroup_size: 16\nschedule: cosine\nkl_coef: 0.01\n"
ROWS = ["start", "recast", "rere", "sft_continued"]


@pytest.fixture(scope="module")
def recipe(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that was run."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "rere.yaml").write_text(RERE)
    recipe = RECIPE.format(walk=walk, out=folder / "out", rere=folder / "rere.yaml")
    (folder / "small.yaml").write_text(recipe)
    cli.main(["compare", str(folder / "small.yaml"), "--workers=1", "--verify"])
    return folder / "small.yaml"


def results_of(recipe: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recipe.parent / "out" / "results.json").read_text())
    return found


def config_of(recipe: Path, walk: Path, **changes: Any) -> CompareConfig:
    settings = {"methods": ["recast", "rere"], "seeds": 2, "group_sizes": [4], "lrs": [1e-4, 1e-2]}
    settings |= {"steps": 2, "prompts_per_step": 4, "eval_every": 1, "valid_rows": 30}
    settings |= {"policy": [str(walk / "sft" / "policy")], "workers": 1} | changes
    if "rere" in settings["methods"]:
        settings = {"rl": {"rere": str(recipe.parent / "rere.yaml")}} | settings
    return CompareConfig(data=str(walk / "data"), output=str(recipe.parent / "out"), **settings)


def test_every_row_has_its_trials_and_seeds(recipe: Path) -> None:
    out, results = recipe.parent / "out", results_of(recipe)
    assert list(results["methods"]) == ROWS
    assert results["against"] == ["start", "sft_continued", "recast"]
    for name in ROWS[1:]:
        row = results["methods"][name]
        tried = {trial["lr"]: trial["value"] for trial in row["trials"]}
        assert list(tried) == [1e-4, 1e-2]
        assert tried[row["lr"]] == max(tried.values())
        runs = sorted(run.name for run in (out / "rl" / name).iterdir() if run.name[0] != ".")
        assert runs == sorted([f"lr_{lr:g}_seed_0" for lr in tried] + [f"lr_{row['lr']:g}_seed_1"])
        for lr, value in tried.items():
            lines = metric_lines(out / "rl" / name / f"lr_{lr:g}_seed_0")
            assert lines[-1]["valid/ndcg@10"] == value
        assert [point["seeds"] for point in row["curve"]["ndcg@10"]] == [2, 2, 2]
        assert {"valid/kl", "actor/grad_norm", "cpu_s", "memory/peak_gb"} <= row["training"].keys()
        assert {"time/update_s", "tokens/update", "memory/update_gb"} <= row["training"].keys()
    assert results["methods"]["recast"]["training"]["rollouts"] == 2 * 4 * 4


def test_the_numbers_are_those_of_the_folders(recipe: Path) -> None:
    out, results = recipe.parent / "out", results_of(recipe)
    values = {
        name: [
            float(row_metrics(read_ranks(folder))[PRIMARY].mean())
            for folder in sorted((out / "test" / name).iterdir())
        ]
        for name in ROWS
    }
    assert list(map(len, values.values())) == [1, 2, 2, 2]
    for name, row in results["methods"].items():
        found = row["compared"]
        mean = sum(values[name]) / len(values[name])
        assert found["metrics"][PRIMARY]["mean"] == pytest.approx(mean)
        if name != "start":
            gap = found["against"]["start"][PRIMARY]
            assert gap["mean"] == pytest.approx(mean - values["start"][0])
            assert 0 < gap["p"] <= gap["p_holm"] <= 1


def test_prompts_are_the_same_for_all_methods_of_a_seed(recipe: Path, walk: Path) -> None:
    import polars as pl

    out, results = recipe.parent / "out", results_of(recipe)
    for seed in (0, 1):
        rows = [
            pl.read_parquet(
                out
                / "rl"
                / name
                / f"lr_{results['methods'][name]['lr']:g}_seed_{seed}"
                / "rollouts"
                / "*.parquet"
            )["row_id"].to_list()
            for name in ("recast", "rere")
        ]
        assert rows[0] == rows[1]


def test_again_nothing_runs_and_test_was_read_once(
    recipe: Path, walk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (recipe.parent / "out" / "results.json").read_bytes()
    text = compare_methods(config_of(recipe, walk))
    said = capsys.readouterr().out.splitlines()
    assert said
    assert all(line.endswith("finished before, not run again") for line in said)
    assert (recipe.parent / "out" / "results.json").read_bytes() == before
    assert text.splitlines()[0] == results_of(recipe)["verdict"][0][: len(text.splitlines()[0])]
    assert len(json.loads((recipe.parent / "out" / "test.json").read_text())) == 1
    assert "ranked\nonce" in text or "ranked once" in text


def test_a_value_outside_of_its_band(recipe: Path, walk: Path) -> None:
    config = config_of(recipe, walk, expected={"rere": {PRIMARY: [0.99, 1.0]}}, verify=True)
    with pytest.raises(RecastError, match=r"item/ndcg@10 of rere is 0.\d+, outside 0.99 to 1: "):
        compare_methods(config)


def test_a_damaged_cell_is_refused(recipe: Path, walk: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe.parent / "out", copy / "out")
    config = replace(config_of(recipe, walk), output=str(copy / "out"))
    lr = results_of(recipe)["methods"]["rere"]["lr"]
    run = copy / "out" / "rl" / "rere" / f"lr_{lr:g}_seed_1"
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines.replace('"valid/ndcg@10": 0', '"valid/ndcg@10": NaN0'))
    with pytest.raises(RecastError, match=r"metrics.jsonl.*: remove .* to run its cell again"):
        compare_methods(config)
    (run / "metrics.jsonl").write_text(lines)
    rows = copy / "out" / "test" / "rere" / "seed_1" / "rows.parquet"
    rows.write_bytes(rows.read_bytes()[:-1])
    with pytest.raises(RecastError, match=r"rows.parquet"):
        compare_methods(config)


def test_numbers_that_a_run_does_not_state(recipe: Path, walk: Path, tmp_path: Path) -> None:
    shutil.copytree(recipe.parent / "out", tmp_path / "out")
    mark = tmp_path / "out" / "rl" / "recast" / "lr_0.0001_seed_0" / "cell.json"
    record = json.loads(mark.read_text())
    for returned in ({}, record["returned"] | {"valid/ndcg@10": float("nan")}):
        mark.write_text(json.dumps(record | {"returned": returned}))
        with pytest.raises(
            RecastError, match=r"valid/ndcg@10 in .*cell.json is (None|nan): remove"
        ):
            compare_methods(replace(config_of(recipe, walk), output=str(tmp_path / "out")))


def test_another_judgement_or_choice_is_refused_and_nothing_written(
    recipe: Path, walk: Path
) -> None:
    out, lr = recipe.parent / "out", results_of(recipe)["methods"]["recast"]["lr"]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    for changes in ({"beam_width": 20}, {"lrs": [1e-4 if lr == 1e-2 else 1e-2]}):
        with pytest.raises(RecastError, match=r"is finished with .*: choose another output"):
            compare_methods(config_of(recipe, walk, **changes))
        assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["recast", "rer"]}, "method is 'rer': did you mean 'rere'"),
        ({"methods": ["recast", "recast"]}, "methods is .*one is there twice"),
        ({"ranker": "item_knn"}, "ranker is 'item_knn': none of these methods uses one, leave"),
        ({"methods": ["adagrpo"]}, "give --ranker item_knn, another"),
        ({"lrs": [1e-4, 1.0000001e-4]}, "lrs is .*: two are alike in six digits"),
        ({"device": "tpu"}, "device is 'tpu': torch .* finds no such device here"),
        ({"expected": {"recast": {"item/ndcg@20": [0, 1]}}}, "is 'item/ndcg@20': choose from item"),
        ({"lrs": [0.0]}, "lrs is .*: give positive rates"),
        ({"group_sizes": [1]}, "group_size is 1: method 'recast' needs 2"),
        ({"policy": ["a", "b", "c"]}, "policy is .*give one, or one for each of the 2 seeds"),
        ({"steps": 3}, r"is finished with .*steps 2.*; this list has .*steps 3"),
        ({"expected": {"recas": {PRIMARY: [0, 1]}}}, "expected is 'recas': the rows are start, "),
        ({"expected": {"recast": {PRIMARY: [1, 0]}}}, "expected.recast.item/ndcg@10 is"),
        ({"rl": {"mine": {"lr": 1e-4}}}, "rl.mine is 'given': name it in methods"),
        ({"rl": {"rere": {"kl_coeff": 1}}}, "rl.rere is 'kl_coeff': recast rl has no such"),
        ({"rl": {"rere": {"lr": 1e-3}}}, "rl.rere is 'lr': all rows have that of the comparison"),
        ({"rl": {"rere": "no.yaml"}}, "rl.rere is 'no.yaml': No such file .*: check the path"),
        ({"rl": {"rere": ""}}, "rl.rere is '': give a name"),
        ({"rl": {"rere": {"method": None}}}, "rl.rere.method is None: give the name of a method"),
        ({"rl": {"rere": {"method": "recast"}}}, "rl.rere: method is 'recast': a row of that name"),
        ({"rl": {"rere": {"kl_coef": -1.0}}}, "rl.rere: kl_coef is -1.0: give"),
        (
            {"rl": {"rere": {"reward": "semantic", "embeddings": "no"}}},
            "rl.rere: no holds no embeddings",
        ),
        ({"methods": ["start"], "rl": {"start": {"method": "rere"}}}, "methods is 'start': every"),
        (
            {"methods": ["mine"], "rl": {"mine": {"kl_coef": 0.0}}},
            "rl.mine: method is None: a row of your own says which method",
        ),
        ({"rl": {"rere": {"method": "rer"}}}, "method is 'rer': did you mean"),
        ({"rl": {"rere": {"signal": "no_such"}}}, "signal is 'no_such'"),
        ({"methods": ["a/b"], "rl": {"a/b": {"method": "rere"}}}, "methods is 'a/b': it names a"),
        ({"expected": {}, "verify": True}, "verify is True: the recipe expects nothing"),
    ],
)
def test_what_cannot_be_compared(
    recipe: Path, walk: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecastError, match=said):
        compare_methods(config_of(recipe, walk, **changes))


def test_a_recipe_with_an_unknown_key(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(recipe.read_text().replace("seeds: 2", "seed: 2"))
    line, code = failure(capsys, "compare", str(file))
    assert line == f"{file} has the unknown key 'seed': did you mean seeds?"
    assert code == 2


def test_a_row_in_a_file_names_no_code(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "rl.rere.signal is 'mine:f': a file names no code to run, give this row by --rl if you "
    (tmp_path / "row.yaml").write_text("signal: mine:f\n")
    there = str(recipe.parent / "rere.yaml")
    for own in (tmp_path / "row.yaml", "{signal: mine:f}"):
        file = tmp_path / "recipe.yaml"
        file.write_text(recipe.read_text().replace(there, str(own)))
        line, code = failure(capsys, "compare", str(file))
        assert line.endswith(f"{said}trust it")
        assert code == 2


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "recipes").glob("*.yaml")), ids=str)
def test_our_recipes_are_settings(file: Path) -> None:
    if file.stem == "quickstart":
        config = cli.configure("quickstart", [str(file)])
        assert config == QuickstartConfig(expected=config.expected)  # what `make quickstart` runs
        assert set(config.expected) == set(quickstart_rows("sample"))
        return
    config = cli.configure("compare", [str(file)])
    assert config.expected.keys() == {START, *(row.name for row in rows_of(config))}
    check_methods(config)


@pytest.mark.parametrize("folder", ["rere_titles", "minionerec"])
def test_settings_of_a_release_are_a_row(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shared = ["--data=data", "--policy=policy", "--output=out"]
    given = cli.configure("compare", [f"examples/recipes/{folder}/compare.yaml", *shared])
    check_methods(given)
    row = run_cell(given, rows_of(given)[0], *given.lrs, 0, "search").config
    alone = cli.configure("rl", [f"--config=examples/recipes/{folder}/rl.yaml", *shared])
    changed = {key for key in asdict(row) if getattr(row, key) != getattr(alone, key)}
    assert changed <= {"output", "eval_every", "valid_metrics", "threads"}


def test_mini_batches_are_of_those_that_roll_out(recipe: Path, walk: Path) -> None:
    config = config_of(recipe, walk, mini_batch_rows=8)
    cells = [run_cell(config, row, 1e-4, 0, "search") for row in rows_of(config)]
    sizes = {cell.config.method: settings_of(cell)["mini_batch_rows"] for cell in cells}
    assert sizes == {"recast": 8, "rere": 8, "sft_continued": None}


def test_a_row_has_settings_of_its_own(recipe: Path, walk: Path) -> None:
    mine = {"method": "recast", "signal": "grpo", "sampler": "beam", "nll_coef": 0.1}
    settings = {"sampler": "dynamic", "rl": {"mine": mine}, "methods": ["recast", "mine"]}
    config = config_of(recipe, walk, **settings)
    check_methods(config)
    recast, own, _ = (run_cell(config, row, 1e-4, 0, "search").config for row in rows_of(config))
    assert own.output.endswith("rl/mine/lr_0.0001_seed_0")
    changed = {key for key in asdict(own) if getattr(own, key) != getattr(recast, key)}
    assert changed == {"output", "signal", "sampler", "nll_coef"}
    assert {key: getattr(own, key) for key in mine} == mine


def test_the_settings_of_a_row_are_in_the_table(recipe: Path) -> None:
    own = {"method": "rere", "schedule": "cosine", "kl_coef": 0.01}
    assert results_of(recipe)["settings"] == {"rere": own}
    said = (recipe.parent / "out" / "results.md").read_text()
    assert "rere with method rere, schedule cosine, kl_coef 0.01." in said


def test_rows_are_named_by_what_tells_them_apart(recipe: Path, walk: Path) -> None:
    config = config_of(recipe, walk, group_sizes=[4, 8], methods=["recast", "sft_continued"])
    assert [row.name for row in rows_of(config)] == ["recast@4", "recast@8", "sft_continued"]
