"""Did a rollout name the target? By its first SID, by any, or by what share of its SIDs.

    first_hit = 1[ p_1 in T ]       any_hit = 1[ P & T != {} ]       set_ratio = |P & T| / |P|

P is the set of SIDs that a response names, in the order p_1, p_2, ..; T that of its targets.
OpenOneRec (arXiv 2512.24762) trains on `first_hit` and logs the others; ReCast (arXiv 2604.22169,
section 3.1) is read as `set_ratio`. SIDs are compared, not items: naming the SID that the target
shares with another item is a hit. With one SID per rollout all three are equal.

Differs from the paper: ReCast's printed formula could not be recovered; set_ratio meets all that
its text says of it. OpenOneRec's released hit_reward counts repeats in |P|, here P is a set.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from recast.rewards.scores import sid_any_hit, sid_first_hit, sid_set_ratio
from recast.types import RolloutGroups


def first_hit(groups: RolloutGroups) -> Float[Tensor, "B G"]:
    """1 where the first SID that the rollout names is a target of its prompt.

    >>> from recast.testing import make_groups
    >>> first_hit(make_groups([[[3, 8], [3, 9], [2, 9]]], [[[3, 8], [2, 9]]]))
    tensor([[1., 0., 1.]])
    """
    return sid_first_hit(groups.predictions, groups.prompts.target_sids)


def any_hit(groups: RolloutGroups) -> Float[Tensor, "B G"]:
    """1 where the rollout names a target of its prompt at all.

    >>> from recast.testing import make_groups
    >>> groups = make_groups([[[3, 8], [2, 9]], [[3, 8], [2, 9]]], [[[2, 9]], [[2, 9], [3, 8]]])
    >>> any_hit(groups)
    tensor([[0., 1.],
            [1., 1.]])
    """
    return sid_any_hit(groups.predictions, groups.prompts.target_sids)


def set_ratio(groups: RolloutGroups) -> Float[Tensor, "B G"]:
    """Share of the SIDs that the rollout names which are targets of its prompt.

    >>> from recast.testing import make_groups
    >>> rollouts, exists = [[[3, 8], [2, 9], [3, 8]]], [[True, True, False]]
    >>> set_ratio(make_groups(rollouts, [[[3, 8]]], exists=exists))  # 1/1, 0/1, none named
    tensor([[1., 0., 0.]])
    """
    return sid_set_ratio(groups.predictions, groups.prompts.target_sids)
