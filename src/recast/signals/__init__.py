"""Signals: `(RolloutGroups, rewards [B, G])` in, `Signal` out. Pure functions, one idea per file.

`SIGNALS` are those with a name, `TRAITS` what others must know of some of them.
"""

from __future__ import annotations

from collections.abc import Callable

from recast.signals.adagrpo import adagrpo as adagrpo
from recast.signals.adaptive import recast_adaptive as recast_adaptive
from recast.signals.dr_grpo import dr_grpo as dr_grpo
from recast.signals.gates import fixed_mix as fixed_mix
from recast.signals.gates import random_gate as random_gate
from recast.signals.grpo import grpo as grpo
from recast.signals.gumbel import gumbel_pg as gumbel_pg
from recast.signals.identity import identity as identity
from recast.signals.levels import recast_levels as recast_levels
from recast.signals.likelihood import likelihood as likelihood
from recast.signals.nll_on_all_zero import nll_on_all_zero as nll_on_all_zero
from recast.signals.rank_grpo import rank_grpo as rank_grpo
from recast.signals.recast import boundary_only as boundary_only
from recast.signals.recast import recast as recast
from recast.signals.recast import repair_only as repair_only
from recast.signals.reward_weighted import reward_weighted as reward_weighted
from recast.signals.riser import riser as riser
from recast.signals.sage import sage as sage
from recast.signals.vstar import vstar as vstar
from recast.types import Signal, Traits

SIGNALS: dict[str, Callable[..., Signal]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "recast": recast,
    "repair_only": repair_only,
    "boundary_only": boundary_only,
    "recast_levels": recast_levels,
    "recast_adaptive": recast_adaptive,
    "adagrpo": adagrpo,
    "random_gate": random_gate,
    "fixed_mix": fixed_mix,
    "likelihood": likelihood,
    "reward_weighted": reward_weighted,
    "nll_on_all_zero": nll_on_all_zero,
    "identity": identity,
    "riser": riser,
    "vstar": vstar,
    "sage": sage,
    "rank_grpo": rank_grpo,
    "gumbel_pg": gumbel_pg,
}
TRAITS = {
    "identity": Traits(has_rewards=True),
    "vstar": Traits(is_over_children=True),
    "gumbel_pg": Traits(is_over_children=True, reads_batch=True),
    "adagrpo": Traits(reads_batch=True),
    "random_gate": Traits(reads_batch=True),
    "sage": Traits(reads_batch=True),
}
