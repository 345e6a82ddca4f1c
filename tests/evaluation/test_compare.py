from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from small_ranks import FACTS, USERS, compared, ranks_of

from recast.evaluation.metrics import row_metrics
from recast.evaluation.resample import user_intervals, user_p_values
from recast.evaluation.results import Difference
from recast.types import RecastError


def test_schema() -> None:
    results = asdict(compared())
    methods = results.pop("methods")
    assert results == {
        "split": "test",
        "split_name": "by time",
        "rows": 20,
        "users": 6,
        "resampled": "users",
        "draws": 200,
        "seed": 0,
        "training_seeds": (4,),
        "primary": "item/ndcg@10",
        "against": ("SFT", "GRPO"),
        "sid_equals_item": True,
    }
    assert list(methods) == ["SFT", "GRPO", "ReCast"]
    assert [method["extras"] for method in methods.values()] == [
        {},
        {"rollouts": 320, "cpu_s": 1.5},
        {},
    ]
    for name, method in methods.items():
        assert list(method) == ["metrics", "extras", "facts"]
        assert method["facts"] == asdict(FACTS)
        assert list(method["metrics"]) == list(row_metrics(ranks_of(0)))
        for metric in method["metrics"].values():
            assert list(metric) == ["value", "low", "high", "against"]
            assert list(metric["against"]) == [other for other in ("SFT", "GRPO") if other != name]
            for versus in metric["against"].values():
                assert list(versus) == ["difference", "low", "high", "p"]


def test_numbers_are_those_of_the_resampling_and_survive_json() -> None:
    results = json.loads(json.dumps(asdict(compared())))
    users = USERS.numpy()
    tables = {
        name: np.stack([v.numpy() for v in row_metrics(ranks_of(seed)).values()], 1)
        for seed, name in enumerate(results["methods"])
    }
    for name, method in results["methods"].items():
        found = np.array([[m["value"], m["low"], m["high"]] for m in method["metrics"].values()])
        np.testing.assert_allclose(found.T, user_intervals(tables[name], users, 200))
        for other in method["metrics"]["item/hr@1"]["against"]:
            rows = [m["against"][other] for m in method["metrics"].values()]
            found = np.array([[r["difference"], r["low"], r["high"]] for r in rows])
            a, b = tables[name], tables[other]
            np.testing.assert_allclose(found.T, user_intervals(a - b, users, 200), atol=1e-15)
            np.testing.assert_allclose([r["p"] for r in rows], user_p_values(a, b, users, 200))


def test_equal_methods_do_not_differ() -> None:
    results = compared(
        methods={"SFT": ranks_of(0), "copy": ranks_of(0)}, against=["SFT"], extras={}
    )
    versus = results.methods["copy"].metrics["item/ndcg@10"].against["SFT"]
    assert versus == Difference(difference=0.0, low=0.0, high=0.0, p=1.0)


def test_shared_sids_are_noticed() -> None:
    methods = {"SFT": ranks_of(0), "other": ranks_of(1, sharing=3)}
    assert not compared(methods=methods, against=[], extras={}).sid_equals_item


def test_cuts_and_levels_of_one_s_own() -> None:
    results = compared(at=(3, 10), levels=("item",))
    assert results.metrics == ["item/hr@3", "item/hr@10", "item/ndcg@3", "item/ndcg@10"]
    assert not results.sid_equals_item  # nobody looked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "there is no method to compare: give the ranks of at least one"),
        ({"against": ["sft"]}, "method 'sft' has no ranks: choose from SFT, GRPO, ReCast"),
        ({"extras": {"RL": {}}}, "method 'RL' has no ranks: choose from SFT, GRPO, ReCast"),
        (
            {"extras": {"SFT": {"cpu": 1.0}}},
            "extra 'cpu' of SFT: choose from rollouts, cpu_s, invalid_frac, optimizer_steps",
        ),
        (
            {"methods": {"SFT": ranks_of(0), "GRPO": replace(ranks_of(1), row_ids=USERS)}},
            "GRPO and SFT ranked different rows: rank the same rows in the same order",
        ),
        (
            {
                "methods": {
                    "SFT": ranks_of(0),
                    "GRPO": replace(ranks_of(1), item_mask=torch.zeros(20, 1, dtype=torch.bool)),
                }
            },
            "GRPO and SFT ranked different targets: give both the same targets",
        ),
        ({"at": [1, 5]}, r"at is \[1, 5\].*: the primary metric item/ndcg@10 is not among them"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(RecastError, match=message):
        compared(**changes)
