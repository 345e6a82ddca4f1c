"""The world in which a thought is worth something, and the way from its chats to thoughts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.thinking import (
    CHATS,
    EMPTY,
    POOL,
    TASTES,
    HiddenWorld,
    right_thoughts,
    score,
    thought,
)
from recast.config import ModelConfig, PrepareConfig, SFTConfig, TokenizeConfig
from recast.data.plain_text import PlainRow
from recast.data.prepare import prepare
from recast.items.tokenize import tokenize
from recast.policy.alignment import plain_rows
from recast.policy.load import load_policy
from recast.policy.tasks import load_task
from recast.rollout.think import think
from recast.sft import train_sft
from recast.types import Draw


@pytest.fixture(scope="module")
def world() -> HiddenWorld:
    return HiddenWorld(0)


def test_targets_are_of_the_category_that_the_clicks_sum_to(world: HiddenWorld) -> None:
    rows = world.train + world.test
    for row in rows:
        category = sum(row.clicks) % TASTES
        assert {item // POOL for item in row.targets} == {category}
        assert [item // POOL for item in row.items] == row.clicks
        assert thought(row.clicks).endswith(f" {category}</think>")
    orders = {tuple(row.clicks) for row in world.train}
    assert not orders & {tuple(row.clicks) for row in world.test}


def test_habits(world: HiddenWorld) -> None:
    """Half of the chats hold no thought, a quarter a right one."""
    habits = [(world.habit(row), thought(row.clicks)) for row in world.train]
    assert sum(said == EMPTY for said, _ in habits) / len(habits) == pytest.approx(0.5, abs=0.05)
    is_right = [said == f"{right}\n" for said, right in habits]
    assert sum(is_right) / len(habits) == pytest.approx(0.25, abs=0.05)


def test_a_chat_teaches_what_is_rolled_out(world: HiddenWorld, tmp_path: Path) -> None:
    """`plain_text` learns a thought, what is forced behind it and the item, behind the prompt that
    `think` sends."""
    world.write(tmp_path)
    data, catalog = str(tmp_path / "data"), str(tmp_path / "catalog")
    prepare(PrepareConfig(rows=str(tmp_path / "files"), output=data))
    tokenize(TokenizeConfig(data=data, output=catalog))
    model = ModelConfig(path=str(tmp_path / "qwen3"))
    sft = SFTConfig(
        data=data,
        catalog=catalog,
        output=str(tmp_path / "sft"),
        model=model,
        epochs=0,
        threads=1,
        valid_rows=4,
    )
    train_sft(sft)
    policy = load_policy(tmp_path / "sft" / "policy")
    prompts = load_task(data, policy).prompts(torch.tensor([0]))
    groups = think(policy, prompts, 1, Draw(), max_thought_tokens=8)
    assert groups.thoughts is not None
    first = world.train[CHATS]  # whose prompt it is
    right = thought(first.clicks)
    assert right_thoughts(policy, prompts) == [right]
    question, answer = json.loads(world.messages(first, f"{right}\n"))
    chat = PlainRow(json.dumps([question]), answer["content"])
    rows, notes = plain_rows(policy, [chat], "right.jsonl")
    begins, length = int(groups.thoughts.begins[0]), int(groups.thoughts.num_written[0, 0])
    forced = groups.thoughts.tokens[0, 0, length : int(groups.thoughts.lengths[0, 0])]
    said = [*policy.tokenizer.encode(right), *forced.tolist(), *prompts.targets[0, 0].tolist()]
    expected = [*prompts.tokens[0, :begins].tolist(), *said]
    assert not notes
    assert rows.tokens[: len(expected)].tolist() == expected
    assert rows.loss_mask.tolist() == [place >= begins for place in range(len(rows.tokens))]
    assert 0 <= score(tmp_path, tmp_path / "sft" / "policy").pass_at_1 < 0.3
