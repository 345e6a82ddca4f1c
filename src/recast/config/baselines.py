"""What every policy has to beat: `baselines`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from recast.config.check import (
    MOST_STEPS,
    Shown,
    check_seed,
    check_settings,
    check_splits,
    check_threads,
    within,
)
from recast.errors import require

BaselineName = Literal["popularity", "item_knn", "sasrec"]


@dataclass(frozen=True, kw_only=True)
class BaselinesConfig:
    """`recast baselines`: popularity, an item-kNN and a SASRec of a data folder."""

    data: str
    """Folder made by `recast prepare`."""
    output: str
    """Folder to create. It gets one for each baseline; one that the same settings began goes on."""
    splits: list[Shown] = field(default_factory=lambda: ["train", "rl"])
    """Events that they are shown, as in `--splits train,rl`."""
    only: list[BaselineName] = field(default_factory=lambda: list(get_args(BaselineName)))
    """Which to make, of popularity, item_knn and sasrec, as in `--only item_knn,sasrec`."""
    epochs: int = 30
    """Passes of SASRec over all windows, at most: validation NDCG@10 stops it earlier."""
    negatives: int = 1024
    """Items that SASRec's loss compares the right one with; all, where there are no more."""
    valid_rows: int = 2000
    """Validation rows (a seeded sample) that choose the settings of the item-kNN and the epoch of
    SASRec."""
    seed: int = 0
    """Seed of SASRec."""
    threads: int | None = None
    """Torch threads; unset: measured."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_seed(self.seed)
        check_threads(self)
        within(self, 1, 10_000, "epochs")
        within(self, 1, 2**24, "negatives")
        within(self, 1, 10 * MOST_STEPS, "valid_rows")
        check_splits(self)
        require(bool(self.only), "only", self.only, "name one or more, or leave it out")
        object.__setattr__(self, "only", list(dict.fromkeys(self.only)))
