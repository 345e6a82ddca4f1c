"""Methods: frozen values that name a sampler, a reward, a signal and a loss with their defaults.

Changing a method is one line: `METHODS["mine"] = replace(METHODS["recast"], signal=my_signal)`, and
`mine` is a method like the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from recast.losses import ppo_clip
from recast.rewards.hit import hit, set_ratio
from recast.signals.grpo import grpo
from recast.signals.likelihood import likelihood
from recast.signals.recast import recast
from recast.types import RecastError, RolloutGroups, Signal


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way of turning rollouts into an update."""

    summary: str
    label: str
    """Name in tables."""
    sampler: Literal["sample", "beam"] | None
    """None: the method needs no rollouts."""
    reward: Callable[[RolloutGroups], Float[Tensor, "B G"]] = hit
    signal: Callable[[RolloutGroups, Float[Tensor, "B G"]], Signal]
    loss: Callable[..., Float[Tensor, "B K L"]] = ppo_clip
    lr: float = 3e-5
    """Ours, for models below a million parameters; OpenOneRec's 2e-6 belongs to 1.7 billion."""
    kl_coef: float = 0.001
    """OpenOneRec's run_grpo.sh, `low_var_kl`."""


METHODS: dict[str, Method] = {
    "openonerec_rl": Method(
        summary="GRPO on every rollout, the baseline of OpenOneRec (2512.24762)",
        label="GRPO",
        sampler="sample",
        signal=grpo,
    ),
    "recast": Method(
        summary="repair all-zero groups, contrast the boundary pair (2604.22169)",
        label="ReCast",
        sampler="sample",
        reward=set_ratio,
        signal=recast,
    ),
    "sft_continued": Method(
        summary="control: the target's likelihood on the same prompts, no rollouts",
        label="SFT continued",
        sampler=None,
        signal=likelihood,
        kl_coef=0.0,
    ),
}


def find_method(name: str) -> Method:
    """The method of that name; `RecastError` with the nearest name otherwise."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecastError(f"method is {name!r}: {hint}choose one of {', '.join(METHODS)}")
    return METHODS[name]
