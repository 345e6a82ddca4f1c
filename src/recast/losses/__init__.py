"""Losses: log-probabilities, advantages and a mask in, one number per token, rollout or group out.

The unit is the shape: `[B, K, L]` per token, `[B, K]` per rollout, `[B]` per group. The sum over
the batch and the one division by a global count belong to the actor. A rollout without a counted
token, a row that only fills up a group, contributes exactly 0.

`LOSSES` are those with a name, `TRAITS` what others must know of some of them, `KLS` the estimates
of the KL.
"""

from __future__ import annotations

from recast.losses.dpo import dpo as dpo
from recast.losses.dr_grpo import dr_grpo as dr_grpo
from recast.losses.ecpo import ecpo as ecpo
from recast.losses.gbpo import gbpo as gbpo
from recast.losses.gspo import gspo as gspo
from recast.losses.kl import kl_abs as kl_abs
from recast.losses.kl import kl_k1 as kl_k1
from recast.losses.kl import kl_k2 as kl_k2
from recast.losses.kl import kl_k3 as kl_k3
from recast.losses.ppo_clip import ppo_clip as ppo_clip
from recast.losses.reinforce import reinforce as reinforce
from recast.losses.s_dpo import s_dpo as s_dpo
from recast.losses.sage import sage_clip as sage_clip
from recast.losses.trajectory_balance import trajectory_balance as trajectory_balance
from recast.types import Loss, Traits

LOSSES: dict[str, Loss] = {
    "ppo_clip": ppo_clip,
    "reinforce": reinforce,
    "dr_grpo": dr_grpo,
    "gspo": gspo,
    "ecpo": ecpo,
    "gbpo": gbpo,
    "sage_clip": sage_clip,
    "dpo": dpo,
    "s_dpo": s_dpo,
    "trajectory_balance": trajectory_balance,
}
KLS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3, "abs": kl_abs}
"""What the KL to the reference is estimated by, per token."""
TRAITS = {
    "ppo_clip": Traits(is_silent_at_zero=True),
    "reinforce": Traits(is_silent_at_zero=True),
    "dr_grpo": Traits(is_silent_at_zero=True),
    "gspo": Traits(is_silent_at_zero=True),
    "ecpo": Traits(is_silent_at_zero=True),
    "gbpo": Traits(is_silent_at_zero=True),
    "sage_clip": Traits(is_silent_at_zero=True),
    "trajectory_balance": Traits(has_rewards=True),
}
