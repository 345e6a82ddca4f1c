"""What a search is asked for: prompts and a size in, nothing or a line out."""

from __future__ import annotations

import torch

from recast.config.check import MOST_ROLLOUTS
from recast.policy.load import Policy
from recast.types import Prompts, require


def check_group_size(group_size: int) -> None:
    """Raise `RecastError` unless a search can list so many branches of a prompt."""
    is_whole = isinstance(group_size, int) and not isinstance(group_size, bool)
    fits = is_whole and 1 <= group_size <= MOST_ROLLOUTS
    require(fits, "group_size", group_size, f"give a whole number from 1 to {MOST_ROLLOUTS}")


def check_prompts(policy: Policy, prompts: Prompts) -> None:
    """Raise `RecastError` for no prompt and for a token that the model does not have."""
    require(len(prompts) > 0, "number of prompts", len(prompts), "give a search one or more")
    most = policy.model.get_input_embeddings().weight.shape[0] - 1
    place = torch.arange(prompts.tokens.shape[1], device=prompts.tokens.device)
    tokens = prompts.tokens.masked_fill(place >= prompts.lengths[:, None], 0)
    largest = int(tokens.max())
    require(largest <= most, "token of a prompt", largest, f"the policy reads 0 to {most}")
