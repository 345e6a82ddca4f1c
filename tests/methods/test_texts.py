"""Every method takes a step on texts of unequal lengths, with each of its samplers."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from small_actor import make_actor, other_policy

from recast.items.fan_out import fan_out
from recast.methods.guard import ask_reward, ask_sampler, ask_signal
from recast.methods.parts import find_part, supply, traits_of
from recast.methods.probe import probe_groups, probe_resources
from recast.methods.table import METHODS
from recast.rollout.add_gt import add_gt
from recast.train.actor import update
from recast.types import Draw

DOCS = Path(__file__).parents[2] / "docs" / "methods"


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.samplers])
def test_a_step_of_a_method_on_texts(name: str, tmp_path: Path) -> None:
    method, size = METHODS[name], 4
    policy = tiny.tiny_policy("qwen3", tiny.random_texts(40))
    prompts = tiny.make_prompts(policy.catalog, [[0, 1, 5], [2], [3]], [[3], [1, 0, 7], [9]])
    given = probe_resources(probe_groups(2), list_length=method.list_length)
    embeddings = torch.eye(policy.catalog.num_items)
    given |= {"fan_out": partial(fan_out, policy.catalog), "embeddings": embeddings}
    for sampler in method.samplers:
        draw = Draw(logprob_space=method.space, seed=1)
        part = supply(find_part("sampler", sampler), given)
        if traits_of(part).thinks:  # of semantic IDs alone
            continue
        groups = ask_sampler(
            part,
            policy,
            prompts,
            size,
            draw,
            num_rollouts=size * method.list_length,
            folder=str(tmp_path),
        )
        assert (groups.loss_mask.sum(-1) == policy.catalog.lengths[groups.items]).all()
        groups = add_gt(groups) if method.add_gt else groups
        rewards = ask_reward(supply(method.reward, given), groups, str(tmp_path))
        signal = ask_signal(supply(method.signal, given), groups, rewards, str(tmp_path), policy)
        own = replace(policy, model=tiny.tiny_policy("qwen3", policy.catalog).model)
        settings = {"loss": method.loss, "kl_coef": 0.1, "space": method.space}
        actor = make_actor(own, **settings, reference=other_policy(policy))
        assert all(math.isfinite(value) for value in update(actor, signal).values())


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_what_a_method_means_on_titles_and_with_thoughts(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text()
    assert "\n## On titles\n" in page
    _, _, told = page.partition("\n## With thoughts\n\n")
    assert told.startswith("Refused: ") == ("think" not in METHODS[name].samplers)
    assert told
