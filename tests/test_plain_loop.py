"""The loop in plain torch: the library's numbers, on the same weights, prompts and rollouts."""

from __future__ import annotations

import copy
import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import naive
import pytest
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

from recast.losses import ppo_clip
from recast.policy.load import Policy
from recast.rewards.hit import first_hit, set_ratio
from recast.rewards.scores import structural_score
from recast.signals.grpo import grpo
from recast.signals.recast import recast
from recast.train.actor import Actor, update
from recast.train.reference import frozen_reference
from recast.types import Prompts, RolloutGroups, Signal

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "plain_loop.py"
SIGNALS = {"grpo": grpo, "recast": recast}
GROUP = 5
HISTORIES = [[1, 2, 3], [7], [], [0, 4], [5, 6, 2, 1]]
TARGETS = [0, 3, 6, 7, 4]
ROLLOUTS = [
    [1, 2, 6, 4, 3],  # no hit, two near misses alike, three rows equally bad
    [4, 3, 6, 2, 0],  # one hit
    [6, 6, 6, 6, 6],  # hits alone
    [6, 6, 7, 7, 5],  # two hits and a miss that repeats
    [7, 7, 7, 7, 7],  # no hit, one item over and over
]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_loop", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _both(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float64
) -> tuple[Policy, Policy]:
    """A policy and a reference of other weights, in which nothing is computed in less precision."""
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog(), dtype)
    if dtype == torch.float64:
        naive.lift_norms(policy.model, monkeypatch)
    other = copy.deepcopy(policy.model).requires_grad_(False)
    for parameter in other.parameters():
        parameter.add_(torch.cos(torch.arange(parameter.numel())).view_as(parameter), alpha=0.01)
    return policy, replace(policy, model=other)


def _groups(policy: Policy) -> RolloutGroups:
    prompts = tiny.make_prompts(policy.catalog, HISTORIES, [[target] for target in TARGETS])
    return _by_hand(policy.catalog.tokens_of(torch.tensor(ROLLOUTS)), prompts)


def _by_hand(tokens: Tensor, prompts: Prompts) -> RolloutGroups:
    made = tiny.make_groups(tokens.tolist(), prompts.targets.tolist())
    return replace(made, prompts=prompts)


def _signal(method: str, groups: RolloutGroups) -> Signal:
    return SIGNALS[method](groups, set_ratio(groups).double())


def _plain_groups(example: ModuleType, method: str, groups: RolloutGroups) -> list[Any]:
    """The same prompts and rollouts as a reader of the example would write them."""
    found = []
    for row, length in enumerate(groups.prompts.lengths.tolist()):
        prompt = groups.prompts.tokens[row, :length].tolist()
        tokens, target = groups.tokens[row], groups.prompts.targets[row, 0]
        rewards = example.reward(tokens, target).double()
        if method == "grpo":
            parts = tokens, example.grpo(rewards), torch.ones(GROUP, dtype=torch.bool)
        else:
            parts = example.recast(tokens, target, rewards)
        found.append(example.Group(prompt, *parts))
    return found


def _update(policy: Policy, reference: Policy, signal: Signal, **settings: Any) -> PreTrainedModel:
    """The library's model after one update, its gradient still on it."""
    model = copy.deepcopy(policy.model)
    defaults: dict[str, Any] = {
        "policy": replace(policy, model=model),
        "reference": frozen_reference(reference, "full"),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0),
        "loss": ppo_clip,
        "kl_coef": 0.001,
        "kl_rollouts": "kept",
        "max_grad_norm": 1e9,
        "space": "full",
        "micro_batch_tokens": 40,
        "updates_per_rollout": 1,
    }
    update(Actor(**(defaults | settings)), signal)
    return model


def test_the_groups_are_those_that_matter(example: ModuleType) -> None:
    groups = _groups(tiny.tiny_policy("qwen3", tiny.tiny_catalog()))
    assert first_hit(groups).sum(1).tolist() == [0, 1, 5, 2, 0]
    for method, trainable in (("grpo", [0, 1, 0, 1, 0]), ("recast", [1, 1, 0, 1, 1])):
        plain = _plain_groups(example, method, groups)
        assert [bool(group.advantages.any()) for group in plain] == trainable


@pytest.mark.parametrize("method", SIGNALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_the_library(
    example: ModuleType, method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, reference = _both(monkeypatch, dtype)
    groups, limit = _groups(policy), 1e-5 if dtype == torch.float32 else 1e-10
    wanted = naive.flat_gradients(_update(policy, reference, _signal(method, groups)))
    model, frozen = tiny.twin(policy.model), tiny.twin(reference.model)
    plain = _plain_groups(example, method, groups)
    found = naive.gradients(model, example.objective(model, frozen, plain))
    assert naive.relative_error(found, wanted) <= limit
    # Neither the KL nor a single group is too small to be seen.
    without_kl = naive.flat_gradients(
        _update(policy, reference, _signal(method, groups), kl_coef=0.0)
    )
    assert naive.relative_error(without_kl, wanted) > 10 * limit
    fewer = naive.gradients(model, example.objective(model, frozen, plain[:-1]))
    assert naive.relative_error(fewer, wanted) > 10 * limit


@pytest.mark.parametrize("method", SIGNALS)
def test_the_step_is_that_of_the_library(
    example: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipped gradients, then AdamW."""
    policy, reference = _both(monkeypatch)
    groups = _groups(policy)
    wanted = _update(policy, reference, _signal(method, groups), max_grad_norm=1.0)
    free = naive.flat_gradients(_update(policy, reference, _signal(method, groups)))
    assert free.norm() > 1.01  # so that clipping acts
    model = tiny.twin(policy.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    plain = _plain_groups(example, method, groups)
    example.step(model, tiny.twin(reference.model), optimizer, plain)
    gradients = naive.flat_gradients(model), naive.flat_gradients(wanted)
    assert naive.relative_error(*gradients) <= 1e-10
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-8)


def test_hits_alone_leave_recast_no_step(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, reference = _both(monkeypatch)
    model, before = policy.model, copy.deepcopy(policy.model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    hits_alone = _plain_groups(example, "recast", _groups(policy))[2:3]
    assert example.step(model, reference.model, optimizer, hits_alone) == 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_every_random_group_gets_the_weights_of_the_library(example: ModuleType) -> None:
    """Small groups of few items: ties, repeats, no hit and hits alone all come up."""
    catalog, count = tiny.tiny_catalog(), 400
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(catalog.num_items, (count, 1), generator=draw)
    width = 1 + torch.randint(catalog.num_items, (count, 1), generator=draw)
    rollouts = (torch.rand(count, GROUP, generator=draw) * width).long()
    prompts = tiny.make_prompts(catalog, [[]] * count, targets.tolist())
    groups = _by_hand(catalog.tokens_of(rollouts), prompts)
    rewards = set_ratio(groups)
    assert {0, 1, GROUP} <= set(rewards.sum(1).tolist())
    scores = structural_score(groups.predictions, prompts.target_sids)
    standard, boundary = grpo(groups, rewards), recast(groups, rewards)
    for row in range(count):
        tokens, target = groups.tokens[row], prompts.targets[row, 0]
        assert torch.equal(example.reward(tokens, target), rewards[row])
        assert torch.equal(example.structural_score(tokens, target), scores[row])
        alone = example.grpo(rewards[row])
        torch.testing.assert_close(alone, standard.advantages[row, :, 0])
        assert alone.any() == (0 < rewards[row].sum() < GROUP)  # exactly 0 where all are equal
        repaired, advantages, keep = example.recast(tokens, target, rewards[row])
        assert torch.equal(repaired, boundary.groups.tokens[row])
        assert torch.equal(advantages, boundary.advantages[row, :, 0])
        assert torch.equal(keep, boundary.keep[row])


def test_rollouts_are_drawn_from_the_policy_over_the_items(example: ModuleType) -> None:
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    catalog, model = policy.catalog, tiny.twin(policy.model)
    prompts = tiny.make_prompts(catalog, [[1, 2]], [[3]], seen=[[]])
    items = catalog.tokens_of(torch.arange(catalog.num_items)).tolist()
    torch.manual_seed(0)
    tokens = example.roll_out(model, items, prompts.tokens[0].tolist(), 400)
    found = catalog.items_of(tokens)
    logprobs = naive.item_logprobs(model, catalog, prompts, 0, "trie")
    expected = torch.tensor([logprobs[item] for item in range(len(items))]).sum(1).exp() * 400
    counts = found.bincount(minlength=len(items))
    chi_square = float(((counts - expected).square() / expected).sum())
    assert chi_square < naive.chi_square_limit(len(items) - 1)
    assert expected.max() > 3 * 400 / len(items)  # far from uniform
    full = naive.item_logprobs(model, catalog, prompts, 0, "full")
    totals = torch.tensor([sum(full[item]) for item in found.tolist()])
    assert (totals.diff() < 1e-5).all()


def test_the_script_runs_and_recast_makes_every_group_trainable() -> None:
    command = [sys.executable, "-W", "error", str(SCRIPT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    number = r"(-?\d+\.\d+)"
    line = rf"(\w+) +(\d+)  all-zero {number}  trainable {number}  reward {number}  loss {number}"
    found = re.findall(f"^{line}$", done.stdout, re.MULTILINE)
    assert len(found) == len(done.stdout.splitlines()), done.stdout
    assert [(name, int(step)) for name, step, *_ in found] == [
        (name, step) for name in SIGNALS for step in range(1, 13)
    ]
    numbers = [[float(value) for value in row[2:]] for row in found]
    plain, repaired = numbers[:12], numbers[12:]
    assert plain[0][0] == repaired[0][0] > 0.5  # the same rollouts at first, with a lot to repair
    assert all(trainable <= 1 - all_zero + 0.01 for all_zero, trainable, *_ in plain)
    assert all(trainable == 1 for _, trainable, *_ in repaired)
    rewards = [reward for _, _, reward, _ in repaired]
    assert sum(rewards[-4:]) > sum(rewards[:4])


def test_it_is_short_and_names_files_that_exist() -> None:
    source = SCRIPT.read_text()
    assert len(source.splitlines()) <= 150
    assert not re.search(r"^\s*(from|import) recast\b", source, re.MULTILINE)
    named = re.findall(r"src/recast/[\w/]+\.py", source)
    assert len(named) == 12
    assert [path for path in named if not (ROOT / path).exists()] == []
