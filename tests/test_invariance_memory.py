"""A run in little memory: micro-batches, checkpointing, rollouts in parts, the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from small_walk import rl_config, weights

from recast.data.folder import load_data
from recast.groups import select
from recast.methods.assembly import sampler_of
from recast.methods.table import METHODS
from recast.policy import memory
from recast.policy.load import load_policy
from recast.rl import train_rl
from recast.train.search import Search


@pytest.mark.parametrize("method", ["openonerec_rl", "recast", "rere_anchored"])
def test_a_run_in_little_memory_ends_where_it_ends_in_much(
    walk: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"method": method, "lr": 1e-3}
    train_rl(rl_config(walk, tmp_path / "much", **settings))
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1)
    train_rl(rl_config(walk, tmp_path / "little", **settings))
    used = [
        yaml.safe_load((tmp_path / name / "config.yaml").read_text())["micro_batch_tokens"]
        for name in ("much", "little")
    ]
    assert used == [65536, 1]
    start, much, little = (
        weights(p) for p in (walk / "sft", tmp_path / "much", tmp_path / "little")
    )
    way = torch.cat([(much[k] - start[k]).flatten() for k in start])
    apart = torch.cat([(much[k] - little[k]).flatten() for k in start])
    # Adam makes full steps of gradients that are nothing but rounding.
    assert apart.norm() < 0.05 * way.norm()


@pytest.mark.parametrize("name", ["openonerec_rl", "rere", "gumbel_pg", "rank_grpo"])
def test_rollouts_in_parts_are_those_of_one_call(walk: Path, tmp_path: Path, name: str) -> None:
    policy, data = load_policy(walk / "sft" / "policy"), load_data(walk / "data")
    method = METHODS[name]
    prompts = tiny.task_of(data, policy).prompts(data.rows("valid")[:9])
    prompts = select(prompts, prompts.lengths.argsort(descending=True))
    whole, parts = (
        Search(
            method=method,
            policy=policy,
            task=tiny.task_of(data, policy),
            sampler=sampler_of(method, method.samplers[0], {}),
            group_size=6,
            seed=0,
            max_batches=1,
            micro_batch_tokens=tokens,
            pass_tokens=65536,
            folder=str(tmp_path),
        ).roll_out(3, prompts)
        for tokens in (10**6, 60)
    )
    assert torch.equal(whole.tokens, parts.tokens)
    assert torch.equal(whole.items, parts.items)
    assert torch.equal(whole.prompts.row_ids, parts.prompts.row_ids)
    assert torch.equal(whole.prompts.tokens, parts.prompts.tokens)
    torch.testing.assert_close(whole.rollout_logprobs, parts.rollout_logprobs)
    torch.testing.assert_close(whole.target_logprobs, parts.target_logprobs)
    if whole.weights is not None:
        assert parts.weights is not None
        torch.testing.assert_close(whole.weights, parts.weights)
