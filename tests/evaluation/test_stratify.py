"""The stratified analysis: ranks by hand, strata by a slow loop, and the command itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from torch import Tensor

from recast.config import ModelConfig, PrepareConfig, StratifyConfig
from recast.data.folder import load_data
from recast.data.prepare import prepare
from recast.evaluation.resample import user_intervals
from recast.evaluation.stratify import (
    COLUMNS,
    markdown,
    mean_rank,
    measure,
    stratify_policy,
    summarise,
)
from recast.items.catalog import build_catalog
from recast.policy.create import create_policy
from recast.policy.load import save_policy
from recast.rollout.beam import beam_search
from recast.testing import make_groups
from recast.types import Prompts, RecastError

NUM_ITEMS = 30


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StratifyConfig:
    """12 users, 30 items, an untrained policy and an untrained one-level ranker."""
    folder = tmp_path_factory.mktemp("run")
    draw = torch.Generator().manual_seed(0)
    events = [
        (user, int(item), 100 * place + user)
        for user in range(12)
        for place, item in enumerate(torch.randperm(NUM_ITEMS, generator=draw)[:15])
    ]
    table = pl.DataFrame(events, schema=["user", "item", "time"], orient="row")
    table.write_csv(folder / "events.csv")
    prepare(PrepareConfig(interactions=str(folder / "events.csv"), output=str(folder / "data")))
    shape = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2)
    items = torch.arange(NUM_ITEMS)
    for name, catalog, seed in (
        ("policy", build_catalog(torch.stack([items // 6, items % 6], 1), (6, 6)), 0),
        ("ranker", build_catalog(items[:, None], (NUM_ITEMS,)), 1),
    ):
        save_policy(create_policy(shape, catalog, 8, seed), folder / name)
    return StratifyConfig(
        data=str(folder / "data"),
        policy=str(folder / "policy"),
        ranker=str(folder / "ranker"),
        output=str(folder / "out"),
        group_size=8,
        prompts_per_step=5,
        num_negatives=1,
        rho=0.2,
        threads=torch.get_num_threads(),
    )


def test_equals_share_the_mean_of_their_ranks() -> None:
    """.5 stands after .9 and shares places 2 to 4 with two others; a copy of itself is no rival."""
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.1, 0.5], [0.0] * 5, [1.0] * 5])
    rivals = torch.ones(3, 1, 5, dtype=torch.bool)
    rivals[0, 0, 4] = False
    targets = torch.tensor([[0.5], [1.0], [1.0]])
    assert mean_rank(scores, targets, rivals).tolist() == [3.0, 1.0, 3.5]
    several = torch.tensor([[0.1, 0.9], [1.0, -torch.inf], [0.5, 1.0]])  # the best one counts
    both = torch.ones(3, 2, 5, dtype=torch.bool)
    assert mean_rank(scores, several, both).tolist() == [1.5, 1.0, 3.5]


def test_rows_of_several_targets_count_the_best_one() -> None:
    """The ranker likes the last target alone, the others stand in place of the padding or not."""
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("qwen3", catalog)
    targets = [[i + 20, i + 2] if i % 2 else [i + 2] for i in range(8)]
    prompts = tiny.make_prompts(catalog, [[i] for i in range(8)], targets)
    groups = beam_search(policy, prompts, 6)

    def ranker(prompts: Prompts, items: Tensor) -> Tensor:
        return (items == prompts.row_ids[:, None] + 2).float()

    measured = measure(groups, ranker, tau=0.5, rho=0.2, num_negatives=1)
    assert measured["ranker_rank"].tolist() == [1.0] * 8
    for row, wanted in enumerate(targets):
        own = groups.target_logprobs[row].sum(-1).tolist()[: len(wanted)]
        beams = groups.rollout_logprobs[row].sum(-1).tolist()
        scored = list(zip(beams, groups.items[row].tolist(), strict=True))
        ranks = [
            1 + sum(x > y and item != target for x, item in scored)
            for y, target in zip(own, wanted, strict=True)
        ]
        assert measured["policy_rank"][row] == min(ranks)


def test_of_several_targets_the_best_ranked_counts_and_padding_does_not() -> None:
    """.5 stands behind .9, .2 behind three of the four; the second prompt has one target."""
    scores = torch.tensor([[0.9, 0.4, 0.3, 0.1]]).expand(2, -1)
    targets = torch.tensor([[0.2, 0.5], [0.2, -torch.inf]])
    rivals = torch.ones(2, 2, 4, dtype=torch.bool)
    assert mean_rank(scores, targets, rivals).tolist() == [2.0, 4.0]
    groups = make_groups(
        [[[2], [3], [4]]] * 2,
        [[[7], [4]], [[7]]],
        logprobs=[[-1, -2, -3]] * 2,
        target_logprobs=[[-9, -3], [-9]],
    )
    settings = {"tau": 0.5, "rho": 0.25, "num_negatives": 1}
    found = measure(groups, lambda prompts, items: items.float(), **settings)
    assert found["policy_rank"].tolist() == [3.0, 4.0]
    assert bool((found["chance_ranker_rank"] <= 4).all())


def _measure(config: StratifyConfig, table: Tensor) -> tuple[dict[str, Tensor], Any]:
    catalog = tiny.random_catalog(60, (4, 4, 5))
    policy = tiny.tiny_policy("qwen3", catalog)
    histories = [[i, i + 1, i + 2] for i in range(20)]
    prompts = tiny.make_prompts(catalog, histories, [[i + 20] for i in range(20)])
    groups = beam_search(policy, prompts, config.group_size)

    def ranker(prompts: Prompts, items: Tensor) -> Tensor:
        return table[prompts.row_ids].gather(1, items)

    settings = {name: getattr(config, name) for name in ("tau", "rho", "num_negatives")}
    return measure(groups, ranker, **settings), groups


def test_ranks_are_among_the_beams_and_the_target(config: StratifyConfig) -> None:
    table = torch.rand(20, 60, generator=torch.Generator().manual_seed(4))
    measured, groups = _measure(config, table)
    for row in range(20):
        target = 20 + row
        own = float(groups.target_logprobs[row].sum())
        beams = groups.rollout_logprobs[row].sum(-1).tolist()
        items = groups.items[row].tolist()
        by_policy = 1 + sum(x > own for x, item in zip(beams, items, strict=True) if item != target)
        by_ranker = 1 + sum(bool(table[row, item] > table[row, target]) for item in items)
        assert measured["policy_rank"][row] == by_policy
        assert measured["ranker_rank"][row] == by_ranker
        assert measured["effect"][row] == by_policy - by_ranker
        assert bool(measured["uncertain"][row]) == (by_policy > 2)
        if by_ranker > 2:
            assert not measured["discriminates"][row]
    assert measured["discriminates"].any()
    random = measured["chance_ranker_rank"]
    assert torch.equal(measured["chance_discriminates"], random <= 2)
    assert torch.equal(measured["chance_effect"], measured["policy_rank"] - random)
    assert 3 < float(random.mean()) < 7


def test_a_ranker_that_knows_the_answer_and_one_that_knows_nothing(
    config: StratifyConfig,
) -> None:
    oracle = torch.zeros(20, 60)
    oracle[torch.arange(20), torch.arange(20) + 20] = 1.0
    measured, _ = _measure(config, oracle)
    assert measured["ranker_rank"].tolist() == [1.0] * 20
    blind, groups = _measure(config, torch.zeros(20, 60))
    middle = 1 + (groups.items != groups.prompts.target_items).sum(1) / 2
    assert blind["ranker_rank"].tolist() == middle.tolist()
    assert not blind["discriminates"].any()


def test_strata_equal_a_slow_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    flags = ("uncertain", "discriminates", "chance_discriminates")
    columns: dict[str, Tensor] = {
        name: torch.rand(40, generator=draw).double() for name in COLUMNS
    } | {name: torch.rand(40, generator=draw) < 0.5 for name in flags}
    columns["discriminates"] &= columns["uncertain"]  # one stratum stays empty
    users = torch.randint(9, (40,), generator=draw)
    found = summarise(columns, users, seed=3)
    assert (found["num_rows"], found["num_users"]) == (40, len(set(users.tolist())))
    assert [(s["uncertain"], s["discriminates"]) for s in found["strata"]] == [
        (f, g) for f in (None, True, False) for g in (None, True, False)
    ]
    for stratum in found["strata"]:
        for name, other in (("effect", "discriminates"), ("chance_effect", "chance_discriminates")):
            rows = [
                i
                for i in range(40)
                if stratum["uncertain"] in (None, bool(columns["uncertain"][i]))
                and stratum["discriminates"] in (None, bool(columns[other][i]))
            ]
            assert len(rows) == stratum["rows" if name == "effect" else "chance_rows"]
            if not rows:
                assert stratum[name] is None
                continue
            values = columns[name][rows][:, None].numpy()
            statistics = user_intervals(values, users[rows].numpy(), seed=3)
            wanted = np.stack(statistics)[:, 0].tolist()
            assert list(stratum[name].values()) == wanted
        assert stratum["share"]["value"] == pytest.approx(stratum["rows"] / 40)
    empty = found["strata"][7]
    assert (empty["uncertain"], empty["discriminates"], empty["rows"]) == (False, True, 0)
    facts = {"split": "valid", "split_name": "by hand", "group_size": 8, "tau": 0.25, "rho": 0.5}
    lines = markdown(found | facts | {"num_negatives": 5, "seed": 3}).splitlines()
    assert (
        lines[9]
        == "| no | yes | 0 | 0.00 (0.00 to 0.00) | - | - | - | " + lines[9].split(" | ")[-1]
    )


def test_the_command_writes_what_it_returns(config: StratifyConfig, tmp_path: Path) -> None:
    text = stratify_policy(config)
    folder = Path(config.output)
    assert sorted(file.name for file in folder.iterdir()) == ["stratify.json", "stratify.md"]
    assert (folder / "stratify.md").read_text() == text
    content = json.loads((folder / "stratify.json").read_text())
    data = load_data(config.data)
    assert content["num_rows"] == len(data.rows("valid"))
    strata = {(s["uncertain"], s["discriminates"]): s for s in content["strata"]}
    assert strata[None, None]["rows"] == content["num_rows"]
    assert sum(strata[f, g]["rows"] for f in (True, False) for g in (True, False)) == len(
        data.rows("valid")
    )
    both = strata[True, True]
    assert both["rows"] > 0
    # Ranked third or worse by the policy, first or second by the ranker.
    assert both["effect"]["value"] >= 1
    assert both["policy_rank"]["value"] - both["ranker_rank"]["value"] == pytest.approx(
        both["effect"]["value"]
    )
    assert "8 beams and itself" in text
    with pytest.raises(RecastError, match="already holds something"):
        stratify_policy(config)
    again = StratifyConfig(**(vars(config) | {"output": str(tmp_path / "again")}))
    assert stratify_policy(again) == text
    other = StratifyConfig(**(vars(config) | {"output": str(tmp_path / "other"), "seed": 1}))
    assert stratify_policy(other) != text


def test_what_does_not_fit_is_refused(config: StratifyConfig, tmp_path: Path) -> None:
    def refused(line: str, **changes: Any) -> None:
        with pytest.raises(RecastError, match=line):
            stratify_policy(
                StratifyConfig(**(vars(config) | {"output": str(tmp_path / "x")} | changes))
            )

    refused("ranker is 'nowhere'", ranker="nowhere")
    refused("rows is 1: give 2 or more", rows=1)
    refused("prompts_per_step is 1: give 2 or more", prompts_per_step=1)
    refused("tau is 0: give a share above 0", tau=0)
    refused("rho is 2: give a share from 0 to 1", rho=2)
    assert list(tmp_path.iterdir()) == []
