"""Beam search over the trie, or over the whole vocabulary to see what the model would invent."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.policy.load import Policy
from recast.policy.logprobs import token_scores
from recast.rollout.guide import guide_logprobs, mix_scores
from recast.rollout.tree import TreeDecoder
from recast.types import LogprobSpace, Prompts, RolloutGroups, require


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
    guide: Float[Tensor, "B I"] | None = None,
    alpha: float = 0.9,
) -> RolloutGroups:
    """The `group_size` best items by summed log-probability in `space`, no length penalty.

    Equal to transformers' beam search under the same constraint when `space` is `full`. With
    `constrained=False` every token of `space` may follow every other; sequences outside the
    catalogue get item -1. The search draws nothing: `seed` and `step` are for the signals that do.

    With `guide`, scores of all items by another model, beams are kept and ordered by D3's mixture
    (`recast.rollout.guide`): `alpha` weighs the policy. `rollout_logprobs` are the policy's own all
    the same, so the rows of a group no longer come most probable first.
    """
    remedy = "a guide knows the children in the trie alone, leave `constrained` on"
    require(constrained or guide is None, "constrained", constrained, remedy)
    require(0 <= alpha <= 1, "alpha", alpha, "give a weight from 0 to 1")
    catalog = policy.catalog
    decoder = TreeDecoder(policy, prompts, space)
    hints = None if guide is None else guide_logprobs(guide, prompts.seen, catalog.trie)
    nodes = torch.zeros(len(prompts), 1, dtype=torch.long, device=prompts.tokens.device)
    tokens = nodes.new_empty(len(prompts), 1, 0)
    logprobs = decoder.target_logprobs[0].new_empty(len(prompts), 1, 0)
    scores, parents = logprobs.new_zeros(len(prompts), 1), nodes
    for level in range(catalog.num_levels):
        if level:
            decoder.extend(tokens[:, :, -1], parents, nodes)
        if constrained:
            asked, child, allowed = catalog.children(level, nodes, decoder.excluded)
        else:
            width = policy.model.get_output_embeddings().weight.shape[0]
            start, end = (0, width) if space == "full" else catalog.level_tokens(level)
            asked = torch.arange(start, end, device=nodes.device).expand(*nodes.shape, -1)
            child, allowed = torch.zeros_like(asked), torch.ones_like(asked, dtype=torch.bool)
        found = token_scores(policy, decoder.hidden, asked, allowed, space=space, level=level)
        ranked_by = found
        if hints is not None:
            hint = hints[level].gather(1, child.flatten(1)).view_as(found).to(found.dtype)
            # At the ends of alpha a child that is not allowed would be 0 * -inf.
            ranked_by = mix_scores(found, hint, alpha).masked_fill(~allowed, -torch.inf)
        total = (scores[..., None] + ranked_by).flatten(1)
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
