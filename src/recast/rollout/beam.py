"""Beam search over the trie, or over the whole vocabulary to see what the model would invent."""

from __future__ import annotations

import torch

from recast.policy.load import Policy
from recast.policy.logprobs import token_scores
from recast.rollout.decoder import Decoder
from recast.rollout.guide import guide_logprobs, mix_scores
from recast.rollout.tree import TreeDecoder, grow_paths
from recast.types import Draw, Prompts, RolloutGroups


def beam(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    draw: Draw = Draw(),
    *,
    constrained: bool = True,
) -> RolloutGroups:
    """`beam_search` as a sampler; `constrained=False` trains on what the model would invent."""
    return beam_search(policy, prompts, group_size, draw, Decoder(constrained=constrained))


@torch.no_grad()
def beam_search(
    policy: Policy,
    prompts: Prompts,
    group_size: int,
    draw: Draw = Draw(),
    decoder: Decoder = Decoder(),
) -> RolloutGroups:
    """The `group_size` best items by summed log-probability in `draw.logprob_space`, no length
    penalty.

    Equal to transformers' beam search under the same constraint when the space is `full`. With
    `Decoder(constrained=False)` every token of the space may follow every other; sequences outside
    the catalogue get item -1. The search draws nothing: seed and step are for the signals that do.

    With a guide beams are kept and ordered by D3's mixture. `rollout_logprobs` are the policy's own
    all the same, so the rows of a group no longer come most probable first.
    """
    catalog, space = policy.catalog, draw.logprob_space
    tree = TreeDecoder(policy, prompts, space)
    guide = decoder.guide_scores(prompts, catalog.num_items)
    hints = None if guide is None else guide_logprobs(guide, prompts.seen, catalog.trie)
    nodes = torch.zeros(len(prompts), 1, dtype=torch.long, device=prompts.tokens.device)
    tokens = nodes.new_empty(len(prompts), 1, 0)
    logprobs = tree.target_logprobs[0].new_empty(len(prompts), 1, 0)
    scores, parents = logprobs.new_zeros(len(prompts), 1), nodes
    for level in range(catalog.num_levels):
        if level:
            tree.extend(tokens[:, :, -1], parents, nodes)
        if decoder.constrained:
            asked, child, allowed = catalog.children(level, nodes, tree.excluded)
        else:
            width = policy.model.get_output_embeddings().weight.shape[0]
            start, end = (0, width) if space == "full" else catalog.level_tokens(level)
            asked = torch.arange(start, end, device=nodes.device).expand(*nodes.shape, -1)
            child, allowed = torch.zeros_like(asked), torch.ones_like(asked, dtype=torch.bool)
        found = token_scores(policy, tree.hidden, asked, allowed, space=space, level=level)
        ranked_by = found
        if hints is not None:
            hint = hints[level].gather(1, child.flatten(1)).view_as(found).to(found.dtype)
            # At the ends of `alpha` a child that is not allowed would be 0 * -inf.
            ranked_by = mix_scores(found, hint, decoder.alpha).masked_fill(~allowed, -torch.inf)
        total = (scores[..., None] + ranked_by).flatten(1)
        scores, best = total.topk(min(group_size, total.shape[1]), dim=1)
        parents = best // asked.shape[2]
        nodes = child.flatten(1).gather(1, best).masked_fill(scores == -torch.inf, -1)
        tokens = grow_paths(tokens, parents, asked.flatten(1).gather(1, best))
        logprobs = grow_paths(logprobs, parents, found.flatten(1).gather(1, best))
    return tree.finish(
        group_size, draw, tokens=tokens, logprobs=logprobs, alive=scores > -torch.inf
    )
