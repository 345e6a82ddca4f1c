"""A user's parts that do what none may: one line that names the part, its place and a remedy, and
the group in a file; what they do to the process is set back."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_walk import failure, rl_args

from recast.config.user_code import undisturbed

PARTS = """
import sys
from dataclasses import replace

import torch

from recast.rewards.hit import first_hit
from recast.rollout.beam import beam
from recast.signals.grpo import grpo
from recast.types import RolloutGroups, require


class Mute(Exception):
    def __str__(self):
        raise SystemExit(0)


class Held:
    __hash__ = None

    def __call__(self, groups):
        raise ValueError("held\\n" * 100000)


held = Held()


def mute(groups):
    raise Mute


def wide(groups):
    return first_hit(groups).to_sparse()


def writes(groups):
    groups.items.numpy()[:] = 0
    return first_hit(groups)


def asks(groups):
    require(False, "weather", "rain", "wait")


def first(*, groups):
    return first_hit(groups)


async def later(groups):
    return first_hit(groups)


def unknown(groups, rewards):
    return grpo(replace(groups, rollout_logprobs=groups.rollout_logprobs * float("nan")), rewards)


def zero(policy, prompts, group_size, draw):
    for weight in policy.model.parameters():
        weight.data.fill_(0.0)
    return beam(policy, prompts, group_size, draw)


def swapped(policy, prompts, group_size, draw):
    groups = beam(policy, prompts, group_size, draw)
    return replace(groups, items=groups.items.flip(1))


def empty(policy, prompts, group_size, draw):
    return object.__new__(RolloutGroups)


def clears(logprobs, advantages):
    advantages.zero_()
    return -logprobs * advantages


def steep(logprobs, advantages):
    return (logprobs - logprobs).sqrt() * advantages


def twice(logprobs, advantages):
    values = -logprobs * advantages
    values.sum().backward()
    return values


def leaves(prompts, items):
    sys.exit(0)
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "odd_parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("odd_parts", None)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--reward=odd_parts:held", "failed (ValueError: held held held "),
        ("--reward=odd_parts:mute", "failed (Mute: a Mute that cannot be shown): mend it"),
        ("--reward=odd_parts:wide", "gave rewards as a sparse, nested or quantized tensor: return"),
        ("--reward=odd_parts:writes", "changed its input items in place: clone it first"),
        ("--signal=odd_parts:unknown", "gave groups.rollout_logprobs that are not finite"),
        ("--sampler=odd_parts:swapped", "gave tokens that do not write their item: use policy."),
        ("--sampler=odd_parts:empty", "gave a RolloutGroups without prompts: make a whole one"),
        ("--loss=odd_parts:clears", "changed its input advantages in place: clone it first"),
        ("--loss=odd_parts:steep", "gave a gradient that is not finite: compute it from"),
        ("--loss=odd_parts:twice", "failed (RuntimeError: Trying to backward through the graph"),
        ("--method=adagrpo --ranker=odd_parts:leaves", "failed (SystemExit: 0): mend it, --debug"),
    ],
)
def test_what_a_part_may_not_do_is_said_before_there_is_a_run(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, line: str
) -> None:
    args = rl_args(walk, tmp_path / "run", "--method=openonerec_rl", "--signal=grpo", *more.split())
    found, code = failure(capsys, *map(str, args))
    kind, name = more.rsplit(maxsplit=1)[-1].removeprefix("--").split("=")
    assert found.startswith(f"{kind} {name} ({tmp_path / 'odd_parts.py'}, line ")
    assert line in found
    assert len(found) < 700
    assert code == 2
    file = tmp_path / "run.failed_group.json"
    assert found.endswith(f"; the group is in {file}")
    assert "row_id" in json.loads(file.read_text())
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("--reward=odd_parts:asks", "): weather is 'rain': wait"),
        ("--reward=odd_parts:first", "takes (*, groups): give a function of (groups)"),
        ("--reward=odd_parts:later", "which is async: give a plain function of (groups) that"),
        ("--sampler=odd_parts:zero", "changed the policy (its weights, what of them is trained"),
    ],
)
def test_a_part_that_no_group_shows(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, line: str
) -> None:
    args = rl_args(walk, tmp_path / "run", "--method=openonerec_rl", "--signal=grpo", more)
    found, code = failure(capsys, *map(str, args))
    assert line in found
    assert code == 2
    assert not (tmp_path / "run").exists()


def test_what_code_of_theirs_does_to_the_process_is_set_back(tmp_path: Path) -> None:
    here, variables, streams = Path.cwd(), dict(os.environ), (sys.stdout, sys.stderr)
    with undisturbed():
        os.chdir(tmp_path)
        os.environ.clear()
        sys.stdout = sys.stderr = None  # type: ignore[assignment]
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.device("meta").__enter__()
        torch.autocast("cpu").__enter__()
    assert (Path.cwd(), dict(os.environ)) == (here, variables)
    assert (sys.stdout, sys.stderr) == streams
    assert (torch.zeros(1).dtype, torch.zeros(1).device.type) == (torch.float32, "cpu")
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
