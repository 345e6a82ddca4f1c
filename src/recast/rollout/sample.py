"""Sampling over the trie: G independent draws per prompt from the renormalised policy."""

from __future__ import annotations

from math import inf

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.groups import most_probable_first
from recast.policy.load import Policy
from recast.policy.logprobs import over_children, token_scores
from recast.rollout.tree import TreeDecoder
from recast.types import Draw, Prompts, RolloutGroups, require


def sample(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    draw: Draw = Draw(),
    *,
    temperature: float = 1.0,
) -> RolloutGroups:
    """G draws with replacement, most probable first within the group.

    A token is always *drawn* from the policy renormalised over the allowed children at
    `temperature`. Its *recorded* log-probability is the policy's own, at temperature 1, in
    `draw.logprob_space`: what the update compares with. Draws depend on (seed, step, row) alone.
    Raises `RecastError` for a temperature that is not positive.
    """
    return most_probable_first(draw_items(policy, prompts, group_size, draw, temperature))


@torch.no_grad()
def draw_items(
    policy: Policy, prompts: Prompts, group_size: int, draw: Draw, temperature: float = 1.0
) -> RolloutGroups:
    """The draws of `sample` in the order drawn; fewer draws are the first of more."""
    require(0 < temperature < inf, "temperature", temperature, "give a number above 0")
    catalog, space = policy.catalog, draw.logprob_space
    tree = TreeDecoder(policy, prompts, space)
    shape = (len(prompts), group_size)
    nodes = torch.zeros(len(prompts), 1, dtype=torch.long, device=prompts.tokens.device)
    parents = nodes.expand(shape)
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    for level in range(catalog.num_levels):
        if level:
            tree.extend(tokens[-1], parents, nodes)
            parents = torch.arange(group_size, device=nodes.device).expand(shape)
        asked, child, allowed = catalog.children(level, nodes, tree.excluded)
        scores = token_scores(policy, tree.hidden, asked, allowed, space=space, level=level)
        drawn_from = over_children(scores / temperature, allowed).double().exp().cumsum(-1)
        pick = _invert(drawn_from, draw.uniforms(prompts, f"sample/{level}", group_size))
        alive = allowed.any(-1).expand(shape)
        token, nodes, logprob = (_pick(x, pick) for x in (asked, child, scores))
        nodes = nodes.masked_fill(~alive, -1)
        tokens.append(token)
        logprobs.append(logprob)
    return tree.finish(
        group_size,
        draw,
        tokens=torch.stack(tokens, dim=-1),
        logprobs=torch.stack(logprobs, dim=-1),
        alive=nodes >= 0,
    )


def _invert(cumulative: Float[Tensor, "B N C"], draws: Float[Tensor, "B G"]) -> Int[Tensor, "B G"]:
    """Inverse-transform sampling; N is 1 (all draws from one distribution) or G (one each)."""
    num_nodes = cumulative.shape[1]
    draws = draws.unflatten(1, (num_nodes, -1)) * cumulative[..., -1:]
    pick = torch.searchsorted(cumulative, draws, right=True).clamp(max=cumulative.shape[2] - 1)
    return pick.flatten(1)


def _pick(
    values: Float[Tensor, "B N C"] | Int[Tensor, "B N C"], pick: Int[Tensor, "B G"]
) -> Tensor:
    values = values.expand(-1, pick.shape[1], -1)
    return values.gather(-1, pick[..., None]).squeeze(-1)
