"""The contract is one: what the check of a test accepts, the guard of a run accepts, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from small_walk import failure, rl_args

from recast.groups import reorder, select
from recast.methods.contract import OURS, reward_fault, sampler_fault, signal_fault
from recast.methods.guard import ask_signal
from recast.methods.probe import probe_groups
from recast.rewards.hit import first_hit
from recast.rollout.sample import sample
from recast.signals.grpo import grpo
from recast.testing import check_signal
from recast.train.learnability import group_metrics
from recast.types import RecastError, RolloutGroups, Signal


def logging(metrics: Any) -> Callable[..., Signal]:
    def signal(groups: RolloutGroups, rewards: torch.Tensor) -> Signal:
        made = grpo(groups, rewards)
        object.__setattr__(made, "metrics", metrics)
        return made

    return signal


@pytest.mark.parametrize(
    ("metrics", "fits"),
    [
        ({}, True),
        ({"signal/mean": 0.5}, True),
        ({"signal/count": 3}, True),  # an int is a number
        ({"signal/open": True}, False),
        ({"signal/mean": torch.tensor(1.0)}, False),
        ({"signal/mean": float("nan")}, False),
        ({"signal/huge": 10**400}, False),
        ({"reward/mean": 99.0}, False),
        ({"actor/kl": 0.0}, False),
        ({"valid/ndcg@10": 1.0}, False),
        ({"alarm/kl": 1.0}, False),
        ({"mean": 0.5}, False),
        ({3: 0.5}, False),
        (None, False),
    ],
)
def test_the_check_and_the_guard_say_the_same_of_metrics(
    metrics: Any, fits: bool, tmp_path: Path
) -> None:
    groups, said = probe_groups(4), []
    signal = logging(metrics)
    for test, kind in (
        (lambda: check_signal(signal), AssertionError),
        (
            lambda: ask_signal(signal, groups, first_hit(groups), str(tmp_path), None),
            RecastError,
        ),
    ):
        try:
            test()
        except kind as error:
            said.append(str(error))
    assert len(said) == (0 if fits else 2), said


def test_the_metrics_of_the_loop_are_those_it_logs() -> None:
    groups = probe_groups(4)
    rewards = first_hit(groups)
    logged = group_metrics([(groups, rewards)] * 2, grpo(groups, rewards))
    assert logged.keys() - {"group/repaired_frac"} == set(OURS)


def test_a_signal_that_adds_rows_is_within_the_contract() -> None:
    groups = probe_groups(4)
    assert signal_fault(grpo(groups, first_hit(groups)), groups) is None
    other = replace(groups, prompts=replace(groups.prompts))
    fault = signal_fault(grpo(other, first_hit(other)), groups)
    assert fault is not None
    assert fault.what.startswith("groups of other prompts")


def broken(name: str, value: Callable[[RolloutGroups], Any]) -> Callable[..., RolloutGroups]:
    """Written past the shape checks of the tests, which a user's run does not have."""

    def change(groups: RolloutGroups) -> RolloutGroups:
        changed = copy.copy(groups)
        object.__setattr__(changed, name, value(groups))
        return changed

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: "text", "a str: return RolloutGroups of its 2 prompts"),
        (lambda g: select(g, torch.tensor([0])), "a RolloutGroups: return RolloutGroups of its 2"),
        (lambda g: select(g, torch.tensor([1, 0])), "groups of other prompts: return those it was"),
        (
            lambda g: reorder(g, torch.tensor([[0], [0]])),
            "tokens of the shape [2, 1, 3]: return [2",
        ),
        (broken("tokens", lambda g: g.tokens - 99), "tokens outside the vocabulary of 12: give 0"),
        (broken("items", lambda g: g.items + 99), "items that are none: give -1, or one below 8"),
        (broken("tokens", lambda g: None), "tokens of type NoneType: return a tensor"),
        (broken("prompts", lambda g: None), "groups of other prompts: return those it was"),
        (broken("target_logprobs", lambda g: None), "target_logprobs of type NoneType: return"),
        (broken("injected", lambda g: g.items > 0), "groups with `injected` set: leave that to"),
        (broken("weights", lambda g: [1.0]), "weights of type list: return a tensor [2, 3]"),
        (broken("items", lambda g: g.items.float()), "items of torch.float32: return torch.int64"),
        (broken("items", lambda g: g.items[:, :1]), r"items of the shape [2, 1]: return [2, 3]"),
        (broken("tokens", lambda g: g.tokens[..., :2]), r"tokens of the shape [2, 3, 2]: return"),
        (
            broken("rollout_logprobs", lambda g: g.rollout_logprobs * torch.nan),
            "rollout_logprobs that are not finite",
        ),
    ],
)
def test_what_a_sampler_may_not_return(change: Callable[..., Any], said: str) -> None:
    catalog = tiny.tiny_catalog()
    prompts = tiny.make_prompts(catalog, [[0], [1, 2]], [[3], [4]])
    groups = sample(tiny.tiny_policy("qwen3", catalog), prompts, 3)
    sizes = 3, catalog.vocab_size, catalog.num_items
    assert sampler_fault(groups, prompts, *sizes) is None
    fault = sampler_fault(change(groups), prompts, *sizes)
    assert fault is not None
    assert fault.what.startswith(said)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("tokens", lambda g: g.tokens - 99, "tokens outside the vocabulary of 12: give 0"),
        ("tokens", lambda g: g.tokens + 99, "tokens outside the vocabulary of 12: give 0"),
        ("items", lambda g: g.items + 99, "items that are none: give -1, or one below 8"),
        ("tokens", lambda g: None, "groups whose tokens are no tensor"),
    ],
)
def test_what_groups_a_signal_may_not_return(
    name: str, change: Callable[..., Any], said: str
) -> None:
    catalog = tiny.tiny_catalog()
    prompts = tiny.make_prompts(catalog, [[0], [1, 2]], [[3], [4]])
    groups = sample(tiny.tiny_policy("qwen3", catalog), prompts, 3)
    signal = grpo(groups, first_hit(groups))
    sizes = catalog.vocab_size, catalog.num_items
    assert signal_fault(signal, groups, *sizes) is None
    object.__setattr__(signal, "groups", broken(name, change)(groups))
    fault = signal_fault(signal, groups, *sizes)
    assert fault is not None
    assert fault.what.startswith(said)


def test_a_signal_may_not_drop_rollouts() -> None:
    groups = probe_groups(3)
    fewer = reorder(groups, torch.zeros(len(groups.items), 1, dtype=torch.long))
    signal = grpo(fewer, first_hit(fewer))
    fault = signal_fault(signal, groups)
    assert fault is not None
    assert fault.what.startswith("groups of 1 rollouts: keep all")


OTHER_PROMPTS = """
from recast.groups import select
from recast.rollout.sample import sample
import torch

def swapped(policy, prompts, group_size, draw):
    groups = sample(policy, prompts, group_size, draw)
    if len(prompts) == 1:
        return groups
    return select(groups, torch.arange(len(prompts)).flip(0))
"""


@pytest.mark.parametrize("more", [[], ["--micro_batch_tokens=70"]])
def test_a_sampler_of_other_prompts_is_refused_in_one_call_and_in_several(
    walk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
) -> None:
    (tmp_path / "their_sampler.py").write_text(OTHER_PROMPTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    args = rl_args(walk, tmp_path / "run", "--sampler=their_sampler:swapped", *more)
    line, code = failure(capsys, *map(str, args))
    assert line.startswith("sampler their_sampler:swapped (")
    assert ") gave groups of other prompts: return those it was given" in line
    assert code == 2


def test_rewards_and_advantages_whose_squares_overflow_are_refused() -> None:
    groups = probe_groups(4)
    rewards = groups.exists.float()
    assert reward_fault(1e12 * rewards, groups) is None
    fault = reward_fault(-1e38 * rewards, groups)
    assert fault is not None
    assert fault.what == "rewards of 1e+38 in size: scale them to 1e+12 at most"
    made = grpo(groups, rewards)
    wild = replace(made, advantages=torch.full_like(made.advantages, 1e16))
    fault = signal_fault(wild, groups)
    assert fault is not None
    assert fault.what == "advantages of 1e+16 in size: scale them to 1e+15 at most"
