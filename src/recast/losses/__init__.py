"""Losses: log-probabilities, advantages and a mask in, one number per token, rollout or group out.

The unit is the shape: `[B, K, L]` per token, `[B, K]` per rollout, `[B]` per group. The sum over
the batch and the one division by a global count belong to the actor. A rollout without a counted
token, a row that only fills up a group, contributes exactly 0.
"""

from recast.losses.dpo import dpo
from recast.losses.dr_grpo import dr_grpo
from recast.losses.ecpo import ecpo
from recast.losses.gbpo import gbpo
from recast.losses.gspo import gspo
from recast.losses.kl import kl_k3
from recast.losses.ppo_clip import ppo_clip
from recast.losses.reinforce import reinforce
from recast.losses.s_dpo import s_dpo
from recast.losses.sage import sage_clip
from recast.losses.trajectory_balance import trajectory_balance

__all__ = [
    "dpo",
    "dr_grpo",
    "ecpo",
    "gbpo",
    "gspo",
    "kl_k3",
    "ppo_clip",
    "reinforce",
    "s_dpo",
    "sage_clip",
    "trajectory_balance",
]

SILENT_AT_ZERO = (ppo_clip, dr_grpo, ecpo, gbpo, gspo, reinforce, sage_clip)
"""In these a rollout of advantage 0 adds nothing, neither by itself nor to what others add."""
