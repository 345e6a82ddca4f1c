"""Lists: G times N items without replacement, for methods that reward a ranking.

List g of a prompt is drawn item after item from the policy renormalised over the allowed children
and over what the list does not hold yet (Plackett-Luce). The N largest perturbed values of
`recast.rollout.gumbel`, read in their order, are such a draw, so a list costs one search and not
N. Lists are independent of each other and may share items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recast.policy.load import Policy
from recast.rollout.check import check_group_size
from recast.rollout.gumbel import perturbed_beams
from recast.rollout.tree import TreeDecoder
from recast.types import Draw, Prompts, RolloutGroups, require


@torch.no_grad()
def sample_lists(
    policy: Policy, prompts: Prompts, group_size: int, draw: Draw = Draw(), *, list_length: int
) -> RolloutGroups:
    """G lists of N = `list_length` distinct items: row g * N + k is rank k of list g.

    Rows stand in the order of the lists, not the most probable first. A prompt with fewer than N
    items has shorter lists, the rest of their rows does not exist. `draw.logprob_space` says how a
    token's log-probability is recorded; draws depend on (seed, step, row) alone.
    """
    is_length = type(list_length) is int and list_length >= 1
    require(is_length, "list_length", list_length, "give the number of items per list")
    check_group_size(group_size)
    tree = TreeDecoder(policy, prompts, draw.logprob_space)
    found = perturbed_beams(tree, group_size, list_length, draw, "lists")
    width = found.values.shape[2]
    rank = torch.arange(list_length, device=found.values.device)
    order = torch.arange(group_size, device=rank.device)[:, None] * width + rank.clamp(
        max=width - 1
    )
    values = F.pad(found.values, (0, list_length - width), value=-torch.inf)
    return tree.finish(
        group_size * list_length,
        draw,
        order.flatten().expand(len(prompts), -1),
        (values > -torch.inf).flatten(1),
    )
