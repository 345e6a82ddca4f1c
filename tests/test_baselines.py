"""`recast baselines` on the small walk: what it makes, that it goes on, and what then reads it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from small_walk import failure, metric_lines, rl_config

from recast.baselines import describe, fit_baselines
from recast.cell import Cell
from recast.config import BaselinesConfig, EvaluateConfig, PrepareConfig
from recast.data.folder import load_data
from recast.data.prepare import prepare
from recast.evaluation.baseline import items_alone
from recast.evaluation.disk import read_ranks
from recast.evaluation.evaluate import evaluate_policy
from recast.evaluation.facts import events_of_guide
from recast.evaluation.knn_quality import knn_quality
from recast.evaluation.metrics import row_metrics
from recast.evaluation.rank import rank_scores
from recast.experiment import run_cells
from recast.policy import baselines
from recast.policy.baseline_folder import load_baseline
from recast.policy.baselines import KNNSettings, fit_item_knn
from recast.policy.load import load_policy
from recast.policy.ranker import load_ranker
from recast.rl import train_rl
from recast.types import RecastError


def config_of(walk: Path, output: Path, **changes: object) -> BaselinesConfig:
    settings = {"data": str(walk / "data"), "output": str(output), "epochs": 3, "threads": 1}
    return BaselinesConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three, of `train` alone."""
    out = tmp_path_factory.mktemp("baselines") / "out"
    fit_baselines(config_of(walk, out, splits=["train"]))
    return out


def test_each_is_made_with_its_validation(walk: Path, made: Path) -> None:
    content = json.loads((made / "baselines.json").read_text())
    assert list(content["valid"]) == ["popularity", "item_knn", "sasrec"]
    knn, facts = load_baseline(made / "item_knn")
    assert facts["measured"] == content["valid"]["item_knn"]
    data = load_data(walk / "data")
    rows = data.rows("valid")
    ranks = rank_scores(knn.scorer, data, items_alone(walk / "data"), rows)
    found = {name: float(v.mean()) for name, v in row_metrics(ranks, [10], ["item"]).items()}
    assert content["valid"]["item_knn"]["ndcg@10"] == pytest.approx(found["item/ndcg@10"])
    # A ring whose next step is one of two: popularity knows nothing, the chain nearly all.
    assert content["valid"]["item_knn"]["ndcg@10"] > 0.7
    assert content["valid"]["popularity"]["ndcg@10"] < 0.3
    assert content["valid"]["sasrec"]["ndcg@10"] > content["valid"]["popularity"]["ndcg@10"]
    lines = describe(made).splitlines()
    assert lines[2].split()[:3] == [
        "item-kNN",
        *(f"{found[f'item/{m}@10']:.4f}" for m in ("hr", "ndcg")),
    ]
    assert lines[-1].endswith("shown train")


def test_the_same_command_goes_on_behind_what_is_there(
    walk: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config_of(walk, tmp_path, splits=["rl", "train"]).splits == ["train", "rl"]
    out = Path(shutil.copytree(made, tmp_path / "out"))
    config = config_of(walk, out, splits=["train"])
    with pytest.raises(RecastError, match="out holds finished baselines: choose another output"):
        fit_baselines(config)
    (out / "baselines.json").unlink()
    with pytest.raises(RecastError, match=r"epochs is 4, .*out was begun with 3: go on with that"):
        fit_baselines(replace(config, epochs=4))
    other = tmp_path / "other"
    prepare(PrepareConfig(interactions=str(walk / "events.csv"), output=str(other), rl_frac=0.2))
    for only in ("popularity", "sasrec"):
        moved = config_of(walk, out, splits=["train"], only=[only], data=str(other))
        (out / "config.yaml").write_text(yaml.safe_dump(asdict(moved)))
        with pytest.raises(RecastError, match=rf"{only} was fitted on other events than .*other n"):
            fit_baselines(moved)
    (out / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    shutil.rmtree(out / "popularity")
    times = {f: f.stat().st_mtime_ns for f in out.rglob("*") if f.is_file()}
    before = json.loads((made / "baselines.json").read_text())["valid"]
    fit_baselines(config)
    assert {f: f.stat().st_mtime_ns for f in times} == times
    after = json.loads((out / "baselines.json").read_text())["valid"]
    assert after["item_knn"] == before["item_knn"]
    for name in ("popularity", "sasrec"):
        assert all(after[name][key] == before[name][key] for key in ("hr@10", "ndcg@10"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").touch()
    args = ["baselines", "--data", str(walk / "data"), "--output", str(mine)]
    held = f"{mine} already holds something: remove it or choose another output"
    assert failure(capsys, *args) == (held, 2)
    (mine / "config.yaml").write_text("splits: [train]\n")
    assert failure(capsys, *args) == (held, 2)


@pytest.mark.parametrize(
    ("there", "changed", "line"),
    [
        ("item_knn", "popularity", "holds popularity shown train, not item_knn shown train: rem"),
        ("catalog", "two_levels", "levels, SASRec one: remove it, it is made again"),
        ("sasrec/policy", None, "sasrec/policy holds no policy (recast.json)"),
        (
            "sasrec/config.yaml",
            "splits: [train, rl]\n",
            "(splits is ['train', 'rl'], not ['train'])",
        ),
        ("sasrec/metrics.jsonl", "{}\n", "is damaged (it has no validation): remove "),
        ("sasrec/metrics.jsonl", '{"valid/ndcg@10": NaN, "valid/hr@10": 1}', "best validation is "),
    ],
)
def test_parts_that_the_same_command_did_not_make_are_refused(
    there: str, changed: str | None, line: str, walk: Path, made: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (out / "baselines.json").unlink()
    place = out / there
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if changed == "two_levels":
        shutil.copytree(walk / "catalog", place)
    elif changed == "popularity":
        shutil.copytree(out / changed, place)
    elif changed:
        place.write_text(changed)
    with pytest.raises(RecastError, match=re.escape(line)):
        fit_baselines(config_of(walk, out, splits=["train"]))
    assert not (out / "baselines.json").exists()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--splits", "train,test"], "--splits is "),
        (["--splits", "rl"], "splits is ['rl']: give train or train,rl"),
        (["--only", "knn"], "--only is "),
        (["--negatives", "0"], "negatives is 0: give 1 or more"),
        (["--splits", "rl, train, test"], "--splits is 'test': give a list of any of train, rl"),
    ],
)
def test_bad_settings_are_one_line(
    args: list[str], line: str, walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, code = failure(
        capsys, "baselines", "--data", str(walk / "data"), f"--output={tmp_path / 'out'}", *args
    )
    assert said.startswith(line)
    assert code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["popularity", "item_knn"])
def test_a_baseline_is_evaluated_as_a_policy_is(
    walk: Path, made: Path, tmp_path: Path, name: str
) -> None:
    data = load_data(walk / "data")
    config = EvaluateConfig(
        data=str(walk / "data"), policy=str(made / name), output=str(tmp_path / "eval")
    )
    with pytest.raises(RecastError, match=r"exact_rows is 5: .*ranks without beams: leave it out"):
        evaluate_policy(replace(config, exact_rows=5))
    means = evaluate_policy(config)
    expected = rank_scores(
        load_baseline(made / name)[0].scorer, data, items_alone(walk / "data"), data.rows("test")
    )
    ranks = read_ranks(tmp_path / "eval")
    assert torch.equal(ranks.items_before, expected.items_before)
    facts = ranks.facts
    assert (facts.events_seen, facts.beam_width, facts.split) == (("train",), None, "test")
    assert means["item/hr@10"] == means["sid/hr@10"]
    told = replace(config, output=str(tmp_path / "told"), decoder="d3", guide="popularity")
    with pytest.raises(RecastError, match=r"decoder is 'd3': .* is a baseline, which mixes"):
        evaluate_policy(told)


def test_rankers_and_guides_by_name(walk: Path, made: Path, tmp_path: Path) -> None:
    data, policy = load_data(walk / "data"), load_policy(walk / "sft" / "policy")
    prompts = tiny.task_of(data, policy).prompts(data.rows("valid")[:5])
    items = torch.arange(data.num_items).expand(5, -1)
    scores = [
        load_ranker(spec, policy.catalog, data=walk / "data")(prompts, items)
        for spec in (f"sasrec:{made}", f"sasrec:{made / 'sasrec'}", str(made / "sasrec" / "policy"))
    ]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])
    judge = EvaluateConfig(
        data=str(walk / "data"),
        policy=str(walk / "sft" / "policy"),
        output=str(tmp_path / "eval"),
        decoder="d3",
        guide=f"item_knn:{made}",
        alpha=0.5,
        threads=1,
    )
    evaluate_policy(judge)
    assert read_ranks(tmp_path / "eval").facts.events_seen == ("train",)
    evaluate_policy(replace(judge, output=str(tmp_path / "spot"), guide="item_knn"))
    assert read_ranks(tmp_path / "spot").facts.events_seen == ("train", "rl")
    assert events_of_guide("mine:score", walk / "data") is None
    assert events_of_guide(f"sasrec:{made}", walk / "data") == ("train",)
    run = tmp_path / "rl"
    settings = {"method": "openonerec_rl", "signal": "recast.signals.adagrpo:adagrpo"}
    train_rl(rl_config(walk, run, **settings, ranker="item_knn", kl_coef=0.0))
    assert metric_lines(run)[1]["gate/admitted_frac"] > 0
    other = tmp_path / "later"
    prepare(PrepareConfig(interactions=str(walk / "events.csv"), output=str(other), rl_frac=0.2))
    for guide in (f"item_knn:{made}", f"sasrec:{made}"):
        with pytest.raises(RecastError, match=r"on other events .*, and may have seen what is"):
            load_ranker(guide, policy.catalog, data=other)


def test_it_is_a_cell_of_an_experiment(walk: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    config = config_of(walk, root / "baselines", only=["popularity", "item_knn"], valid_rows=40)
    judge = EvaluateConfig(
        data=str(walk / "data"),
        policy=str(root / "baselines" / "item_knn"),
        output=str(root / "eval"),
    )
    cells = [Cell(name="baselines", config=config), Cell(name="judged", config=judge)]
    returned = run_cells(root, cells)
    assert returned["baselines"]["item_knn/ndcg@10"] > returned["baselines"]["popularity/ndcg@10"]
    assert run_cells(root, cells) == returned


@pytest.mark.parametrize("most_dense", [0, 4096], ids=["sparse", "dense"])
def test_the_quality_is_the_evaluator_s_but_for_ties(
    walk: Path, most_dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_DENSE", most_dense)
    data = load_data(walk / "data")
    rows = data.rows("valid")
    knn = fit_item_knn(data, KNNSettings(recent=2), ["train"])
    catalog = items_alone(walk / "data")
    found = [
        row_metrics(rank_scores(knn.scorer, data, catalog, rows, seed), [10], ["item"], ["ndcg"])
        for seed in range(40)
    ]
    mean = torch.stack([one["item/ndcg@10"].mean() for one in found]).mean()
    assert knn_quality(data, rows)(knn) == pytest.approx(float(mean), abs=4e-3)
