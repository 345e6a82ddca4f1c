"""Did a rollout name the target? 1 or 0, or the share of the named SIDs that are targets.

ReCast (arXiv 2604.22169, section 3.1): r = |P & T| / |P| with the sets P of a response's SIDs and
T of its targets, 0 where either is empty. OpenOneRec-RL (arXiv 2512.24762): 1 if the target is hit.

Differs from the paper: ReCast's printed formula could not be recovered; this form meets all that
its text says of it. With one SID per rollout, one target and no SID that items share, all
readings are the same 0 or 1.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from recast.types import RolloutGroups, is_first


def hit(groups: RolloutGroups) -> Float[Tensor, "B G"]:
    """1 where the rollout is one of the prompt's target items, else 0."""
    items, targets = groups.items[:, :, None], groups.prompts.target_items[:, None, :]
    return ((items == targets) & (items >= 0)).any(-1).float()


def set_ratio(groups: RolloutGroups) -> Float[Tensor, "B G"]:
    """Share of the SIDs a rollout names that are targets of its prompt."""
    return sid_set_ratio(groups.predictions, groups.prompts.targets)


def sid_set_ratio(
    predictions: Int[Tensor, "B G R L"], targets: Int[Tensor, "B T L"]
) -> Float[Tensor, "B G"]:
    """|P & T| / |P| for sets of up to R SIDs per response, -1 = none; repeats count once.

    >>> import torch
    >>> predictions = torch.tensor([[[[1, 2, 3], [4, 5, 8], [9, 9, 9]]]])
    >>> sid_set_ratio(predictions, torch.tensor([[[1, 2, 3], [4, 5, 6]]]))
    tensor([[0.3333]])
    """
    counts = (predictions >= 0).all(-1) & is_first(predictions)
    valid_target = (targets >= 0).all(-1)[:, None, None, :]
    is_target = (predictions[:, :, :, None] == targets[:, None, None]).all(-1) & valid_target
    hits = (is_target.any(-1) & counts).sum(-1)
    return hits / counts.sum(-1).clamp(min=1)
