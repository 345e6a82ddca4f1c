"""Supervised training on the small walk: reproducible, without a leak, and it learns."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import tiny
import torch
import yaml
from data_folder import forget_hashes
from small_walk import MODEL, metric_lines, rl_config, same, sft_args, sft_config, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from recast import TokenizeConfig, cli, tokenize
from recast.config import ModelConfig, SFTConfig
from recast.config.train import GIVEN_MODEL, NEW_MODEL
from recast.data.folder import data_hash, load_data
from recast.data.windows import user_windows
from recast.evaluation.facts import training_of
from recast.evaluation.free import free_metrics
from recast.evaluation.metrics import PRIMARY, row_metrics
from recast.evaluation.rank import rank_policy, rank_scores, sample_rows
from recast.evaluation.validation import validate
from recast.items.catalog import load_catalog
from recast.policy.baselines import popularity
from recast.policy.load import load_policy
from recast.rl import train_rl
from recast.sft import train_sft
from recast.train import sft_rows
from recast.train import sft_setup as setup
from recast.train.sft_setup import set_up_sft
from recast.types import RecastError


def test_it_learns_more_than_popularity(walk: Path) -> None:
    data, catalog = load_data(walk / "data"), load_catalog(walk / "catalog")
    rows = sample_rows(data.rows("valid"), 2000)
    ranks = rank_scores(popularity(data), data, catalog, rows)
    best = max(line["valid/ndcg@10"] for line in metric_lines(walk / "sft"))
    # With seen items out, few candidates are left, so popularity is no bad guess here.
    assert best > 0.1 + float(row_metrics(ranks)[PRIMARY].mean())
    # What was saved is the best epoch.
    policy = load_policy(walk / "sft" / "policy")
    again = validate(policy, tiny.task_of(data, policy), rows)
    assert again["valid/ndcg@10"] == best


def test_the_run_folder(walk: Path) -> None:
    run = walk / "sft"
    assert sorted(file.name for file in run.iterdir()) == [
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "policy",
        "tb",
    ]
    begun = replace(MODEL, new_rows="vectors")  # the folder of the catalogue has them
    assert yaml.safe_load((run / "config.yaml").read_text()) == asdict(
        sft_config(walk, run, model=begun)
    )
    environment = json.loads((run / "env.json").read_text())
    assert environment["data_hash"] == data_hash(walk / "data")
    assert environment["torch_threads"] == 1
    lines = metric_lines(run)
    assert {tuple(line) for line in lines} == {
        ("step", "stage", "time_s", "sft/loss", "sft/padding", "valid/ndcg@10", "valid/hr@10")
    }
    data = load_data(walk / "data")
    windows = user_windows(data, data.rows("train"), width=8, seed=0, epoch=0)
    assert lines[0]["step"] == -(-len(windows) // 32)
    assert lines[0]["sft/loss"] > lines[-1]["sft/loss"]
    board = EventAccumulator(str(run / "tb"))
    board.Reload()
    assert [event.step for event in board.Scalars("sft/loss")] == [line["step"] for line in lines]
    files = {file.name for file in (run / "policy").iterdir()}
    assert {"model.safetensors", "config.json", "recast.json", "catalog"} <= files
    assert load_catalog(run / "policy" / "catalog").codes.equal(
        load_catalog(walk / "catalog").codes
    )


def test_the_seed_decides_every_bit(walk: Path, tmp_path: Path) -> None:
    torch.rand(7)  # what ran before has no influence
    first = train_sft(sft_config(walk, tmp_path / "a", epochs=2, seed=5))
    again = train_sft(sft_config(walk, tmp_path / "b", epochs=2, seed=5))
    train_sft(sft_config(walk, tmp_path / "c", epochs=2, seed=6))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))
    assert first.keys() == again.keys()
    assert {k: v for k, v in first.items() if k != "cpu_s"} == {
        k: v for k, v in again.items() if k != "cpu_s"
    }
    assert first["cpu_s"] > 0
    assert first["rollouts"] == 0


def test_later_events_do_not_leak(walk: Path, tmp_path: Path) -> None:
    """Other items in the rl, valid and test events: the same windows, losses and weights."""
    other = tmp_path / "walk"
    shutil.copytree(walk / "catalog", other / "catalog")
    shutil.copytree(walk / "data", other / "data")
    file = other / "data" / "interactions.parquet"
    events = pl.read_parquet(file)
    rolled = pl.col("item").last().over("user", "later")  # any item of the user's later ones
    previous = pl.col("item").shift().over("user", "later").fill_null(rolled)
    changed = events.with_columns(later=pl.col("split") != "train")
    changed = changed.with_columns(item=pl.when("later").then(previous).otherwise("item"))
    changed.drop("later").write_parquet(file)
    forget_hashes(other / "data")

    before, after = load_data(walk / "data"), load_data(other / "data")
    moved = before.items != after.items
    assert not moved[before.splits == 0].any()
    assert moved[before.splits > 0].double().mean() > 0.9
    for epoch in range(3):
        first, second = (
            user_windows(data, data.rows("train"), width=8, seed=0, epoch=epoch)
            for data in (before, after)
        )
        assert first.equal(second)
    for name, folder in (("a", walk), ("b", other)):
        train_sft(sft_config(folder, tmp_path / name, epochs=1))
    lines = [metric_lines(tmp_path / name)[0] for name in "ab"]
    assert lines[0]["sft/loss"] == lines[1]["sft/loss"]
    assert lines[0]["valid/ndcg@10"] != lines[1]["valid/ndcg@10"]
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_patience(walk: Path, tmp_path: Path) -> None:
    """A rate too small to change a rank: the first epoch stays the best, two more are waited."""
    config = sft_config(walk, tmp_path / "run", lr=1e-12, epochs=30, patience=2)
    found = train_sft(config)
    last = train_sft(replace(config, output=str(tmp_path / "last"), keep="last"))
    assert last["sft/epoch"] == 3
    assert not same(weights(tmp_path / "run"), weights(tmp_path / "last"))
    lines = metric_lines(tmp_path / "run")
    assert len(lines) == 3
    assert found["sft/epoch"] == 1
    assert found["optimizer_steps"] == lines[-1]["step"]
    assert found["valid/ndcg@10"] == lines[0]["valid/ndcg@10"]


def test_a_policy_of_ones_own_is_the_start(walk: Path, tmp_path: Path) -> None:
    start = str(walk / "sft" / "policy")
    model = type(MODEL)(path=start)
    train_sft(sft_config(walk, tmp_path / "run", model=model, lr=1e-12, epochs=1))
    before, after = weights(walk / "sft"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[k], after[k], atol=1e-9) for k in before)


def test_a_model_of_ones_own_is_the_start(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.tiny_config("qwen3", 40)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path / "model")
    tiny.tiny_tokenizer(9).save_pretrained(tmp_path / "model")
    model = type(MODEL)(path=str(tmp_path / "model"))
    config = sft_config(walk, tmp_path / "run", model=model, epochs=1)
    train_sft(config)
    last = 9 + sum(load_catalog(walk / "catalog").codebook_sizes) - 1
    said = capsys.readouterr().out
    assert f"model: tokens 9 to {last} are semantic IDs, new_rows: spread\n" in said
    assert "trained in float32 and rounded to bfloat16" in said
    used = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert used == asdict(replace(config, model=replace(model, new_rows="spread")))
    assert {weight.dtype for weight in weights(tmp_path / "run").values()} == {torch.bfloat16}
    tokenizer = load_policy(tmp_path / "run" / "policy").tokenizer
    assert tokenizer("w3 <a_0>")["input_ids"] == [3, 9]


def test_the_cost_of_a_pass_is_not_measured_for_short_sequences(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share rows and read none; long ones do."""
    asked: list[int] = []
    monkeypatch.setattr(setup, "measure_pass_tokens", lambda *_: asked.append(1) or 32)
    for name, shared in (("short", sft_rows.MOST_SHARED), ("long", 1)):
        monkeypatch.setattr(sft_rows, "MOST_SHARED", shared)
        train_sft(sft_config(walk, tmp_path / name, epochs=1, pass_tokens=None))
    written = [
        yaml.safe_load((tmp_path / name / "config.yaml").read_text())["pass_tokens"]
        for name in ("short", "long")
    ]
    assert (asked, written) == ([1], [65536, 32])


def test_a_policy_keeps_the_space_it_was_trained_in(walk: Path, tmp_path: Path) -> None:
    """It is validated, ranked and post-trained there, unless a narrower one is named."""
    config = sft_config(walk, tmp_path / "sft", logprob_space="trie", epochs=2)
    assert train_sft(config)["valid/ndcg@10"] > 0.1
    folder = str(tmp_path / "sft" / "policy")
    policy, data = load_policy(folder), load_data(walk / "data")
    task, rows = tiny.task_of(data, policy), data.rows("valid")[:20]
    assert policy.logprob_space == "trie"
    assert free_metrics(policy, task, rows, 4) == {}
    again = rank_policy(replace(policy, logprob_space="full"), task, rows, 48)
    assert not again.sid_rank.equal(rank_policy(policy, task, rows, 48).sid_rank)
    for name, space in (("own", None), ("trie", "trie")):
        run = rl_config(walk, tmp_path / name, policy=folder, steps=1, logprob_space=space)
        train_rl(run)
        used = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert used["logprob_space"] == "trie"
        assert load_policy(tmp_path / name / "policy").logprob_space == "trie"
    for changes, message in (
        ({"logprob_space": "level"}, "logprob_space is 'level': .* was trained over trie"),
        ({"sampler": "beam", "sampler_args": {"constrained": False}}, "constrained is False: the "),
    ):
        with pytest.raises(RecastError, match=message):
            train_rl(rl_config(walk, tmp_path / "no", policy=folder, **changes))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("space", ["level", "trie"])
def test_a_space_of_levels_needs_levels(walk: Path, tmp_path: Path, space: str) -> None:
    items = load_catalog(walk / "catalog")
    texts = [[3 + i // 10, 3 + i % 10, 2] for i in range(items.num_items)]
    replace(tiny.text_catalog(texts), item_ids=items.item_ids).save(tmp_path / "texts")
    config = sft_config(walk, tmp_path / "no", catalog=str(tmp_path / "texts"), logprob_space=space)
    with pytest.raises(RecastError, match=f"logprob_space is '{space}': only semantic IDs have"):
        train_sft(config)


def test_negatives_stand_for_the_items_of_one_level(
    walk: Path, one_level: Path, tmp_path: Path
) -> None:
    """They are drawn by seed and step; another number of them is another run."""
    catalog = str(one_level.parents[1] / "catalog")
    for name, count in (("a", 20), ("b", 20), ("c", 40)):
        train_sft(sft_config(walk, tmp_path / name, catalog=catalog, epochs=1, negatives=count))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))
    assert load_policy(tmp_path / "a" / "policy").logprob_space == "full"
    for changes, message in (
        ({"negatives": 20}, "negatives is 20: it belongs to one-level semantic IDs"),
        ({"negatives": 48, "catalog": catalog}, "negatives is 48: the catalogue has 48 items"),
    ):
        with pytest.raises(RecastError, match=message):
            train_sft(sft_config(walk, tmp_path / "no", **changes))
    with pytest.raises(RecastError, match="logprob_space is 'trie': negatives stand for"):
        sft_config(walk, tmp_path / "no", negatives=20, logprob_space="trie")


def test_what_is_left_open_hangs_on_the_catalogue_and_the_model(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"data": str(walk / "data"), "catalog": str(tmp_path / "catalog")}
    tokenize(
        TokenizeConfig(data=folders["data"], output=folders["catalog"], collaborative_weight=1.0)
    )
    shape = {"window": 8, "epochs": 1, "threads": 1, "pass_tokens": 4096}
    few = SFTConfig(**folders, **shape, model=MODEL, output=str(tmp_path / "few"))
    assert setup.set_up_sft(few).policy.logprob_space == "full"  # 48 items, not above 1,024
    monkeypatch.setattr(setup, "MOST_FULL", 47)
    train_sft(SFTConfig(**folders, **shape, model=MODEL, output=str(tmp_path / "new")))
    written = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    assert {name: written[name] for name in NEW_MODEL._fields} == NEW_MODEL._asdict()
    assert written["logprob_space"] == "trie"
    given = ModelConfig(path=str(tmp_path / "new" / "policy"))
    more = SFTConfig(
        **folders, **shape, model=given, layer_dropout=0.25, output=str(tmp_path / "b")
    )
    assert more.resolved == GIVEN_MODEL._replace(layer_dropout=0.25)
    assert load_policy(tmp_path / "new" / "policy").logprob_space == "trie"
    # A policy to start from has a space of its own.
    level = sft_config(walk, tmp_path / "level", logprob_space="level", epochs=1)
    train_sft(level)
    given = ModelConfig(path=str(tmp_path / "level" / "policy"))
    on = replace(level, output=str(tmp_path / "on"), model=given, logprob_space=None)
    assert set_up_sft(on).policy.logprob_space == "level"
    shared = sft_config(walk, tmp_path / "shared", logprob_space=None)
    assert set_up_sft(shared).policy.logprob_space == "full"


def test_the_slice_of_rl_is_read_where_it_is_named(walk: Path, tmp_path: Path) -> None:
    data = load_data(walk / "data")
    rows = torch.cat([data.rows("rl"), data.rows("train")])
    windows = user_windows(data, rows, width=8, seed=0, epoch=0)
    counts = {
        name: train_sft(sft_config(walk, tmp_path / name, epochs=1, splits=splits))
        for name, splits in (("a", ["train", "rl"]), ("b", ["rl", "train"]))
    }
    steps = {name: found["optimizer_steps"] for name, found in counts.items()}
    assert steps == dict.fromkeys("ab", -(-len(windows) // 32))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert training_of(tmp_path / "a" / "policy", walk / "data") == (("train", "rl"), 0)
    for splits in ([], ["rl"], ["train", "train"]):
        with pytest.raises(RecastError, match=r"splits is \[.*\]: give train or train,rl"):
            sft_config(walk, tmp_path / "no", splits=splits)
    for told in ("train,rl", "train rl"):
        args = [*map(str, sft_args(walk, tmp_path / "no", "--splits", *told.split()))]
        assert cli.configure("sft", args[1:]).splits == ["train", "rl"]


def test_a_catalogue_made_from_more_events_is_refused(walk: Path, tmp_path: Path) -> None:
    catalog = str(tmp_path / "catalog")
    told = {"data": str(walk / "data"), "output": catalog, "splits": ["rl", "train"]}
    tokenize(TokenizeConfig(**told, collaborative_weight=1.0))
    with pytest.raises(RecastError, match=r"splits is \['train'\]: .* was made from the events of"):
        train_sft(sft_config(walk, tmp_path / "no", catalog=catalog))
    assert not (tmp_path / "no").exists()
    wider = sft_config(walk, tmp_path / "all", catalog=catalog, splits=["train", "rl"], epochs=1)
    assert train_sft(wider)["optimizer_steps"]


def test_no_epoch_leaves_the_policy_as_it_starts(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RL, which starts from it, validates it."""
    run = tmp_path / "base"
    found = train_sft(sft_config(walk, run, epochs=0))
    assert "epochs is 0: nothing is trained or validated, " in capsys.readouterr().out
    assert found["optimizer_steps"] == 0
    assert not [name for line in metric_lines(run) for name in line if name.startswith("valid/")]
    assert training_of(run / "policy", walk / "data") == ((), 0)
    train_rl(rl_config(walk, tmp_path / "rl", policy=str(run / "policy"), steps=1))
    assert training_of(tmp_path / "rl" / "policy", walk / "data") == (("rl",), 0)
