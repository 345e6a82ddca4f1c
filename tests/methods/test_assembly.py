"""Methods and parts that cannot work: refused before the first step, or stopped at it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from checked import unchecked
from small_walk import failure, rl_args

from recast.config import RLConfig
from recast.data.folder import load_data
from recast.methods.assembly import resolve
from recast.methods.table import METHODS
from recast.signals import SIGNALS
from recast.types import RecastError

PARTS = """
from dataclasses import replace

import torch

from recast.rollout.beam import beam
from recast.signals.grpo import grpo


def wide(groups, rewards):
    return replace(grpo(groups, rewards), keep=torch.ones(len(rewards), 3, dtype=torch.bool))


def nan(groups, rewards, *, late: bool = False):
    found = grpo(groups, rewards)
    if late and groups.step == 0:
        return found
    advantages = found.advantages.clone()
    advantages[1, 0] = float("nan")
    return replace(found, advantages=advantages)


def unlikely(groups, rewards):
    return replace(grpo(groups, rewards), nll_weight=-torch.ones(len(rewards)))


def whole(groups, rewards):
    found = grpo(groups, rewards)
    return replace(found, advantages=torch.ones_like(found.advantages, dtype=torch.long))


def graph(groups, rewards):
    found = grpo(groups, rewards)
    return replace(found, advantages=found.advantages.clone().requires_grad_())


def others(groups, rewards):
    prompts = replace(groups.prompts, row_ids=groups.prompts.row_ids + 1)
    return grpo(replace(groups, prompts=prompts), rewards)


def boast(groups, rewards):
    return replace(grpo(groups, rewards), metrics={"reward/mean": 99.0})


def writes(groups, rewards):
    found = grpo(groups, rewards.clone())
    rewards.fill_(1.0)
    return found


def leaves(groups, rewards):
    raise SystemExit(0)


def text(groups, rewards):
    return "no signal"


def crash(groups, rewards):
    return rewards[0, 999]


def weather(groups, rewards, *, forecast):
    return grpo(groups, rewards)


def flat(groups):
    return torch.zeros(len(groups.items))


def rubbish(policy, prompts, group_size, draw):
    return "rollouts" if draw.seed == 0 else 1 / 0


def malformed(policy, prompts, group_size, draw):
    groups = beam(policy, prompts, group_size, draw, constrained=False)
    return replace(groups, predictions=groups.tokens[:, :, None])


def graphless(logprobs, advantages):
    return torch.zeros_like(advantages)


def scalar(logprobs, advantages):
    return (logprobs * advantages).mean()
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory with `bad_parts.py`, forgotten afterwards."""
    (tmp_path / "bad_parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("bad_parts", None)


REFUSED = {
    "--method=rerre": "method is 'rerre': did you mean 'rere'?",
    "--reward=first_hits": "reward is 'first_hits': did you mean 'first_hit'?",
    "--signal=recasst": "signal is 'recasst': did you mean 'recast'?",
    "--loss=ppo_clp": "loss is 'ppo_clp': did you mean 'ppo_clip'?",
    "--sampler=beem": "sampler is 'beem': did you mean 'beam'?",
    "--signal_args.v=2": "signal_args has 'v', which is no parameter of recast: choose from w",
    "--signal_args.w=-1": "w is -1: ",
    "--signal_args.w=.nan": "w is nan: ",
    "--signal_args.w=1e300": "w is 1e+300: give a number above 0, up to 1e+06",
    "--method=rere --signal_args.eps=7": "eps is 7: give a number from 0 to 1",
    "--method=dpo --loss_args.beta=.inf": "beta is inf: give a number above 0, up to 1e+06",
    "--method=gflowgr --loss_args.floor=2": "floor is 2: give a number above 0, up to 1",
    "--method=ecpo --loss_args.delta=.nan": "delta is nan: give a number from 0 to 1e+06",
    "--method=adagrpo --ranker=math:sqrt --signal_args.num_negatives=1000000000": (
        "num_negatives is 1000000000: give a number from 1 to 10000"
    ),
    "--method=vstar --sampler=beam --sampler_args.constrained=false": (
        "sampler_args.constrained is False: method 'vstar' is over the allowed children"
    ),
    "--signal_args.w=big": "signal_args.w is 'big': give a float, such as 1.0",
    "--loss_args.clip_low=2": "clip_low is 2: ",
    "--method=rere --reward_args.form=other": "form is 'other': ",
    "--sampler_args.oversample=2": "sampler_args has 'oversample', which is no parameter of sample",
    "--method=adagrpo": "method 'adagrpo' needs ranker (collaborative): give --ranker",
    "--method=adagrpo --ranker=nowhere": "ranker is 'nowhere': there is no such folder",
    "--method=adagrpo --ranker=math:sqrt --prompts_per_step=1": "prompts_per_step is 1: adagrpo ",
    "--reward=semantic": "method 'recast' needs embeddings (semantic): give --embeddings",
    "--reward=semantic --embeddings=nowhere": "nowhere holds no embeddings (embeddings.safe",
    "--reward=format": "reward is 'format': it is of thoughts, and sampler sample writes none: add",
    "--method=dapo --sampler=beam": "sampler is 'beam', which cannot serve method 'dapo': use ",
    "--method=gumbel_pg --sampler=sample": "which cannot serve method 'gumbel_pg': use gumbel",
    "--sampler=gumbel": "sampler is 'gumbel', which cannot serve method 'recast': use sample or ",
    "--method=vstar --logprob_space=full": "logprob_space is 'full': method 'vstar' is defined",
    "--method=gumbel_pg --add_gt=true": "add_gt is True: method 'gumbel_pg' has no last rollout",
    "--method=sft_continued --add_gt=true": "add_gt is True: method 'sft_continued' has no last",
    "--group_size=1": "group_size is 1: method 'recast' needs 2 rollouts or more per prompt",
    "--nll_coef=-1": "nll_coef is -1.0: give 0 or more",
    "--signal=": "signal is '': give a name or leave it out",
    "--method=sft_continued --signal=grpo": "makes no rollouts that signal grpo could read",
    "--signal=rank_grpo --list_length=2": "sampler 'sample' draws no lists for signal rank_grpo",
    "--list_length=0": "list_length is 0: give 1 or more",
    "--list_length=5": "sampler 'sample' draws no lists for signal recast: start",
    "--ranker=math:sqrt": "ranker is 'math:sqrt': method 'recast' uses none, leave it out",
    "--loss=trajectory_balance": "signal 'recast' gives advantages: add --signal identity",
}


@pytest.mark.parametrize(("more", "line"), REFUSED.items())
def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, line: str
) -> None:
    # No data in it: whoever reads it first is too late.
    data = tmp_path / "data"
    data.mkdir()
    for name in ("interactions", "users", "items"):
        (data / f"{name}.parquet").touch()
    (data / "data.json").touch()
    args = [*rl_args(walk, tmp_path / "run"), f"--data={data}", *more.split()]
    found, code = failure(capsys, *map(str, args))
    assert line in found
    assert code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--method=riser --sampler_args.oversample=0", "oversample is 0: "),
        ("--sampler=dynamic --sampler_args.oversample=.nan", "oversample is nan: "),
        ("--sampler=dynamic --sampler_args.oversample=1e9", "oversample is 1000000000.0: give a"),
        ("--sampler_args.temperature=1e-300", "temperature is 1e-300: give a number from 0.01"),
    ],
)
def test_a_sampler_s_parameter_is_refused_before_the_run_has_a_folder(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, line: str
) -> None:
    args = [*rl_args(walk, tmp_path / "run"), *more.split()]
    found, code = failure(capsys, *map(str, args))
    assert found.startswith(line)
    assert code == 2
    assert not (tmp_path / "run").exists()


def without_place(line: str) -> str:
    """The line without the one place in the user's file that it names."""
    short, count = re.subn(r" \(\S+bad_parts\.py, line \d+\)", "", line)
    assert count <= 1
    return short


STOPPED = {
    "--signal=bad_parts:nan": "signal bad_parts:nan gave advantages that are not finite: [nan, ",
    "--signal=bad_parts:text": "signal bad_parts:text gave a str: return a Signal",
    "--signal=bad_parts:unlikely": "signal bad_parts:unlikely gave nll_weight below 0: give 0",
    "--signal=bad_parts:graph": "signal bad_parts:graph gave advantages with a gradient: ",
    "--signal=bad_parts:others": "signal bad_parts:others gave groups of other prompts: ",
    "--signal=bad_parts:boast": "signal bad_parts:boast gave the metric 'reward/mean' = 99.0: ",
    "--reward=bad_parts:flat --signal=grpo": "reward bad_parts:flat gave rewards of the shape [4]",
}


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(("more", "line"), STOPPED.items())
def test_a_wrong_result_is_said_before_there_is_a_run_and_leaves_the_group(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, line: str
) -> None:
    run = tmp_path / "run"
    args = [*rl_args(walk, run, "--method=openonerec_rl"), *more.split()]
    found, code = failure(capsys, *map(str, args))
    assert line in without_place(found)
    file = tmp_path / "run.failed_group.json"
    assert found.endswith(f"the group is in {file}")
    assert code == 2
    group = json.loads(file.read_text())
    assert group["step"] == 1
    data = load_data(walk / "data")
    assert group["target_items"] == [int(data.items[group["row_id"]])]
    assert len(group["tokens"]) == len(group["items"]) == 4
    assert not run.exists()


@pytest.mark.usefixtures("parts")
def test_a_wrong_shape_as_a_user_meets_it(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing checks the shapes of types."""
    args = rl_args(walk, tmp_path / "run", "--method=openonerec_rl", "--signal=bad_parts:wide")
    with unchecked():
        found, code = failure(capsys, *map(str, args))
    assert code == 2
    assert found == (
        f"signal bad_parts:wide ({tmp_path / 'bad_parts.py'}, line 10) gave keep of "
        "the shape [4, 3]: return [4, 4]; the group is in "
        f"{tmp_path / 'run.failed_group.json'}"
    )


@pytest.mark.usefixtures("parts")
def test_a_result_that_goes_wrong_later_names_its_step_and_its_prompt(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = ("--method=openonerec_rl", "--signal=bad_parts:nan", "--signal_args.late=true")
    found, _ = failure(capsys, *map(str, rl_args(walk, run, *more)))
    found = without_place(found)
    assert "signal bad_parts:nan(late=True) gave advantages that are not finite: [nan, " in found
    assert json.loads((run / "failed_group.json").read_text())["step"] == 2


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--signal=bad_parts:crash", "signal bad_parts:crash failed (IndexError: "),
        ("--signal=bad_parts:weather", "needs forecast (weather): give it a default, or bind it"),
        ("--signal=bad_parts:none", "signal is 'bad_parts:none': bad_parts, /"),
        ("--signal=bad_parts:leaves", "signal bad_parts:leaves failed (SystemExit: 0): mend it"),
        (
            "--signal=bad_parts:writes",
            "signal bad_parts:writes changed its input rewards in place: clone",
        ),
        ("--signal=builtins:dict", "signal is 'builtins:dict', which tells nothing of its"),
        (
            "--loss=bad_parts:graphless",
            "loss bad_parts:graphless gave a tensor without a gradient: compute",
        ),
        ("--loss=bad_parts:scalar", "loss bad_parts:scalar gave the shape []: return "),
        (
            "--sampler=bad_parts:rubbish",
            "sampler bad_parts:rubbish gave a str: return RolloutGroups",
        ),
        (
            "--sampler=bad_parts:malformed --group_size=40",
            "sampler bad_parts:malformed gave predictions that are no semantic IDs, a token of",
        ),
        (
            "--sampler=bad_parts:rubbish --seed=1",
            "sampler bad_parts:rubbish failed (ZeroDivisionError: division by zero): mend it",
        ),
    ],
)
def test_a_part_that_cannot_work(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, line: str
) -> None:
    args = rl_args(walk, tmp_path / "run", *more.split())
    found, code = failure(capsys, *map(str, args))
    assert line in without_place(found)
    assert code == 2


def test_each_method_s_own_samplers_serve_it() -> None:
    assert all("gumbel" not in m.samplers or m.space == "trie" for m in METHODS.values())


@pytest.mark.parametrize("signal", ["grpo", "recast", "recast_levels"])
def test_a_signal_that_needs_rollouts_is_refused_where_there_are_none(signal: str) -> None:
    method = replace(METHODS["sft_continued"], signal=SIGNALS[signal])
    config = RLConfig(data="d", policy="p", output="o")
    with pytest.raises(RecastError, match=f"signal is '{signal}': .* makes no rollouts"):
        resolve(config, method)
