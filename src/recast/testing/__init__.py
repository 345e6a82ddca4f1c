"""The contract of rewards, signals and losses: a function in; nothing out, or a line saying why.

Ours pass these checks and yours can: `check_signal(my_signal)` in a test is all it takes. They run
the function on made-up groups of every kind (`recast.methods.probe`), with the rewards of hits,
constant and dense ones, with and without importance weights, for 1, 2 and 7 rollouts or lists.

Ties: rows are permuted only in groups without a tie in rewards, SIDs, structural scores and
log-probabilities, so "the first of equals" is a legal rule: rows come most probable first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from recast.testing.examples import CONSTANTS
from recast.testing.groups import make_groups
from recast.testing.loss import check_loss
from recast.testing.trial import begin
from recast.types import Signal

__all__ = ["check_loss", "check_reward", "check_signal", "make_groups"]


def check_signal(
    signal: Callable[..., Signal],
    *,
    parameters: Mapping[str, Any] | None = None,
    zero_at: tuple[float, ...] = CONSTANTS,
    permutable: bool = True,
    per_prompt: bool = True,
    list_length: int = 1,
) -> None:
    """Raise `AssertionError` with the property that a signal breaks and the group it breaks it on.

    - `zero_at`: groups whose rewards all equal one of these numbers get advantages of exactly 0.
      Leave out what the formula treats otherwise, such as 0 where an all-zero group is repaired.
    - `permutable=False`: it reads the order of the rows.
    - `per_prompt=False`: it reads the order of the batch, say to take negatives of other prompts.
    - `list_length`: it reads lists of so many items; then whole lists are permuted.

    Raises `RecastError` for parameters that it does not have or refuses.
    """
    trial = begin("signal", signal, parameters, list_length)
    for example, result in trial.results((*CONSTANTS, *zero_at)):
        if example.constant in zero_at:
            advantages = result["advantages"]
            trial.must(
                advantages.flatten(1).eq(0).all(1),
                "gives advantages other than 0 to rewards that are all equal (see zero_at)",
                advantages,
                example,
            )
    trial.check_orders(("one hit", "all zero"), permutable, per_prompt)


def check_reward(
    reward: Callable[..., Tensor],
    *,
    parameters: Mapping[str, Any] | None = None,
    permutable: bool = True,
    per_prompt: bool = True,
    list_length: int = 1,
) -> None:
    """Raise `AssertionError` with the property that a reward breaks and the group it breaks it on.

    A rollout that does not exist has reward 0. The settings are those of `check_signal`.
    """
    trial = begin("reward", reward, parameters, list_length)
    for _ in trial.results():
        pass
    kinds = ("one hit", "all zero", "several targets", "short")
    trial.check_orders(kinds, permutable, per_prompt)
