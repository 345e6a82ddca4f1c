"""GFlowGR's reward, never negative: the hit plus the share of shared tokens (arXiv 2506.16114).

    R_i = 1[ p_i in T ] + max over t in T of prefix(p_i, t) / levels of t

Differs from the paper: it adds up a term for the user's action, one for the predicted item, which
draws on a traditional recommender, and one for shared tokens; their forms could not be recovered.
Here the first is the hit, the last the shared prefix, and the recommender is left out.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from recast.rewards.hit import first_hit
from recast.rewards.scores import shared_frac
from recast.types import RolloutGroups


def gflow(groups: RolloutGroups) -> Float[Tensor, "B G"]:
    """2 for a hit, else the shared levels over all levels.

    >>> from recast.testing import make_groups
    >>> gflow(make_groups([[[3, 8], [3, 9], [2, 8]]], [[[3, 8]]]))  # 1 + 2/2, 0 + 1/2, 0 + 0/2
    tensor([[2.0000, 0.5000, 0.0000]])
    """
    share = shared_frac(groups.predictions, groups.prompts.target_sids).amax(-1)
    return first_hit(groups) + share
