"""Baselines on disk: the same numbers back, and one line for whatever is not as it was written."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from data_folder import forget_hashes
from safetensors.torch import load_file, save_file

from recast.data.folder import data_hash, load_data
from recast.evaluation.baseline import items_alone
from recast.policy import baselines
from recast.policy.baseline_folder import load_baseline, require_of, save_baseline
from recast.policy.baselines import POPULAR, Baseline, KNNSettings, fit_item_knn, fit_popularity
from recast.policy.load import load_policy
from recast.policy.ranker import load_ranker
from recast.run.fingerprint import seal
from recast.types import RecastError


@pytest.fixture(scope="module")
def saved(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`popularity` and `item_knn` of the walk's data, fitted on `train` alone."""
    out, data = tmp_path_factory.mktemp("saved"), load_data(walk / "data")
    for baseline in (
        fit_popularity(data, ["train"]),
        fit_item_knn(data, KNNSettings(recent=3, backward=0.5), ["train"]),
    ):
        save_baseline(baseline, out / baseline.kind, walk / "data", {"ndcg@10": 0.5})
    return out


def same(one: Baseline, other: Baseline) -> bool:
    tables = [
        x.table if x.table is None or x.table.layout == torch.strided else x.table.to_dense()
        for x in (one, other)
    ]
    is_same = tables[0] is tables[1] or torch.equal(*tables)  # type: ignore[arg-type]
    facts = (one.settings, one.splits) == (other.settings, other.splits)
    return is_same and facts and torch.equal(one.counts, other.counts)


@pytest.mark.parametrize("most_dense", [0, 4096], ids=["sparse", "dense"])
def test_what_was_written_comes_back(
    walk: Path, tmp_path: Path, most_dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_DENSE", most_dense)
    data = load_data(walk / "data")
    settings = KNNSettings(window=3, backward=0.0)
    for baseline in (fit_popularity(data), fit_item_knn(data, settings, ["train"])):
        folder = tmp_path / baseline.kind
        save_baseline(baseline, folder, walk / "data", {"ndcg@10": 0.25})
        back, facts = load_baseline(folder)
        assert same(back, baseline)
        assert (facts["data"], facts["measured"]) == (data_hash(walk / "data"), {"ndcg@10": 0.25})
        items = items_alone(walk / "data").item_ids
        require_of(facts, "it", items, walk / "data")
        with pytest.raises(RecastError, match=r"it ranks other items than these 47: fit it on"):
            require_of(facts, "it", items[1:], None)


@pytest.mark.parametrize("name", ["popularity", "item_knn"])
def test_a_ranker_gives_the_log_probabilities_of_the_scorer_s_scores(
    walk: Path, saved: Path, name: str
) -> None:
    data, policy = load_data(walk / "data"), load_policy(walk / "sft" / "policy")
    rows = data.rows("valid")[:20]
    task = tiny.task_of(data, policy)
    items = torch.arange(data.num_items).expand(20, -1)
    baseline, _ = load_baseline(saved / name)
    scores = baseline.scorer(data, rows)
    share = (baseline.counts + 1).float() / float((baseline.counts + 1).sum())
    votes = scores / scores.sum(1, keepdim=True)
    mixed = (1 - POPULAR) * votes + POPULAR * share
    expected = share.expand(20, -1) if name == "popularity" else mixed
    for spec in (f"{name}:{saved}", f"{name}:{saved / name}", str(saved / name)):
        ranker = load_ranker(spec, policy.catalog, data=walk / "data")
        found = ranker(task.prompts(rows), items)
        torch.testing.assert_close(found, expected.log())
        torch.testing.assert_close(found.exp().sum(1), torch.ones(20))
        some = items.flip(1)[:, :3]
        assert torch.equal(ranker(task.prompts(rows), some), found.flip(1)[:, :3])


def test_fitted_on_the_spot_it_reads_the_splits_it_is_told(walk: Path) -> None:
    data, policy = load_data(walk / "data"), load_policy(walk / "sft" / "policy")
    prompts = tiny.task_of(data, policy).prompts(data.rows("valid")[:5])
    items = torch.arange(data.num_items).expand(5, -1)
    for splits in (("train",), ("train", "rl")):
        for name, fit in (("popularity", fit_popularity), ("item_knn", fit_item_knn)):
            ranker = load_ranker(name, policy.catalog, data=walk / "data", splits=splits)
            expected = fit(data, splits=splits).ranker(prompts, items)
            assert torch.equal(ranker(prompts, items), expected)
    with pytest.raises(RecastError, match=r"ranker item_knn is fitted on events: give data, the d"):
        load_ranker("item_knn", policy.catalog)


def test_nobody_votes_for_a_history_that_nobody_had(walk: Path) -> None:
    one = Baseline(
        counts=torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64),
        splits=("train",),
        settings=KNNSettings(),
        table=torch.tensor([[0.0, 2.0, 0.0], [0.0] * 3, [0.0] * 3]),
    )
    prompts = tiny.make_prompts(tiny.tiny_catalog(), [[0], [1], []], [[2], [2], [2]])
    found = one.ranker(prompts, torch.arange(3).expand(3, -1)).exp()
    share = torch.tensor([4.0, 1.0, 1.0]) / 6
    voted = 0.99 * torch.tensor([0.0, 1.0, 0.0]) + 0.01 * share
    torch.testing.assert_close(found, torch.stack([voted, share, share]))


EDITS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "sasrec"}, r"kind is 'sasrec'"),
    ({"kind": "popularity"}, r"popularity has settings"),
    ({"splits": ["train", "test"]}, r"splits is \['train', 'test'\]"),
    ({"splits": []}, r"splits is \[\]"),
    ({"data": "f00"}, r"data is no sha256"),
    ({"items": None}, r"items is no sha256"),
    ({"settings": None}, r"damaged"),
    ({"measured": {"ndcg@10": None}}, r"ndcg@10 is None"),
    ({"measured": None}, r"damaged"),
]
SETTINGS = [
    ("recent", 0),
    ("recent", 2.0),
    ("recent", 10**30),
    ("history_decay", -1.0),
    ("history_decay", float("nan")),
    ("history_decay", "1"),
    ("further", 1),
]


def write_facts(folder: Path, **changes: Any) -> None:
    """Other facts, sealed by somebody who knows how."""
    facts = json.loads((folder / "baseline.json").read_text()) | changes
    facts = {key: value for key, value in facts.items() if key not in ("files", "digest")}
    content = json.dumps(seal(facts, folder, "tables.safetensors"))
    (folder / "baseline.json").write_text(content)


def test_facts_that_were_changed_are_refused(saved: Path, tmp_path: Path) -> None:
    def refused(changes: dict[str, Any], line: str) -> None:
        folder = shutil.copytree(saved / "item_knn", tmp_path / "knn", dirs_exist_ok=True)
        write_facts(folder, **changes)
        with pytest.raises(RecastError, match=rf"baseline.json is damaged .*{line}"):
            load_baseline(folder)

    for changes, line in EDITS:
        refused(changes, line.removeprefix("damaged"))
    settings = asdict(KNNSettings())
    for name, value in SETTINGS:
        refused({"settings": settings | {name: value}}, name)
    edited = shutil.copytree(saved / "item_knn", tmp_path / "edited")
    facts = json.loads((edited / "baseline.json").read_text()) | {"splits": ["train", "rl"]}
    (edited / "baseline.json").write_text(json.dumps(facts))
    with pytest.raises(RecastError, match=r"is damaged \(it was changed since it was written\)"):
        load_baseline(edited)
    forget_hashes(shutil.copytree(saved / "item_knn", tmp_path / "bare"), "baseline.json")
    with pytest.raises(RecastError, match=r"is damaged \(no digest\): make it again with"):
        load_baseline(tmp_path / "bare")


def test_tables_that_were_changed_are_refused(saved: Path, tmp_path: Path) -> None:
    whole = load_file(saved / "item_knn" / "tables.safetensors")
    num_items, starts = len(whole["counts"]), whole["starts"]

    def refused(line: str, **changes: Any) -> None:
        folder = shutil.copytree(saved / "item_knn", tmp_path / "knn", dirs_exist_ok=True)
        tables = {k: v for k, v in (whole | changes).items() if v is not None}
        save_file(tables, folder / "tables.safetensors")
        write_facts(folder)
        with pytest.raises(RecastError, match=rf"safetensors is damaged \(.*{line}"):
            load_baseline(folder)

    refused("it holds counts, items, starts", values=None)
    refused("it holds .*more", more=torch.ones(1))
    refused(r"values is torch.float64 of \[", values=whole["values"].double())
    refused(r"counts is torch.float64 of \[1, ", counts=whole["counts"][None])
    refused("values has a number below 0 or none", values=-whole["values"])
    refused("values has a number below 0 or none", values=whole["values"] / 0)
    refused("its votes are of other items", counts=whole["counts"][1:].clone())
    refused("it has no item", counts=whole["counts"][:0].clone())
    refused("its votes are no table", items=whole["items"] + num_items)
    refused("its votes are no table", items=whole["items"].flip(0))
    refused("its votes are no table", starts=starts.flip(0))
    refused("its votes are of other items", values=whole["values"][1:].clone())

    def damaged(name: str, content: bytes | None, line: str) -> None:
        folder = shutil.copytree(saved / "item_knn", tmp_path / name / "x")
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(RecastError, match=line):
            load_baseline(folder)
        shutil.rmtree(folder)

    damaged(
        "baseline.json", None, r"x holds no baseline \(baseline.json\): make one with `recast b"
    )
    damaged("tables.safetensors", None, r"baseline.json is damaged \(no tables.safetensors b")
    for name in ("baseline.json", "tables.safetensors"):
        damaged(name, b"", "is damaged")
    damaged("tables.safetensors", b"\0" * 64, "tables.safetensors was changed since it was written")
    damaged("baseline.json", b"[]", "it holds a list, no dict")


def test_what_names_no_ranker_of_this_data_is_one_line(
    walk: Path, saved: Path, tmp_path: Path
) -> None:
    catalog = load_policy(walk / "sft" / "policy").catalog
    moved = shutil.copytree(saved / "item_knn", tmp_path / "moved")
    write_facts(moved, data="0" * 64)
    for spec, line in (
        ("sasrec", "it is trained, not fitted on the spot: make one with `recast baselines`"),
        ("item_knn:", "is 'item_knn:': there is no such folder; give a folder of `recast base"),
        ("item_knn:x", "no such folder; .*; a module of yours that is called item_knn needs ano"),
        (f"sasrec:{saved}", "holds no policy"),
        (f"item_knn:{walk}", "item_knn holds no baseline"),
        (f"item_knn:{saved / 'popularity'}", "holds popularity, no item_knn: give popularity:F"),
        (f"item_knn:{moved}", "was fitted on other events .*, and may have seen what is judged"),
        (str(walk / "data"), "holds no policy"),
    ):
        with pytest.raises(RecastError, match=line):
            load_ranker(spec, catalog, data=walk / "data")
