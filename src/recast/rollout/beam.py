"""Beam search over the trie, or over the whole vocabulary to see what the model would invent."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config import LogprobSpace
from recast.policy.load import Policy
from recast.policy.logprobs import token_scores
from recast.rollout.tree import TreeDecoder
from recast.types import Prompts, RolloutGroups


@torch.no_grad()
def beam_search(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    *,
    constrained: bool = True,
    space: LogprobSpace = "full",
    seed: int = 0,
    step: int = 0,
    policy_version: int = 0,
) -> RolloutGroups:
    """The `group_size` best items by summed log-probability in `space`, no length penalty.

    Equal to transformers' beam search under the same constraint when `space` is `full`. With
    `constrained=False` every token may follow every other; sequences outside the catalogue get
    item -1. The search draws nothing: `seed` and `step` are for the signals that do.
    """
    catalog = policy.catalog
    decoder = TreeDecoder(policy, prompts, space)
    nodes = torch.zeros(len(prompts), 1, dtype=torch.long, device=prompts.tokens.device)
    tokens = nodes.new_empty(len(prompts), 1, 0)
    logprobs = decoder.target_logprobs[0].new_empty(len(prompts), 1, 0)
    scores, parents = logprobs.new_zeros(len(prompts), 1), nodes
    for level in range(catalog.num_levels):
        if level:
            decoder.extend(tokens[:, :, -1], parents)
        if constrained:
            asked, child, allowed = catalog.children(level, nodes, decoder.excluded)
        else:
            vocabulary = torch.arange(decoder.logits.shape[-1], device=nodes.device)
            asked = vocabulary.expand(*nodes.shape, -1)
            child, allowed = torch.zeros_like(asked), torch.ones_like(asked, dtype=torch.bool)
        found = token_scores(
            decoder.logits, asked, allowed, space=space, level=level, catalog=catalog
        )
        total = (scores[..., None] + found).flatten(1)
        scores, best = total.topk(min(group_size, total.shape[1]), dim=1)
        parents = best // asked.shape[2]
        nodes = child.flatten(1).gather(1, best).masked_fill(scores == -torch.inf, -1)
        tokens = _grow(tokens, parents, asked.flatten(1).gather(1, best))
        logprobs = _grow(logprobs, parents, found.flatten(1).gather(1, best))
    return decoder.finish(
        group_size,
        tokens=tokens,
        logprobs=logprobs,
        alive=scores > -torch.inf,
        seed=seed,
        step=step,
        policy_version=policy_version,
    )


def _grow(history: Tensor, parents: Int[Tensor, "B N"], new: Tensor) -> Tensor:
    index = parents[..., None].expand(-1, -1, history.shape[2])
    return torch.cat([history.gather(1, index), new[..., None]], dim=2)
