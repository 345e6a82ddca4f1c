"""What `recast compare` found, typed; on disk it is `results.json`, all numbers unrounded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recast.evaluation.comparison import Compared
from recast.evaluation.curves import Budget, Point
from recast.run.files import staged_file
from recast.types import Metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A learning rate and the validation NDCG@10 of the run with seed 0."""

    lr: float
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRow:
    """A row of the table; of the start only what was judged."""

    method: str | None
    group_size: int | None
    lr: float | None
    compared: Compared
    trials: list[Trial] = field(default_factory=list)
    training: Metrics = field(default_factory=dict)
    """Means over the seeds' runs: learnability, KL, costs; `valid/kl` of `evaluation/drift.py`."""
    curve: dict[str, list[Point]] = field(default_factory=dict)
    """Validation metric -> its curve."""
    budget: dict[str, Budget] = field(default_factory=dict)
    """Other row -> share of its steps that this method needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The table. Example: `results.methods["recast"].compared.against["start"]["item/hr@1"].p`."""

    split: str | None
    split_name: str | None
    num_candidates: int | None
    exclude_seen: bool | None
    beam_width: int
    rows: int
    users: int
    seeds: int
    reseeded: str
    """What a seed draws anew: `RL`, or `SFT and RL` where every seed has a start of its own."""
    steps: int
    prompts_per_step: int
    mini_batch_rows: int | None
    settings: dict[str, dict[str, Any]]
    """Of rows that have some of their own, as `recast rl` calls them."""
    against: list[str]
    """Rows that the others are compared with: one family of differences."""
    test_reads: list[dict[str, Any]]
    """When test rows were ranked, and with which choices."""
    methods: dict[str, MethodRow]
    verdict: list[str]
    """In words."""

    def save(self, file: str | Path) -> None:
        """Write `file` whole or not at all, replacing an earlier one."""
        with staged_file(file) as stage:
            stage.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
