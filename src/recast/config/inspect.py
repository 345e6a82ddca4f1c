"""Looking before the first step: `inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recast.config.check import within
from recast.config.devices import parse_devices
from recast.config.step import StepConfig


@dataclass(frozen=True, kw_only=True)
class InspectConfig(StepConfig):
    """`recast inspect`: a prompt, its target, its rollouts and a step, as `recast rl` has them."""

    split: Literal["train", "rl", "valid", "test"] = "rl"
    """Whose rows are looked at."""
    row: int | None = None
    """Row that is shown, by its id; unset: the first one of a step."""
    devices: str | None = None
    """Cards, such as 64xH100, on which a step of this shape is estimated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0, 2**31, "row")
        if self.devices is not None:
            parse_devices(self.devices)
