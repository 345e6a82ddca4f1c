"""Sampling over the trie: G independent draws per prompt from the renormalised policy."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.groups import most_probable_first
from recast.policy.load import Policy
from recast.rollout.check import check_group_size
from recast.rollout.distribution import Distribution
from recast.rollout.tree import TreeDecoder
from recast.types import Draw, Prompts, RolloutGroups


def sample(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    draw: Draw = Draw(),
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    constrained: bool = True,
) -> RolloutGroups:
    """G draws with replacement, most probable first within the group.

    A token is always *drawn* from the policy renormalised over the allowed children at
    `temperature`, cut to the `top_k` and `top_p` most probable (`Distribution`);
    `constrained=False` allows every token of the space, as free beams do. Its *recorded*
    log-probability is the policy's own, at temperature 1 and uncut, in `draw.logprob_space`: what
    the update compares with. Draws depend on (seed, step, row) alone.
    Raises `RecastError` for what `Distribution` refuses.
    """
    drawn_from = Distribution(temperature=temperature, top_p=top_p, top_k=top_k)
    drawn = draw_items(policy, prompts, group_size, draw, drawn_from, constrained=constrained)
    return most_probable_first(drawn)


@torch.no_grad()
def draw_items(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    draw: Draw,
    drawn_from: Distribution = Distribution(),
    *,
    constrained: bool = True,
) -> RolloutGroups:
    """The draws of `sample` in the order drawn; fewer draws are the first of more."""
    check_group_size(group_size)
    tree = TreeDecoder(policy, prompts, draw.logprob_space, constrained=constrained)
    shape = (len(prompts), group_size)
    branches = torch.arange(group_size, device=prompts.tokens.device).expand(shape)
    for level in range(tree.num_levels):
        if tree.is_done:
            break
        choices = tree.choices()
        allowed = choices.allowed
        weights = drawn_from.weights(choices.logprobs, allowed)
        pick = invert(weights.cumsum(-1), draw.uniforms(prompts, f"sample/{level}", group_size))
        parents = branches if level else torch.zeros_like(branches)
        alive = allowed.any(-1).expand(shape)
        tree.take(choices, parents, pick, alive & (tree.nodes >= 0))
    return tree.finish(group_size, draw, branches, tree.nodes >= 0)


def invert(cumulative: Float[Tensor, "B N C"], draws: Float[Tensor, "B G"]) -> Int[Tensor, "B G"]:
    """Inverse-transform sampling; N is 1 (all draws from one distribution) or G (one each)."""
    num_nodes = cumulative.shape[1]
    draws = draws.unflatten(1, (num_nodes, -1)) * cumulative[..., -1:]
    pick = torch.searchsorted(cumulative, draws, right=True).clamp(max=cumulative.shape[2] - 1)
    return pick.flatten(1)
