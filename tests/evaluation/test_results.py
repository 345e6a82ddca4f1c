from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from small_ranks import FACTS, compared, ranks_of

from recast.evaluation.facts import Facts
from recast.evaluation.results import Results, load_tables, save_tables
from recast.report.table import markdown
from recast.types import RecastError


def test_results_survive_the_disk(tmp_path: Path) -> None:
    fitted = replace(ranks_of(0), facts=replace(FACTS, events_seen=("train", "rl"), seed=2))
    results = compared(methods={"SFT": ranks_of(1), "kNN": fitted}, against=["SFT"], extras={})
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    tables = {"sample": results, "beam": compared()}
    save_tables(tables, tmp_path / "tables.json")
    assert load_tables(tmp_path / "tables.json") == tables


def test_results_of_earlier_releases(tmp_path: Path) -> None:
    """0.1.0 wrote the same keys without facts."""
    results = compared()
    content = json.loads(json.dumps(asdict(results)))
    for method in content["methods"].values():
        assert list(method.pop("facts"))
    (tmp_path / "results.json").write_text(json.dumps({"sample": content}))
    (back,) = load_tables(tmp_path / "results.json").values()
    for name, method in back.methods.items():
        assert method.metrics == results.methods[name].metrics
        assert method.extras == results.methods[name].extras
        assert method.facts == Facts(split="test", split_name="by time")
    assert "Candidates" not in markdown(back)
    assert markdown(back).splitlines()[:6] == markdown(results).splitlines()[:6]


@pytest.mark.parametrize("content", ["", "[1]", '{"sample": {"split": "test"}}', '{"sample": 3}'])
def test_damaged_results(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RecastError, match=r"results.json is damaged \(.*\): make it again"):
        load_tables(tmp_path / "results.json")
    with pytest.raises(RecastError, match=r"results.json is damaged \(.*\): make it again"):
        Results.load(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("methods", "SFT", "metrics", "item/hr@1", "value"), 1.5, "value is 1.5, no number from"),
        (("methods", "SFT", "metrics", "item/hr@1", "low"), float("nan"), "low is nan, no number"),
        (("methods", "SFT", "metrics", "item/hr@1", "low"), 1, "an interval from 1 to"),
        (("methods", "SFT", "extras"), {"cpu_s": "1"}, "cpu_s is '1', no number"),
        (("methods", "SFT", "metrics"), {}, "method GRPO has other metrics than the first"),
        (("methods",), {}, "methods is empty"),
        (("against",), ["GRPO"], "is not against"),
        (("primary",), "item/mrr", "primary is 'item/mrr', none of the metrics"),
        (("users",), 21, "users is 21"),
        (("rows",), -1, "rows is -1"),
        (("training_seeds",), "4", "training_seeds is '4', no list"),
    ],
)
def test_results_that_cannot_be(tmp_path: Path, place: Any, value: Any, message: str) -> None:
    compared().save(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(RecastError, match=rf"results.json is damaged \(.*{message}"):
        Results.load(tmp_path / "results.json")
