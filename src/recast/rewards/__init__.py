"""Rewards: `RolloutGroups` in, one number per rollout out, `Float[B, G]`. Pure functions.

A rollout that does not exist gets 0. `REWARDS` are those with a name.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from recast.rewards.collaborative import collaborative as collaborative
from recast.rewards.format import think_format as think_format
from recast.rewards.gflow import gflow as gflow
from recast.rewards.hit import any_hit as any_hit
from recast.rewards.hit import first_hit as first_hit
from recast.rewards.hit import set_ratio as set_ratio
from recast.rewards.partial import partial_hit as partial_hit
from recast.rewards.ranking import ranking as ranking
from recast.rewards.semantic import semantic as semantic
from recast.types import Traits

REWARDS: dict[str, Callable[..., Float[Tensor, "B G"]]] = {
    "first_hit": first_hit,
    "any_hit": any_hit,
    "set_ratio": set_ratio,
    "partial": partial_hit,
    "ranking": ranking,
    "semantic": semantic,
    "collaborative": collaborative,
    "gflow": gflow,
    "format": think_format,
}
TRAITS = {"format": Traits(thinks=True)}
