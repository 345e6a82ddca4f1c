"""`add_gt` (ReRe, arXiv 2510.12211; MiniOneRec, 2510.24431): a target in every group, hit or not.

The last rollout of each group, the least probable one, becomes the target, also where the group
holds it already: the released code looks at nothing. Of several targets it is a seeded uniform
choice. The target keeps its place at the end, so these groups are not most probable first.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from recast.groups import choose_target, overwrite
from recast.types import RolloutGroups


def add_gt(groups: RolloutGroups) -> RolloutGroups:
    """The groups with their last rollout overwritten; a prompt without a target stays as it is.

    Log-probabilities are the recorded ones of the target. The groups have no weights any more: the
    target was not drawn, and `injected` marks its row.
    """
    target = choose_target(groups, "add_gt")
    group_size = groups.items.shape[1]
    last = torch.arange(group_size, device=target.exists.device) == group_size - 1
    injected = last & target.exists[:, None]
    return replace(overwrite(groups, injected, target), injected=injected)
