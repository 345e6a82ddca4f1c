"""A policy that thinks, prompts for it, and what it wrote."""

from __future__ import annotations

from dataclasses import replace

import small_chat
import torch

from recast.policy.load import Policy
from recast.policy.prompts import make_prompts
from recast.rollout.frame import frame_of
from recast.types import Prompts, RolloutGroups


def prompts_of(policy: Policy) -> Prompts:
    """Three texts that end in <|sid_begin|>; the first has seen items, the second two targets."""
    texts = [[5, 6, 7, 8, 313], [9, 10, 313], [11, 12, 13, 14, 15, 16, 313]]
    tokens = torch.zeros(3, 7, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    lengths = torch.tensor([len(text) for text in texts])
    targets = torch.tensor([[7, -1], [5, 3], [2, -1]])
    seen = torch.tensor([[0, 1], [-1, -1], [-1, -1]])
    return make_prompts(
        policy.catalog, targets=targets, text=(tokens, lengths), seen=seen, row_ids=lengths
    )


def thinking(name: str = "llama") -> Policy:
    """A policy whose </think> is likely: its row looks like what the prompts end in."""
    policy = small_chat.chat_policy(name)
    close, prompts = frame_of(policy, "\n").close, prompts_of(policy)
    body, head = policy.model.base_model, policy.model.get_output_embeddings()
    with torch.no_grad():
        states = [
            body(prompts.tokens[row : row + 1, : int(length) - 1]).last_hidden_state[0, -1]
            for row, length in enumerate(prompts.lengths)
        ]
        mean = torch.stack(states).mean(0)
        head.weight[close] = 6 * mean / mean.square().sum()
    return policy


def opened(policy: Policy, prompts: Prompts) -> Prompts:
    """The prompts with `<think>` before what begins an item."""
    tokens = torch.nn.functional.pad(prompts.tokens, (0, 1))
    (tag,) = policy.tokenizer.encode("<think>")
    for row, length in enumerate(prompts.lengths.tolist()):
        tokens[row, length - 1 : length + 1] = torch.tensor([tag, 313])
    return replace(prompts, tokens=tokens, lengths=prompts.lengths + 1)


def written(groups: RolloutGroups, row: int, thought: int) -> list[int]:
    assert groups.thoughts
    length = int(groups.thoughts.lengths[row, thought])
    return groups.thoughts.tokens[row, thought, :length].tolist()


def prompt_of(groups: RolloutGroups, row: int) -> list[int]:
    """Without <|sid_begin|>, which comes behind the thought."""
    return groups.prompts.tokens[row, : int(groups.prompts.lengths[row]) - 1].tolist()
