"""Beam search over the trie, or over the whole vocabulary to see what the model would invent."""

from __future__ import annotations

import torch

from recast.policy.load import Policy
from recast.rollout.decoder import Decoder
from recast.rollout.guide import guide_logprobs, mix_scores
from recast.rollout.tree import TreeDecoder, check_group_size
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
    penalty. Tokens that have to follow a choice count as soon as it is made.

    Equal to transformers' beam search under the same constraint when the space is `full` and every
    choice is one token, as of semantic IDs. With
    `Decoder(constrained=False)` every token of the space may follow every other, but for one that
    would write a seen item: the next best takes its place. Sequences outside the catalogue get item
    -1. The search draws nothing: seed and step are for the signals that do.

    With a guide beams are kept and ordered by D3's mixture. `rollout_logprobs` are the policy's own
    all the same, so the rows of a group no longer come most probable first.
    """
    check_group_size(group_size)
    tree = TreeDecoder(policy, prompts, draw.logprob_space, constrained=decoder.constrained)
    guide = decoder.guide_scores(prompts, policy.catalog.num_items)
    hints = None if guide is None else guide_logprobs(guide, prompts.seen, policy.catalog.trie)
    scores = tree.logprobs.new_zeros(len(prompts), 1)
    for level in range(tree.num_levels):
        choices = tree.choices()
        ranked_by, weight = choices.logprobs, 1.0
        if hints is not None:
            weight = decoder.alpha
            hint = hints[level].gather(1, choices.nodes.flatten(1)).view_as(ranked_by)
            # At the ends of `alpha` a child that is not allowed would be 0 * -inf.
            ranked_by = mix_scores(ranked_by, hint.to(ranked_by.dtype), weight)
            ranked_by = ranked_by.masked_fill(~choices.allowed, -torch.inf)
        total = (scores[..., None] + ranked_by).flatten(1)
        scores, best = total.topk(min(group_size, total.shape[1]), dim=1)
        width = ranked_by.shape[2]
        forced = tree.take(choices, best // width, best % width, scores > -torch.inf)
        scores = scores + weight * forced
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return tree.finish(group_size, draw, order, scores > -torch.inf)
