"""Beam search over the trie, or over the whole vocabulary to see what the model would invent."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from recast.policy.load import Policy
from recast.rollout.check import check_group_size
from recast.rollout.decoder import Decoder
from recast.rollout.texts import beam_texts
from recast.rollout.tree import TreeDecoder
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

    Equal to transformers' beam search under the same constraint when the space is `full`; items of
    unequal lengths go through `recast.rollout.texts`. With `Decoder(constrained=False)` every token
    of the space may follow every other, but for one that would write a seen item: the next best
    takes its place. Sequences outside the catalogue get item -1. The search draws nothing: seed and
    step are for the signals that do.

    With a guide beams are kept and ordered by the mixture (`recast.rollout.guide`).
    `rollout_logprobs` are the policy's own all the same, so the rows of a group no longer come most
    probable first.
    """
    check_group_size(group_size)
    if decoder.constrained and policy.catalog.trie.ends is not None:
        return beam_texts(policy, prompts, group_size, draw, decoder)
    tree = TreeDecoder(policy, prompts, draw.logprob_space, constrained=decoder.constrained)
    order, alive = grow_beams(tree, group_size, decoder)
    return tree.finish(group_size, draw, order.flatten(1), alive.flatten(1))


def grow_beams(
    tree: TreeDecoder, width: int, decoder: Decoder = Decoder()
) -> tuple[Int[Tensor, "B R W"], Bool[Tensor, "B R W"]]:
    """The `width` best branches below each of the R places that a decoder begins with, the best
    first: their indices among its branches, and which of them there are. W is smaller than asked
    where the trie has fewer."""
    prompts = tree.prompts
    masses = decoder.masses(prompts, tree.policy.catalog.trie)
    roots = tree.nodes.shape[1]
    place = torch.arange(roots, device=tree.nodes.device)[:, None]
    own = tree.logprobs.new_zeros(len(prompts), roots)  # of the prefixes, by the policy alone
    for level in range(tree.num_levels):
        if tree.is_done:
            break
        choices = tree.choices()
        grown = own[..., None] + choices.logprobs
        ranked_by, mass = grown, None
        if masses is not None:
            mass = masses[level].gather(1, choices.nodes.flatten(1)).view_as(grown)
            ranked_by = decoder.mix(grown, mass).masked_fill(~choices.allowed, -torch.inf)
        below = ranked_by.flatten(1).unflatten(1, (roots, -1))
        scores, best = below.topk(min(width, below.shape[2]), dim=2)
        alive, best = (scores > -torch.inf).flatten(1), (best + place * below.shape[2]).flatten(1)
        every = ranked_by.shape[2]
        tree.take(choices, best // every, best % every, alive)
        scores = own = grown.flatten(1).gather(1, best)
        if mass is not None:
            scores = decoder.mix(own, mass.flatten(1).gather(1, best))
            scores = scores.masked_fill(~alive, -torch.inf)
    scores = scores.unflatten(1, (roots, -1))
    scores, order = scores.sort(dim=2, descending=True, stable=True)
    return order + place * scores.shape[2], scores > -torch.inf
