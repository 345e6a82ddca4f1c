"""Credit for a shared prefix: OpenOneRec's partial_hit_reward over 100 (arXiv 2512.24762).

    r_i = mean over p in P_i of max over t in T of phi(p, t);   phi = 10^-(levels after the prefix)

On three levels phi is 1 for the target, 0.1 and 0.01 for two and one shared levels, else 0.

Differs from the paper: P_i is a set, the released code averages over repeats too.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from recast.rewards.scores import structural_score
from recast.types import RolloutGroups


def partial_hit(groups: RolloutGroups) -> Float[Tensor, "B G"]:
    """ReCast's structural score as a reward, 0 to 1.

    >>> from recast.testing import make_groups
    >>> rollouts = [[[3, 8, 1], [3, 8, 2], [3, 9, 1], [2, 8, 1]]]  # 3, 2, 1 and 0 shared levels
    >>> partial_hit(make_groups(rollouts, [[[3, 8, 1]]]))
    tensor([[1.0000, 0.1000, 0.0100, 0.0000]])
    """
    return structural_score(groups.predictions, groups.prompts.target_sids)
