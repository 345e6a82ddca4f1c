"""Post-training on the small walk: every method by every sampler, on the same prompts."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
import torch
import yaml
from checked import unchecked
from safetensors.torch import load_file
from small_walk import metric_lines, rl_config, same, weights
from torch import Tensor

from recast.config import LoRAConfig, RLConfig
from recast.data.folder import load_data
from recast.draws import uniforms
from recast.evaluation.metrics import row_metrics
from recast.evaluation.rank import rank_policy, sample_rows
from recast.evaluation.validation import validate
from recast.methods.assembly import resolve
from recast.methods.parts import spell
from recast.methods.table import METHODS
from recast.policy.load import load_policy, save_policy
from recast.rl import train_rl
from recast.rollout.beam import beam_search
from recast.rollout.sample import sample
from recast.train.search import prompt_batches
from recast.train.setup import set_up_rl
from recast.types import Interactions, Metrics, RecastError, RolloutGroups, Signal

SAMPLERS = {"sample": sample, "beam": beam_search}
RUNS = [(m, s) for m in ("openonerec_rl", "recast") for s in SAMPLERS] + [("sft_continued", None)]
RECAST = METHODS["recast"]
WITH_ROLLOUTS = RUNS[:-1]

Runs = dict[tuple[str, str | None], tuple[Path, Metrics]]


@pytest.fixture(scope="module")
def runs(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Folder and result of every method by every sampler, three steps each."""
    found: Runs = {}
    for method, sampler in RUNS:
        folder = tmp_path_factory.mktemp("rl") / "run"
        result = train_rl(rl_config(walk, folder, method=method, sampler=sampler))
        found[method, sampler] = folder, result
    return found


def batches_of(data: Interactions, config: RLConfig, count: int | None = None) -> Tensor:
    """The row ids of every step."""
    return prompt_batches(
        data.rows("rl"), config.prompts_per_step, count or config.steps, config.seed
    )


def rollouts_of(run: Path) -> pl.DataFrame:
    return pl.read_parquet(run / "rollouts" / "*.parquet")


def test_a_row_comes_once_in_a_pass(walk: Path, tmp_path: Path) -> None:
    data = load_data(walk / "data")
    rows = data.rows("rl")
    config = rl_config(walk, tmp_path, steps=40, prompts_per_step=8)
    batches = batches_of(data, config)
    assert batches.shape == (40, 8)
    per_pass = len(rows) // 8
    for start in range(0, 40 - per_pass + 1, per_pass):
        used = batches[start : start + per_pass].flatten()
        assert len(used.unique()) == len(used) == 8 * per_pass
        assert torch.isin(used, rows).all()
    assert not batches[:per_pass].equal(batches[per_pass : 2 * per_pass])
    with pytest.raises(RecastError, match=r"prompts_per_step is 500: .* rows in the rl slice"):
        batches_of(data, replace(config, prompts_per_step=500))
    # How many are asked for moves no prompt; the seed does.
    assert batches_of(data, config, 3).equal(batches[:3])
    assert not batches_of(data, replace(config, seed=1)).equal(batches)


def test_a_method_that_fills_its_batches_finds_further_ones_behind(
    walk: Path, tmp_path: Path
) -> None:
    config = rl_config(walk, tmp_path / "run", method="dapo", max_rollout_batches=4)
    setup = set_up_rl(config)
    batches = batches_of(load_data(walk / "data"), config, 12)
    assert setup.batches.equal(batches[:3])
    assert setup.surplus.equal(batches[3:])


def test_all_methods_see_the_same_prompts(walk: Path, runs: Runs) -> None:
    data = load_data(walk / "data")
    wanted = batches_of(data, rl_config(walk, Path("unused")))
    for key in WITH_ROLLOUTS:
        table = rollouts_of(runs[key][0])
        assert table["step"].to_list() == [s for s in (1, 2, 3) for _ in range(8 * 6)]
        rows = torch.tensor(table["row_id"].to_list()).view(3, 8, 6)
        assert rows.equal(wanted[..., None].expand(3, 8, 6))
    assert not (runs["sft_continued", None][0] / "rollouts").exists()


def test_what_a_run_reports(walk: Path, runs: Runs) -> None:
    data, policy = load_data(walk / "data"), load_policy(walk / "sft" / "policy")
    start = validate(policy, tiny.task_of(data, policy), sample_rows(data.rows("valid"), 40))
    for (method, sampler), (folder, result) in runs.items():
        lines = metric_lines(folder)
        assert [line["step"] for line in lines] == [0, 1, 2, 3]
        label = METHODS[method].label
        stage = f"{label}, {sampler} rollouts" if sampler else label
        assert {line["stage"] for line in lines} == {stage}
        assert {key: lines[0][key] for key in start} == start
        assert ["valid/ndcg@10" in line for line in lines] == [True, False, True, True]
        assert {key: lines[-1][key] for key in start} == {key: result[key] for key in start}
        assert result["optimizer_steps"] == 3
        exist = 0 if sampler is None else rollouts_of(folder).filter(pl.col("item") >= 0).height
        assert result["rollouts"] == exist
        assert exist == (0 if sampler is None else 3 * 8 * 6)
        assert result["cpu_s"] > 0
        config = yaml.safe_load((folder / "config.yaml").read_text())
        wanted = asdict(rl_config(walk, folder, method=method, sampler=sampler))
        used = ("lr", "kl_coef", "loss_agg", "nll_coef", "add_gt", "list_length")
        wanted |= {name: getattr(METHODS[method], name) for name in used}
        wanted |= {"logprob_space": "full", "micro_batch_tokens": 65536}
        for kind in ("reward", "signal", "loss"):  # what ran, spelt so that it can be run again
            wanted[kind], wanted[f"{kind}_args"] = spell(getattr(METHODS[method], kind))
        assert config == wanted
        assert not same(weights(folder), weights(walk / "sft"))


def test_learnability(runs: Runs) -> None:
    for method, sampler in WITH_ROLLOUTS:
        table = rollouts_of(runs[method, sampler][0])
        groups = table.group_by("step", "row_id", maintain_order=True).agg(
            hits=(pl.col("reward") > 0).sum(), repaired=pl.col("repaired").any()
        )
        lines = metric_lines(runs[method, sampler][0])[1:]
        assert any(line["group/all_zero_frac"] > 0 for line in lines)
        for line in lines:
            names = list(line)
            assert names[3:7] == [
                "group/all_zero_frac",
                "group/single_hit_frac",
                "group/trainable_frac",
                "group/repaired_frac",
            ]
            hits = groups.filter(pl.col("step") == line["step"])["hits"]
            assert line["group/all_zero_frac"] == (hits == 0).mean()
            assert line["group/single_hit_frac"] == (hits == 1).mean()
            rewards = table.filter(pl.col("step") == line["step"])["reward"]
            assert line["reward/mean"] == pytest.approx(rewards.mean())
            mixed = ((hits > 0) & (hits < 6)).mean()
            all_hit = (hits == 6).mean()
            if method == "recast":
                assert line["group/repaired_frac"] == line["group/all_zero_frac"]
                assert line["group/trainable_frac"] == pytest.approx(1 - all_hit)
            else:
                assert line["group/repaired_frac"] == 0
                assert line["group/trainable_frac"] == pytest.approx(mixed)
        wants_repair = (groups["hits"] == 0) if method == "recast" else groups["hits"] < 0
        # A group is repaired in one place, unless that place held the target: then it was a hit.
        assert groups["repaired"].to_list() == wants_repair.to_list()


@pytest.mark.parametrize(("method", "sampler"), WITH_ROLLOUTS)
def test_the_rollouts_of_the_first_step(walk: Path, runs: Runs, method: str, sampler: str) -> None:
    """The Parquet file holds what the SFT policy rolls out, rewarded by hand."""
    data, policy = load_data(walk / "data"), load_policy(walk / "sft" / "policy")
    config = rl_config(walk, Path("unused"))
    prompts = tiny.task_of(data, policy).prompts(batches_of(data, config)[0])
    groups = SAMPLERS[sampler](policy, prompts, config.group_size)
    table = rollouts_of(runs[method, sampler][0]).filter(pl.col("step") == 1)
    assert table["item"].to_list() == groups.items.flatten().tolist()
    assert table["rank"].to_list() == list(range(6)) * 8
    assert (
        policy.catalog.tokens_of(groups.items).flatten(0, 1).tolist() == table["tokens"].to_list()
    )
    logprob = groups.rollout_logprobs.sum(-1).flatten()
    assert torch.tensor(table["logprob"].to_list()).allclose(logprob)
    targets = data.items[torch.tensor(table["row_id"].to_list())]
    hits = (torch.tensor(table["item"].to_list()) == targets).float()
    assert table["reward"].to_list() == hits.tolist()
    # Most probable first; nothing seen before; ReCast keeps a pair of opposite weights.
    assert (logprob.view(8, 6).diff(dim=1) <= 0).all()
    assert not (groups.items[:, :, None] == prompts.seen[:, None]).any()
    kept = torch.tensor(table["keep"].to_list()).view(8, 6)
    advantages = torch.tensor(table["advantage"].to_list()).view(8, 6)
    if method == "recast":
        assert set(kept.sum(1).tolist()) <= {0, 2}
        assert kept.equal(advantages != 0)
        assert advantages.sum(1).eq(0).all()
    else:
        assert kept.all()
        assert advantages.sum(1).abs().max() < 1e-5


@pytest.mark.parametrize(("method", "sampler"), RUNS)
def test_the_same_seed_gives_the_same_bits(
    walk: Path, runs: Runs, tmp_path: Path, method: str, sampler: str | None
) -> None:
    torch.rand(7)  # what ran before has no influence
    folder, result = runs[method, sampler]
    again = train_rl(rl_config(walk, tmp_path / "run", method=method, sampler=sampler))
    assert same(weights(tmp_path / "run"), weights(folder))
    assert {k: v for k, v in again.items() if k != "cpu_s"} == {
        k: v for k, v in result.items() if k != "cpu_s"
    }
    if sampler:
        assert rollouts_of(tmp_path / "run").equals(rollouts_of(folder))


def test_another_seed_is_another_run(walk: Path, runs: Runs, tmp_path: Path) -> None:
    train_rl(rl_config(walk, tmp_path / "run", method="recast", sampler="sample", seed=1))
    folder = runs["recast", "sample"][0]
    assert not rollouts_of(tmp_path / "run").equals(rollouts_of(folder))
    assert not same(weights(tmp_path / "run"), weights(folder))


def test_several_updates_per_rollout_are_counted(walk: Path, tmp_path: Path) -> None:
    result = train_rl(rl_config(walk, tmp_path / "run", updates_per_rollout=2))
    assert result["optimizer_steps"] == 6
    deviations = [line["actor/ratio_deviation"] for line in metric_lines(tmp_path / "run")[1:]]
    assert all(deviation > 0 for deviation in deviations)


def test_a_run_logs_what_it_costs_and_the_chosen_curves(walk: Path, tmp_path: Path) -> None:
    """Two mini-batches of 24 rollouts a step, with a KL: every phase has its costs."""
    curves = ["hr@1", "recall@50"]
    changes = {"method": "openonerec_rl", "mini_batch_rows": 24, "valid_metrics": curves}
    result = train_rl(rl_config(walk, tmp_path / "run", **changes))
    assert result["optimizer_steps"] == 6
    start, *lines = metric_lines(tmp_path / "run")
    assert set(start) - {"memory/valid_gb"} == {  # which not every system tells
        "step",
        "stage",
        "time_s",
        "time/valid_s",
        "tokens/valid",
        "memory/peak_gb",
        "valid/hr@1",
        "valid/recall@50",
    }
    phases = {f"time/{name}_s" for name in ("rollout", "signal", "reference", "update")}
    for line in lines:
        measured = {name for name in line if name.startswith("time/")} - {"time/valid_s"}
        assert measured == phases | {"time/old_logprobs_s"}
        assert all(line[name] > 0 for name in measured)
        assert 0.01 < line["memory/peak_gb"] < 100
        assert line["actor/optimizer_steps"] == 2
        assert line["tokens/reference"] == line["tokens/update"] > line["actor/sent_rows"] == 48
        assert line["tokens/update"] > line["tokens/old_logprobs"] > 0 < line["tokens/rollout"]
        held = {name: value for name, value in line.items() if name.startswith("memory/")}
        assert max(held.values()) == line["memory/peak_gb"]
        levels = [value for name, value in line.items() if name.startswith("actor/entropy_l")]
        assert line["actor/entropy"] == pytest.approx(sum(levels) / len(levels))  # equally long
        assert min(levels) > 0
        shares = [line[f"actor/{name}_frac"] for name in ("clip_low", "clip_high", "dual_clip")]
        assert all(0 <= share <= 1 for share in shares)
    assert ["valid/hr@1" in line for line in lines] == [False, True, True]
    assert [line["time/valid_s"] > 0 for line in lines[1:]] == [True, True]
    assert set(curves) == {name[6:] for name in result if name.startswith("valid/")}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mini_batch_rows": 0}, "mini_batch_rows is 0: give 1 or more"),
        ({"mini_batch_rows": 49}, "mini_batch_rows is 49: a step has 48 rollouts, give fewer"),
        (
            {"method": "dpo", "mini_batch_rows": 2},
            "mini_batch_rows is 2: loss dpo compares the rollouts of a group",
        ),
        ({"method": "sft_continued", "mini_batch_rows": 2}, "'sft_continued' makes no rollouts"),
        (
            {"method": "dr_grpo", "loss_agg": "seq-mean-token-mean"},
            "loss_agg is 'seq-mean-token-mean': loss dr_grpo is none per token and no KL is taken",
        ),
        (
            {"method": "dapo", "kl_estimator": "k2"},
            "kl_estimator is 'k2': method 'dapo' takes no KL",
        ),
        ({"valid_metrics": []}, "valid_metrics is []: name one or more, such as ndcg@10 hr@10"),
        ({"valid_metrics": ["ndgc@5"]}, "valid_metrics is 'ndgc@5': did you mean 'ndcg@5'?"),
        ({"valid_metrics": ["hr@0"]}, "valid_metrics is 'hr@0': did you mean 'hr@10'?"),
        ({"valid_metrics": ["hr@99999999999"]}, "and a whole number from 1 to 1000"),
        ({"valid_metrics": ["hr"]}, "valid_metrics is 'hr': did you mean 'hr@10'?"),
    ],
)
def test_settings_of_the_update_that_do_not_fit_are_refused(
    walk: Path, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(RecastError, match=re.escape(line)):
        train_rl(rl_config(walk, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_the_start_is_left_alone(walk: Path, runs: Runs) -> None:
    """With one update per batch the ratio is 1, and before the first step the KL is 0."""
    for key in WITH_ROLLOUTS:
        lines = metric_lines(runs[key][0])[1:]
        assert [line["actor/ratio_deviation"] for line in lines] == [0, 0, 0]
        assert lines[0]["actor/kl"] == 0
        assert lines[2]["actor/kl"] > 0


# 60 steps at 1e-3: Adam can move a weight by up to 0.06, more than its initial scale of 0.05.
# By samples every method does so in `methods/test_table.py`.
@pytest.mark.parametrize(("method", "sampler"), [run for run in RUNS if run[1] != "sample"])
def test_recall_rises_on_the_prompts(
    walk: Path, tmp_path: Path, method: str, sampler: str | None
) -> None:
    data = load_data(walk / "data")

    def recall(run: Path) -> float:
        trained = load_policy(run / "policy")
        ranks = rank_policy(trained, tiny.task_of(data, trained), data.rows("rl"), 10)
        return float(row_metrics(ranks)["item/hr@1"].mean())

    settings = {"steps": 60, "prompts_per_step": 16, "group_size": 8, "eval_every": 60}
    config = rl_config(walk, tmp_path / "run", method=method, sampler=sampler, lr=1e-3, **settings)
    train_rl(config)
    assert recall(tmp_path / "run") > 0.05 + recall(walk / "sft")


def test_settings_go_to_the_method() -> None:
    folders = {"data": "d", "policy": "p", "output": "o"}
    plain = resolve(RLConfig(**folders))
    assert plain == replace(METHODS["recast"], samplers=("sample",))
    changed = resolve(RLConfig(**folders, sampler="beam", lr=1e-5, kl_coef=0.0))
    assert changed == replace(plain, samplers=("beam",), lr=1e-5, kl_coef=0.0)
    with pytest.raises(RecastError, match="'sft_continued' makes no rollouts, leave it out"):
        resolve(RLConfig(**folders, method="sft_continued", sampler="sample"))


def test_draws_of_the_prompts_by_hand(walk: Path, tmp_path: Path) -> None:
    """The first batch: the rows of least draw, in the order of the draws."""
    data = load_data(walk / "data")
    rows = data.rows("rl")
    drawn = uniforms(0, 0, rows, "prompts", 1)[:, 0].tolist()
    by_draw = [row for _, row in sorted(zip(drawn, rows.tolist(), strict=True))]
    assert batches_of(data, rl_config(walk, tmp_path))[0].tolist() == by_draw[:8]


def test_weights_are_float32_in_training_whatever_they_were_and_bfloat16_computes_alike(
    walk: Path, tmp_path: Path
) -> None:
    start = load_policy(walk / "sft" / "policy")
    start.model.bfloat16()
    save_policy(start, tmp_path / "half")
    runs = {}
    for precision in ("float32", "bfloat16"):
        run = tmp_path / precision
        settings = {"policy": str(tmp_path / "half"), "precision": precision, "lr": 1e-5}
        train_rl(rl_config(walk, run, **settings))
        runs[precision] = weights(run)
    begin = load_file(tmp_path / "half" / "model.safetensors")
    # Steps of 1e-5 are less than half the distance of two bfloat16 numbers near 0.05.
    moved = torch.cat([(runs["float32"][k] - begin[k].float()).flatten() for k in begin])
    assert (moved != 0).float().mean() > 0.9
    assert moved.abs().max() < 1e-4
    other = torch.cat([(runs["bfloat16"][k] - begin[k].float()).flatten() for k in begin])
    assert torch.cosine_similarity(moved, other, dim=0) > 0.5
    assert not torch.equal(moved, other)


def test_rewards_are_not_computed_in_bfloat16(walk: Path, tmp_path: Path) -> None:
    products = []

    def near(groups: RolloutGroups) -> Tensor:
        products.append(torch.eye(2) @ torch.eye(2))
        return (groups.items % 2).float()

    config = rl_config(walk, tmp_path / "own", precision="bfloat16", steps=1)
    train_rl(config, method=replace(RECAST, reward=near, label="Near"))
    assert {product.dtype for product in products} == {torch.float32}
    # Products of sparse matrices, which torch has not in half precision.
    ranked = {"reward": "collaborative", "ranker": "item_knn", "steps": 1}
    train_rl(rl_config(walk, tmp_path / "ranked", precision="bfloat16", **ranked))


def test_a_method_is_a_value_at_the_door_too(walk: Path, tmp_path: Path) -> None:
    def louder(groups: RolloutGroups, rewards: Tensor) -> Signal:
        signal = RECAST.signal(groups, rewards)
        return replace(signal, advantages=2 * signal.advantages)

    mine = replace(RECAST, signal=louder, label="Louder")
    config = rl_config(walk, tmp_path / "value")
    train_rl(config, method=mine)
    settings = yaml.safe_load((tmp_path / "value" / "config.yaml").read_text())
    assert settings["signal"].endswith("louder")
    assert metric_lines(tmp_path / "value")[-1]["stage"] == "Louder, sample rollouts"
    train_rl(rl_config(walk, tmp_path / "own"), method=RECAST)
    train_rl(rl_config(walk, tmp_path / "name"))
    assert same(weights(tmp_path / "own"), weights(tmp_path / "name"))
    assert not same(weights(tmp_path / "value"), weights(tmp_path / "name"))
    twice = rl_config(walk, tmp_path / "twice", method="rere")
    with pytest.raises(RecastError, match="method is 'rere': a method was given as a value too"):
        train_rl(twice, method=mine)


WRONG_VALUES = {
    "signal is 'grpo': give a function": {"signal": "grpo"},
    "loss is None: give a function": {"loss": None},
    "min_group_size is 2: a method without samplers has 0": {"samplers": ()},
    "samplers is None: give a tuple": {"samplers": None},
    "space is 'bogus': choose one of full, level, trie": {"space": "bogus"},
    "add_gt is 'no': give True or False": {"add_gt": "no"},
    "lr is nan: give a positive rate": {"lr": float("nan")},
    "kl_coef is -1: give 0 or more": {"kl_coef": -1},
    "nll_coef is -1: give 0 or more": {"nll_coef": -1},
}


@pytest.mark.parametrize(("said", "changes"), WRONG_VALUES.items())
def test_a_method_that_no_run_could_use_is_refused_when_it_is_made(
    said: str, changes: dict[str, Any]
) -> None:
    with unchecked(), pytest.raises(ValueError, match=f"^{said}"):
        replace(RECAST, **changes)


@pytest.mark.parametrize("method", ["recast_adaptive", "dapo"])
def test_a_target_that_is_put_in_changes_what_is_learned_and_not_what_is_measured(
    walk: Path, tmp_path: Path, method: str
) -> None:
    """Every logged share is recounted from what was drawn; the first step is that of a run without.

    `dapo` has its batch full at once: with the target in every group that is not all hits is mixed.
    """
    changes = {"method": method, "max_rollout_batches": 1}
    with_gt, without = tmp_path / "with", tmp_path / "without"
    train_rl(rl_config(walk, with_gt, add_gt=True, **changes))
    train_rl(rl_config(walk, without, **changes))
    table = rollouts_of(with_gt)
    groups = table.group_by("step", "row_id", maintain_order=True).agg(
        hits=(pl.col("reward") > 0).sum(), injected=pl.col("injected"), n=pl.len()
    )
    assert groups["injected"].to_list() == [[False] * 5 + [True]] * len(groups)
    shares = []
    for line in metric_lines(with_gt)[1:]:
        hits = groups.filter(pl.col("step") == line["step"])["hits"]
        shares.append(float(((hits > 0) & (hits < 6)).mean() or 0))
        assert line["group/all_zero_frac"] == pytest.approx((hits == 0).mean())
        assert line["group/natural_frac"] == pytest.approx(shares[-1])
        rewards = table.filter(pl.col("step") == line["step"])["reward"]
        assert line["reward/mean"] == pytest.approx(rewards.mean())
        assert line["group/trainable_frac"] >= line["group/natural_frac"]
    assert max(shares) < 1
    if method == "recast_adaptive":
        weights = [line["signal/anchor_weight"] for line in metric_lines(with_gt)[1:]]
        assert weights == pytest.approx(
            [1, 1 - 0.1 * shares[0], 1 - 0.09 * shares[0] - 0.1 * shares[1]]
        )
    if method != "dapo":  # which writes only the groups that its signal was given
        first, other = (run.filter(pl.col("step") == 1) for run in (table, rollouts_of(without)))
        columns = ["row_id", "rank", "item", "logprob", "reward"]
        assert first.select(columns).equals(other.select(columns))
        assert not other["injected"].any()


@pytest.mark.parametrize("lora", [{}, {"rank": 2}])
def test_a_run_that_gets_worse_stops_and_keeps_what_it_is_told(
    walk: Path, tmp_path: Path, lora: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate that breaks the policy: no validation is better than the start's, which is step 0."""
    changes: dict[str, Any] = {"lr": 0.5, "warmup_steps": 0, "steps": 9, "eval_every": 1}
    changes |= {"patience": 2, "lora": LoRAConfig(**lora), "method": "openonerec_rl"}
    for keep in ("best", "last"):
        run = tmp_path / keep
        result = train_rl(rl_config(walk, run, keep=keep, **changes))
        lines = metric_lines(run)
        assert [line["step"] for line in lines] == [0, 1, 2]
        kept = lines[0] if keep == "best" else lines[-1]
        assert result["valid/ndcg@10"] == kept["valid/ndcg@10"]
        assert same(weights(run), weights(walk / "sft")) == (keep == "best")
        said = "stopped at step 2 by patience 2: valid/ndcg@10 was best at step 0 "
        said += f"({lines[0]['valid/ndcg@10']:.4f}); policy/ holds the {keep} weights"
        assert said in capsys.readouterr().out


def test_the_best_of_a_run_is_the_policy_of_its_step(walk: Path, tmp_path: Path) -> None:
    """The rows of validation are the same each time, so its number comes out again."""
    config = rl_config(walk, tmp_path / "run", keep="best", steps=4, eval_every=1, lr=1e-3)
    result = train_rl(config)
    curve = [line["valid/ndcg@10"] for line in metric_lines(tmp_path / "run")]
    assert result["valid/ndcg@10"] == max(curve)
    assert result["rl/step"] == curve.index(max(curve)) > 0
    data, policy = load_data(walk / "data"), load_policy(tmp_path / "run" / "policy")
    again = validate(policy, tiny.task_of(data, policy), sample_rows(data.rows("valid"), 40))
    assert again["valid/ndcg@10"] == max(curve)


def test_alarms_are_said_and_logged(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recast.train.alarms.WINDOW", 2)
    monkeypatch.setattr("recast.train.alarms.MOST_ALL_ZERO", 0.01)
    train_rl(rl_config(walk, tmp_path / "run", method="openonerec_rl", group_size=2))
    lines = metric_lines(tmp_path / "run")[1:]
    assert [line["alarm/all_zero"] for line in lines] == [0, 1, 1]
    names = ["all_zero", "kl", "entropy", "overfit", "invalid"]
    assert {f"alarm/{name}" for name in names} == {x for x in lines[-1] if x.startswith("alarm/")}
    out = capsys.readouterr().out
    assert out.count("alarm all_zero at step 2: group/all_zero_frac") == 1


def test_what_chooses_needs_its_metric(walk: Path, tmp_path: Path) -> None:
    for changes in ({"patience": 2}, {"keep": "best"}):
        with pytest.raises(RecastError, match=r"\['hr@1'\]: add ndcg@10, by which"):
            rl_config(walk, tmp_path, valid_metrics=["hr@1"], **changes)
