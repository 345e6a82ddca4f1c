"""Rollouts on the packed forward: prompts in, `RolloutGroups` out, most probable first.

`SAMPLERS` are those with a name. Each is `(policy, prompts, group_size, draw) -> RolloutGroups`;
keyword-only arguments behind these are its parameters and resources.
"""

from __future__ import annotations

from collections.abc import Callable

from recast.rollout.beam import beam as beam
from recast.rollout.dynamic import dynamic as dynamic
from recast.rollout.gumbel import gumbel as gumbel
from recast.rollout.lists import sample_lists as sample_lists
from recast.rollout.sample import sample as sample
from recast.rollout.think import openonerec as openonerec
from recast.rollout.think import think as think
from recast.types import RolloutGroups, Traits

SAMPLERS: dict[str, Callable[..., RolloutGroups]] = {
    "sample": sample,
    "beam": beam,
    "dynamic": dynamic,
    "gumbel": gumbel,
    "lists": sample_lists,
    "think": think,
    "openonerec": openonerec,
}
TRAITS = {
    "gumbel": Traits(is_over_children=True, is_weighted=True, has_fixed_rows=True),
    "lists": Traits(has_fixed_rows=True),
    "think": Traits(thinks=True),
    "openonerec": Traits(thinks=True),
}
