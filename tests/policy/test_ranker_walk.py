"""A ranker on the small walk: made by `tokenize --num_levels 1` and `sft`, read by AdaGRPO."""

from __future__ import annotations

import json
from pathlib import Path

import naive
import pytest
import tiny
import torch
from small_walk import metric_lines, rl_config, same, sft_config, weights

from recast.config import EvaluateConfig, StratifyConfig, TokenizeConfig
from recast.data.folder import load_data
from recast.evaluation.evaluate import evaluate_policy
from recast.evaluation.stratify import stratify_policy
from recast.items.tokenize import tokenize
from recast.policy.load import load_policy
from recast.policy.ranker import load_ranker
from recast.rl import train_rl
from recast.sft import train_sft

SIGNAL = "recast.signals.adagrpo:adagrpo"


@pytest.fixture(scope="module")
def ranker(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-level policy of the walk's data; its window is shorter than the policy's."""
    folder = tmp_path_factory.mktemp("ranker")
    catalog = folder / "catalog"
    tokenize(TokenizeConfig(data=str(walk / "data"), output=str(catalog), num_levels=1))
    train_sft(sft_config(walk, folder / "sft", catalog=str(catalog), window=5))
    return folder / "sft" / "policy"


def test_the_ranker_learnt_the_walk_and_scores_like_a_naive_forward(
    walk: Path, ranker: Path
) -> None:
    data, policy = load_data(walk / "data"), load_policy(walk / "sft" / "policy")
    rows = data.rows("valid")[:40]
    prompts = tiny.task_of(data, policy).prompts(rows)
    items = torch.arange(policy.catalog.num_items).expand(40, -1)
    scores = load_ranker(str(ranker), policy.catalog)(prompts, items)
    own = load_policy(ranker)
    for row in range(0, 40, 7):
        event = int(rows[row])
        history = data.items[max(int(data.starts[event]), event - 4) : event]
        tokens = [own.catalog.bos_token, *(own.catalog.first_token + history).tolist()]
        with torch.no_grad():
            logprobs = naive.next_logits(own.model, tokens, 1)[0].log_softmax(-1)
        torch.testing.assert_close(scores[row], logprobs[2:], rtol=1e-4, atol=1e-4)
    # A ring whose next step is one of two: the target is among the first five of 48.
    place = (scores > scores.gather(1, prompts.target_items)).sum(1)
    assert float((place < 5).float().mean()) > 0.8


def test_adagrpo_from_the_command_s_settings(walk: Path, ranker: Path, tmp_path: Path) -> None:
    settings = {"method": "openonerec_rl", "signal": SIGNAL, "ranker": str(ranker)}
    settings |= {"kl_coef": 0.0, "signal_args": {"num_negatives": 2, "rho": 0.3}}
    runs = [tmp_path / "run", tmp_path / "again"]
    for run in runs:
        train_rl(rl_config(walk, run, **settings))
    lines = metric_lines(runs[0])[1:]
    for line in lines:
        admitted = line["gate/admitted_frac"]
        assert admitted <= min(line["gate/uncertain_frac"], line["gate/discriminates_frac"])
        assert line["actor/kept_rows"] == pytest.approx(admitted * 8 * 6)
        assert line["actor/nll"] > 0
    assert any(line["gate/admitted_frac"] > 0 for line in lines)
    assert any(line["gate/admitted_frac"] < 1 for line in lines)
    assert same(weights(runs[0]), weights(runs[1]))


def test_a_one_level_policy_is_a_policy_like_any_other(
    walk: Path, ranker: Path, tmp_path: Path
) -> None:
    """Every rollout is one token; it is post-trained, saved and evaluated."""
    for method in ("recast", "openonerec_rl"):
        for sampler in ("sample", "beam"):
            run = tmp_path / f"{method}-{sampler}"
            config = rl_config(walk, run, policy=str(ranker), method=method, sampler=sampler)
            assert train_rl(config)["rollouts"] == 3 * 8 * 6
    means = evaluate_policy(
        EvaluateConfig(
            data=str(walk / "data"),
            policy=str(tmp_path / "recast-beam" / "policy"),
            output=str(tmp_path / "eval"),
            threads=1,
        )
    )
    assert means["item/hr@10"] > 0.8
    assert means["item/hr@10"] == means["sid/hr@10"]


def test_the_stratified_analysis(walk: Path, ranker: Path, tmp_path: Path) -> None:
    config = StratifyConfig(
        data=str(walk / "data"),
        policy=str(walk / "sft" / "policy"),
        ranker=str(ranker),
        output=str(tmp_path / "out"),
        group_size=12,
        rows=60,
        threads=1,
    )
    text = stratify_policy(config)
    content = json.loads((tmp_path / "out" / "stratify.json").read_text())
    assert content["num_rows"] == 60
    assert text.count("\n| ") == 10  # a rule and nine strata under the headings
    # The half-trained policy of three levels knows the ring less well than the ranker.
    assert content["strata"][0]["effect"]["value"] > 0
