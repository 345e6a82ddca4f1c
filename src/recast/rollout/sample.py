"""Sampling over the trie: G independent draws per prompt from the renormalised policy."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.draws import uniforms
from recast.groups import most_probable_first
from recast.policy.load import Policy
from recast.policy.logprobs import over_children, token_scores
from recast.rollout.tree import TreeDecoder
from recast.types import LogprobSpace, Prompts, RolloutGroups


def sample(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    *,
    space: LogprobSpace = "full",
    seed: int = 0,
    step: int = 0,
    policy_version: int = 0,
) -> RolloutGroups:
    """G draws with replacement, temperature 1, most probable first within the group.

    A token is always *drawn* from the policy renormalised over the allowed children; `space`
    only says how its log-probability is recorded. Draws depend on (seed, step, row) alone.
    """
    drawn = draw(
        policy,
        prompts,
        group_size,
        space=space,
        seed=seed,
        step=step,
        policy_version=policy_version,
    )
    return most_probable_first(drawn)


@torch.no_grad()
def draw(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    *,
    space: LogprobSpace,
    seed: int,
    step: int,
    policy_version: int,
) -> RolloutGroups:
    """The draws of `sample` in the order drawn; fewer draws are the first of more."""
    catalog = policy.catalog
    decoder = TreeDecoder(policy, prompts, space)
    shape = (len(prompts), group_size)
    nodes = torch.zeros(len(prompts), 1, dtype=torch.long, device=prompts.tokens.device)
    parents = nodes.expand(shape)
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    for level in range(catalog.num_levels):
        if level:
            decoder.extend(tokens[-1], parents, nodes)
            parents = torch.arange(group_size, device=nodes.device).expand(shape)
        asked, child, allowed = catalog.children(level, nodes, decoder.excluded)
        scores = token_scores(policy, decoder.hidden, asked, allowed, space=space, level=level)
        drawn_from = over_children(scores, allowed).double().exp().cumsum(-1)
        draws = uniforms(seed, step, prompts.row_ids, f"sample/{level}", group_size)
        pick = _invert(drawn_from, draws)
        alive = allowed.any(-1).expand(shape)
        token, nodes, logprob = (_pick(x, pick) for x in (asked, child, scores))
        nodes = nodes.masked_fill(~alive, -1)
        tokens.append(token)
        logprobs.append(logprob)
    return decoder.finish(
        group_size,
        tokens=torch.stack(tokens, dim=-1),
        logprobs=torch.stack(logprobs, dim=-1),
        alive=nodes >= 0,
        seed=seed,
        step=step,
        policy_version=policy_version,
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
