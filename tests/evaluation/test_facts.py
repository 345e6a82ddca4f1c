from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_ranks import FACTS, compared, ranks_of

from recast.data.folder import data_hash
from recast.evaluation.facts import (
    EVALUATOR,
    Facts,
    events_of_guide,
    joined,
    kept_of,
    read_facts,
    refuse_to_mix,
    training_of,
    valid_of,
)
from recast.types import RecastError

OTHER: dict[str, Any] = {
    "split": "valid",
    "split_name": "leave one out",
    "num_candidates": 29,
    "exclude_seen": False,
    "beam_width": 32,
    "evaluator": EVALUATOR + 1,
}


@pytest.mark.parametrize("fact", OTHER)
def test_what_differs_is_named_with_both_values(fact: str) -> None:
    other = replace(ranks_of(1), facts=replace(FACTS, **{fact: OTHER[fact]}))
    line = f"{fact} is {OTHER[fact]!r} for GRPO and {getattr(FACTS, fact)!r} for SFT: "
    with pytest.raises(RecastError) as refused:
        compared(methods={"SFT": ranks_of(0), "GRPO": other}, extras={})
    assert str(refused.value).startswith(line)
    assert str(refused.value).endswith(" to compare them")


def test_what_may_differ() -> None:
    refuse_to_mix(
        {
            "SFT": replace(FACTS, events_seen=("train",), training_seed=3, ties="expectation"),
            "kNN": replace(FACTS, beam_width=None, ties="random", seed=1),
            "old": Facts(),
        }
    )


def test_an_unknown_fact_hides_no_difference() -> None:
    old = replace(FACTS, split=None)
    with pytest.raises(RecastError, match="split is 'valid' for c and 'test' for b"):
        refuse_to_mix({"a": old, "b": FACTS, "c": replace(FACTS, split="valid")})


def test_facts_survive_json() -> None:
    facts = replace(FACTS, events_seen=("train", "rl"), seed=4)
    assert read_facts(json.loads(json.dumps({"facts": asdict(facts), "split": "valid"}))) == facts


def test_facts_of_earlier_releases_are_among_the_settings() -> None:
    settings = {"split": "valid", "split_name": "by time", "beam_width": 32, "seed": 5, "alpha": 1}
    assert read_facts(settings) == Facts(split="valid", split_name="by time", beam_width=32)
    with pytest.raises(ValueError, match="fact beam_width is '32'"):
        read_facts({"facts": {"beam_width": "32"}})


def test_what_a_policy_was_trained_on(walk: Path, tmp_path: Path) -> None:
    data = walk / "data"

    def run(name: str, settings: dict[str, Any], hash: str | None = None) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings))
        env = {"data_hash": hash or data_hash(data)}
        (tmp_path / name / "env.json").write_text(json.dumps(env))
        return tmp_path / name / "policy"

    assert training_of(walk / "sft" / "policy", data) == (("train",), 0)
    sft = run("sft", {"seed": 3})
    rl = run("rl", {"seed": 4, "policy": str(sft)})
    again = run("again", {"seed": 5, "policy": str(rl)})
    assert training_of(sft, data) == (("train",), 3)
    assert training_of(rl, data) == (("train", "rl"), 4)
    assert training_of(again, data) == (("train", "rl"), 5)
    # Shown the slice of RL from the start, in any order; a further SFT has seen what its start saw.
    both = run("both", {"seed": 8, "splits": ["rl", "train"]})
    assert training_of(both, data) == (("train", "rl"), 8)
    assert training_of(run("rl2", {"seed": 9, "policy": str(both)}), data)[0] == ("train", "rl")
    further = {"seed": 1, "splits": ["train"], "model": {"path": str(walk / "sft" / "policy")}}
    assert training_of(run("further", further), data) == (("train",), 1)
    rl.mkdir()
    (rl / "recast.json").write_text("{}")
    further["model"] = {"path": str(rl)}
    assert training_of(run("after_rl", further), data) == (("train", "rl"), 1)
    further["model"] = {"path": str(walk)}  # a model of another kind has seen nothing of this
    assert training_of(run("backbone", further), data) == (("train",), 1)
    for splits in ([], ["later"], "train", 3, None):
        name = f"bad{splits}"
        assert training_of(run(name, {"seed": 2, "splits": splits}), data) in {
            (None, 2),
            (None, None),
        }
    # A chain that breaks, other data, no run folder, a damaged one.
    lost = run("lost", {"seed": 6, "policy": "nowhere/policy"})
    assert training_of(lost, data) == (None, 6)
    assert training_of(run("other", {"seed": 7}, hash="f00"), data) == (None, 7)
    assert training_of(tmp_path / "sft" / "policy" / "deeper", data) == (None, None)
    (tmp_path / "sft" / "config.yaml").write_text("a: [")
    assert training_of(sft, data) == (None, None)
    assert training_of(rl, data) == (None, 4)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"policy": "sft/policy", "keep": "best"}, "best"),
        ({"catalog": "items", "keep": "last"}, "last"),
        ({"policy": "sft/policy"}, "last"),  # as runs were before it was a setting
        ({"catalog": "items"}, "best"),
        ({"catalog": "items", "keep": "first"}, None),
        ({"lr": 1}, None),  # of another program
        ("a: [", None),
        (None, None),
    ],
)
def test_which_weights_a_run_kept(
    settings: dict[str, str] | str | None, kept: str | None, tmp_path: Path
) -> None:
    if settings is not None:
        (tmp_path / "config.yaml").write_text(
            settings if isinstance(settings, str) else yaml.safe_dump(settings)
        )
    assert kept_of(tmp_path / "policy") == kept


@pytest.mark.parametrize(
    ("keep", "values", "valid"),
    [
        ("best", [0.1, 0.3, 0.2], 0.3),
        ("last", [0.1, 0.3, 0.2], 0.2),
        ("last", [], None),
        ("last", [0.1, 2.0], None),
        ("last", ["x"], None),
        ("first", [0.1], None),
    ],
)
def test_what_a_run_s_validation_said(
    keep: str, values: list[Any], valid: float | None, tmp_path: Path
) -> None:
    assert valid_of(tmp_path / "policy") is None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"catalog": "c", "keep": keep}))
    lines = [json.dumps({"step": 1, "sft/loss": 2.0, "valid/hr@10": 0.9})]
    lines += [json.dumps({"step": 2, "valid/ndcg@10": value}) for value in values]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    assert valid_of(tmp_path / "policy") == valid
    (tmp_path / "metrics.jsonl").write_text('{"valid/ndcg@10": ')
    assert valid_of(tmp_path / "policy") is None


def test_a_guide_s_events_are_seen_too(walk: Path) -> None:
    assert joined(("train",), ("rl", "train")) == ("train", "rl")
    assert joined(("train",), None) is None
    assert events_of_guide(str(walk / "sft" / "policy"), walk / "data") == ("train",)
    assert events_of_guide("module:function", walk / "data") is None
