from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import tiny
import torch
from killed import check_goes_on

from recast import cli
from recast.config import EvaluateConfig, Level, ModelConfig, PrepareConfig
from recast.data.folder import data_hash, load_data
from recast.data.prepare import prepare
from recast.evaluation import rank as evaluate
from recast.evaluation.disk import read_ranks
from recast.evaluation.evaluate import evaluate_policy
from recast.evaluation.facts import EVALUATOR
from recast.evaluation.free import free_metrics
from recast.evaluation.metrics import row_metrics
from recast.evaluation.rank import rank_policy, sample_rows
from recast.items.catalog import build_catalog
from recast.policy.create import create_policy
from recast.policy.load import Policy, load_policy, save_policy
from recast.policy.ranker import load_ranker
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.types import Prompts, RecastError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """A data folder of 12 users and 30 items, and a policy that was never trained."""
    folder = tmp_path_factory.mktemp("run")
    draw = torch.Generator().manual_seed(0)
    events = [
        (user, int(item), 100 * place + user)
        for user in range(12)
        for place, item in enumerate(torch.randperm(30, generator=draw)[:15])
    ]
    table = pl.DataFrame(events, schema=["user", "item", "time"], orient="row")
    table.write_csv(folder / "events.csv")
    prepare(PrepareConfig(interactions=str(folder / "events.csv"), output=str(folder / "data")))
    save_policy(policy_of(30), folder / "policy")
    return EvaluateConfig(
        data=str(folder / "data"),
        policy=str(folder / "policy"),
        output=str(folder / "eval"),
        beam_width=10,
        invalid_rows=5,
        threads=torch.get_num_threads(),
    )


def policy_of(num_items: int) -> Policy:
    codes = torch.stack([torch.arange(num_items) // 6, torch.arange(num_items) % 6], 1)
    model = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2)
    return create_policy(model, build_catalog(codes, (6, 6)), window=8, seed=0)


def test_what_is_written_is_what_was_ranked(run: EvaluateConfig) -> None:
    means = evaluate_policy(run)
    folder = Path(run.output)
    assert sorted(file.name for file in folder.iterdir()) == [
        "eval.json",
        "rows.parquet",
    ]
    data, policy = load_data(run.data), load_policy(run.policy)
    rows = data.rows("test")
    ranks, again = read_ranks(folder), rank_policy(policy, tiny.task_of(data, policy), rows, 10)
    assert torch.equal(ranks.row_ids, rows)
    assert torch.equal(ranks.sid_rank, again.sid_rank)
    assert torch.equal(ranks.popular_rank, ranks.sid_rank)  # no SID is shared
    assert ranks.num_shown == again.num_shown
    assert again.num_shown
    share = again.num_shown / 30
    facts = json.loads((folder / "eval.json").read_text())
    metrics = facts.pop("metrics")
    assert [sum(group["rows"] for group in facts["breakdown"][f"by_{of}"]) for of in HOW] == [
        len(rows),
        len(rows),
    ]
    assert facts.pop("breakdown")["events_of"] == ["train", "rl"]  # what it saw is not known
    assert (facts.pop("files").keys(), len(facts.pop("digest"))) == ({"rows.parquet"}, 64)
    assert facts == asdict(run) | {
        "split": "test",
        "split_name": data.split_name,
        "facts": {
            "split": "test",
            "split_name": data.split_name,
            "data": data_hash(run.data),
            "num_candidates": 30,
            "exclude_seen": data.exclude_seen,
            "beam_width": 10,
            "thoughts": None,
            "ties": "expectation",
            "seed": 0,
            "events_seen": None,  # a policy of no run
            "training_seed": None,
            "kept": None,
            "valid_ndcg": None,
            "guide": None,
            "alpha_chosen_on": None,
            "evaluator": EVALUATOR,
        },
        "rows": len(rows),
        "users": len(data.users[rows].unique()),
        "resampled": "users",
        "draws": 10_000,
        "seed": 0,
        "beam_width": 10,
        "invalid_rows": 5,
        "alpha_chosen_on": None,
        "coverage": {"first": 10, "items": again.num_shown, "of": 30, "share": share},
        "exact": {"rows": 7, "targets": 7, "elsewhere": {"10": 0}},
        "invalid_frac": pytest.approx(means["invalid_frac"]),
        "malformed_frac": pytest.approx(means["malformed_frac"]),
    }
    for name, values in row_metrics(ranks).items():
        found = metrics[name]
        assert found["value"] == means[name] == pytest.approx(float(values.mean()))
        assert found["low"] <= found["value"] <= found["high"]
    few = sample_rows(data.rows("test"), 5)
    assert (
        means["invalid_frac"]
        == free_metrics(policy, tiny.task_of(data, policy), few, 10)["invalid_frac"]
    )
    assert means["rows"] == len(rows)


HOW = ("events", "history")


def test_an_existing_folder_is_kept(run: EvaluateConfig, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(RecastError, match="already holds something: remove it or choose another"):
        evaluate_policy(replace(run, output=str(tmp_path)))
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_policy_of_other_items_is_refused(run: EvaluateConfig, tmp_path: Path) -> None:
    save_policy(policy_of(29), tmp_path / "policy")
    other = replace(run, policy=str(tmp_path / "policy"), output=str(tmp_path / "eval"))
    with pytest.raises(RecastError, match="the data has 30 items, the catalogue 29"):
        evaluate_policy(other)
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beam_width": 9}, "beam_width is 9: metrics at 10 need 10 or more"),
        ({"invalid_rows": 0}, "invalid_rows is 0: give 1 or more"),
        ({"decoder": "d3"}, r"guide is None: decoder d3 needs one: the folder of a policy of one"),
        ({"guide": "runs/sasrec"}, r"guide is 'runs/sasrec': it belongs to the decoders with"),
        ({"alpha": 0.5}, r"alpha is 0.5: it belongs to the decoders with a guide: set decoder"),
        ({"decoder": "mixture"}, r"guide is None: decoder mixture needs one: the folder of a pol"),
        ({"decoder": "d3", "guide": "a:b", "alpha": 1.1}, r"alpha is 1.1: give a weight from 0"),
        ({"exact_rows": -1}, r"exact_rows is -1: give 0 or more"),
    ],
)
def test_settings_out_of_range(run: EvaluateConfig, setting: dict, message: str) -> None:
    with pytest.raises(RecastError, match=message):
        replace(run, **setting)


def test_a_beam_wider_than_the_catalogue(run: EvaluateConfig) -> None:
    data, policy = load_data(run.data), load_policy(run.policy)
    rows = data.rows("test")
    task = tiny.task_of(data, policy)
    all_items, wider = (rank_policy(policy, task, rows, width) for width in (30, 10**6))
    assert torch.equal(all_items.sid_rank, wider.sid_rank)
    assert torch.equal(all_items.items_before, wider.items_before)
    assert bool((wider.sid_rank > 0).all())
    few = rows[:2]
    assert free_metrics(policy, task, few, 10**6) == free_metrics(policy, task, few, 30)
    assert free_metrics(policy, task, rows[:0], 10)["invalid_frac"] == 0


def test_damaged_ranks(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(RecastError, match=r"rows.parquet is damaged \(.*\): make it again with"):
        read_ranks(tmp_path)
    pl.DataFrame({"row_id": [0.5]}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(RecastError, match=r"rows.parquet is damaged \("):
        read_ranks(tmp_path)


def likes_high_items(prompts: Prompts, items: torch.Tensor) -> torch.Tensor:
    return 3.0 * items


def one_level_policy(num_items: int) -> Policy:
    model = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2)
    catalog = build_catalog(torch.arange(num_items)[:, None], (num_items,))
    return create_policy(model, catalog, window=8, seed=1)


@pytest.mark.parametrize("batch", [256, 7])
def test_d3_ranks_by_the_guide_s_scores_of_the_whole_catalogue(
    run: EvaluateConfig, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "_MAX_BATCH", batch)
    data, policy = load_data(run.data), load_policy(run.policy)
    rows = data.rows("test")
    by_policy, own = (
        rank_policy(policy, tiny.task_of(data, policy), rows, 30, Decoder(guide=guide, alpha=1.0))
        for guide in (None, likes_high_items)
    )
    assert torch.equal(by_policy.sid_rank, own.sid_rank)
    by_guide = rank_policy(
        policy, tiny.task_of(data, policy), rows, 30, Decoder(guide=likes_high_items, alpha=0.0)
    )
    for row, rank in zip(rows.tolist(), by_guide.sid_rank[:, 0].tolist(), strict=True):
        target, past = int(data.items[row]), data.items[data.starts[row] : row].tolist()
        assert rank == 1 + len(set(range(target + 1, 30)) - set(past))
    assert not torch.equal(by_policy.sid_rank, by_guide.sid_rank)


def test_d3_with_a_trained_ranker_s_folder(run: EvaluateConfig, tmp_path: Path) -> None:
    save_policy(one_level_policy(30), tmp_path / "sasrec")
    settings = {"decoder": "d3", "guide": str(tmp_path / "sasrec"), "alpha": 0.3}
    config = replace(run, output=str(tmp_path / "eval"), **settings)  # type: ignore[arg-type]
    means = evaluate_policy(config)
    facts = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert {key: facts[key] for key in settings} == settings
    # The invalid rate is the policy's own, whatever the decoder.
    plain = replace(run, output=str(tmp_path / "plain"))
    assert means["invalid_frac"] == evaluate_policy(plain)["invalid_frac"]

    data, policy = load_data(run.data), load_policy(run.policy)
    rows = data.rows("test")
    prompts = tiny.task_of(data, policy).prompts(rows)
    guide = load_ranker(str(tmp_path / "sasrec"), policy.catalog)
    scores = guide(prompts, torch.arange(30).expand(len(rows), -1))
    beams = beam_search(policy, prompts, 10, decoder=Decoder(guide=lambda *_: scores, alpha=0.3))
    hits = beams.items == prompts.target_items
    places = torch.where(hits.any(1), hits.int().argmax(1) + 1, 0)[:, None]
    assert torch.equal(read_ranks(tmp_path / "eval").sid_rank, places)
    assert not torch.equal(read_ranks(tmp_path / "plain").sid_rank, places)


def test_the_weight_is_chosen_on_validation(
    run: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_policy(one_level_policy(30), tmp_path / "guide")
    guide, output = str(tmp_path / "guide"), str(tmp_path / "eval")
    args = ["--data", run.data, "--policy", run.policy, "--output", output, "--threads", "1"]
    args += ["--decoder", "mixture", "--guide", guide, "--invalid_rows", "5", "--exact_rows", "4"]
    cli.main(["evaluate", *args])
    data, policy = load_data(run.data), load_policy(run.policy)
    task, ranker = tiny.task_of(data, policy), load_ranker(guide, policy.catalog)
    curve = {}
    for tenths in range(11):
        decoder = Decoder(guide=ranker, alpha=tenths / 10, kind="mixture")
        ranks = rank_policy(policy, task, data.rows("valid"), 30, decoder)
        curve[f"{tenths / 10:g}"] = float(row_metrics(ranks)["item/ndcg@10"].mean())
    facts = json.loads((tmp_path / "eval" / "eval.json").read_text())
    rows, found = len(data.rows("valid")), facts["alpha_chosen_on"]["ndcg@10"]
    assert facts["alpha_chosen_on"] == {"split": "valid", "rows": rows, "ndcg@10": found}
    assert found == pytest.approx(curve)
    best = max(found.values())
    assert found[f"{facts['alpha']:g}"] == best > min(found.values())
    back = read_ranks(output)
    decoder = Decoder(guide=ranker, alpha=facts["alpha"], kind="mixture")
    assert torch.equal(
        back.sid_rank, rank_policy(policy, task, data.rows("test"), 30, decoder).sid_rank
    )
    assert (back.facts.valid_ndcg, back.facts.alpha_chosen_on) == (best, "valid")
    assert back.facts.guide == f"mixture, alpha {facts['alpha']:g}, with {guide}"
    assert facts["exact"] == {"rows": 4, "targets": 4, "elsewhere": {"10": 0, "50": 0}}
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        f"alpha {facts['alpha']:g} was chosen on {rows} validation rows",
        f"coverage: {back.num_shown} of 30 items",
        "beam against exact: of 4 targets (4 rows) these have another place in the whole",
        "events of target rows HR@10 NDCG@10 0-2 ",
    ):
        assert words in said


def test_a_guide_for_other_items_is_refused(run: EvaluateConfig, tmp_path: Path) -> None:
    save_policy(one_level_policy(29), tmp_path / "sasrec")
    output = str(tmp_path / "eval")
    for guide, message in (
        (str(tmp_path / "sasrec"), "ranks 29 items, the policy writes 30: train the ranker on"),
        ("nowhere", "is 'nowhere': there is no such folder"),
    ):
        with pytest.raises(RecastError, match=message):
            evaluate_policy(replace(run, output=output, decoder="d3", guide=guide))
    assert not Path(output).exists()


def test_other_cuts_and_levels(run: EvaluateConfig, tmp_path: Path) -> None:
    levels: list[Level] = ["sid", "popular_item"]
    config = replace(run, output=str(tmp_path / "eval"), at=[3, 10], levels=levels)
    means = evaluate_policy(config)
    names = [f"{level}/{name}@{k}" for level in levels for name in ("hr", "ndcg") for k in (3, 10)]
    assert list(means) == [*names, "invalid_frac", "malformed_frac", "rows", "users"]
    assert list(json.loads((tmp_path / "eval" / "eval.json").read_text())["metrics"]) == names
    # What is stored does not depend on what is shown.
    evaluate_policy(replace(run, output=str(tmp_path / "plain")))
    stored = [pl.read_parquet(tmp_path / name / "rows.parquet") for name in ("eval", "plain")]
    assert stored[0].equals(stored[1])


def test_a_run_s_policy_says_what_it_was_trained_on(walk: Path, tmp_path: Path) -> None:
    settings = {"data": str(walk / "data"), "policy": str(walk / "sft" / "policy")}
    output, threads = str(tmp_path / "eval"), torch.get_num_threads()
    evaluate_policy(EvaluateConfig(**settings, output=output, threads=threads))
    facts = read_ranks(output).facts
    assert facts.events_seen == ("train",)
    assert facts.kept == "best"
    assert facts.training_seed == 0


def test_cuts_on_the_command_line(tmp_path: Path) -> None:
    flags = ["--data=d", "--policy=p", "--output=o"]
    for at in (["--at", "1,3,50"], ["--at", "1", "3", "50"], ["--at=1,3,50"], ["--at=[1, 3, 50]"]):
        config = cli.configure("evaluate", [*flags, "--beam_width=50", *at])
        assert config.at == [1, 3, 50]
    assert cli.configure("evaluate", [*flags, "--levels", "item", "popular_item"]).levels == [
        "item",
        "popular_item",
    ]
    (tmp_path / "a.yaml").write_text("at: [1, 3]\nlevels: [sid]\n")
    config = cli.configure("evaluate", [*flags, "--config", str(tmp_path / "a.yaml")])
    assert (config.at, config.levels) == ([1, 3], ["sid"])
    line = "beam_width is 32: metrics at 50 need 50 or more: set beam_width to 50, or leave 50 out"
    for args, message in (
        (["--at=1,3,5,10,20,32,50", "--beam_width=32"], line),
        (["--at=0"], r"at is \[0\]: give whole numbers of 1 or more"),
        (["--at=1,x"], r"--at is .*: give a list, such as \[1, 10\]"),
        (["--levels=pid"], "--levels is .*: give a list of any of item, sid, popular_item"),
        (["--levels=[]"], r"levels is \[\]: give one or more of item, sid, popular_item"),
    ):
        with pytest.raises(RecastError, match=message):
            cli.configure("evaluate", [*flags, *args])


def test_goes_on_after_a_kill(
    run: EvaluateConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Behind its third batch of four rows."""
    args: list[object] = ["evaluate", "--data", run.data, "--policy", run.policy]
    args += ["--beam_width", 10, "--invalid_rows", 5, "--threads", 1]
    line = f"goes on behind 12 of {len(load_data(run.data).rows('test'))} rows"
    check_goes_on(args, tmp_path, monkeypatch, capsys, "between", line)
