"""How many ways the trie left open at every token of a rollout: groups in, counts out."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from recast.items.catalog import Catalog
from recast.types import RolloutGroups


def fan_out(catalog: Catalog, groups: RolloutGroups) -> Int[Tensor, "B G L"]:
    """Children that were allowed where each token was chosen, the prompt's seen items left out.

    1 = the trie forces the token. 0 = there was no choice to make: the rollout does not exist or
    has ended, or its earlier tokens already spell no prefix of an allowed item.
    """
    trie, excluded = catalog.trie, catalog.trie.excluded(groups.prompts.seen)
    path = catalog.path_of(groups.tokens, groups.prompts.domains)
    ends = catalog.ends_of(path)
    goes_on = groups.exists
    place = torch.arange(groups.tokens.shape[2], device=path.device)
    counts = torch.zeros_like(groups.tokens)
    for level in range(catalog.num_levels):
        nodes, child = path[..., level].where(goes_on, -1), path[..., level + 1]
        _, _, allowed = catalog.children(level, nodes, excluded)
        begin, end = ends[..., level, None], ends[..., level + 1, None]
        chosen = goes_on
        goes_on = goes_on & (child >= 0) & trie.is_open(level + 1, child.clamp(min=0), excluded)
        # A token that leads nowhere was chosen too; the edge behind an end is empty.
        chosen = (chosen & ~goes_on)[..., None] | (goes_on[..., None] & (end > begin))
        counts = torch.where(chosen & (place == begin), allowed.sum(-1)[..., None], counts)
        forced = goes_on[..., None] & (place > begin) & (place < end)
        counts = counts.masked_fill(forced, 1)
    return counts
