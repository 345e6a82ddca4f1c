"""A reference that moves, and a rate that falls: by the metrics of runs that go on or do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_walk import metric_lines, rl_config

from recast.config import LoRAConfig, RLConfig
from recast.rl import train_rl
from recast.types import RecastError


def kls_of(walk: Path, run: Path, **changes: Any) -> list[float]:
    """The KL of every step."""
    settings = {"steps": 3, "kl_coef": 0.1, "warmup_steps": 0, "lr": 1e-3, "valid_rows": 8}
    train_rl(rl_config(walk, run, **(settings | changes), eval_every=3))
    return [line["actor/kl"] for line in metric_lines(run)[1:]]


def test_a_reference_that_moves(walk: Path, tmp_path: Path) -> None:
    """Moved all the way at every step it is the policy, so that the KL is 0 by rounding; halfway
    behind the second it is in between. A rate that falls makes shorter steps behind the first."""
    fixed = kls_of(walk, tmp_path / "fixed")
    assert min(fixed[1:]) > 1e-6
    assert max(map(abs, kls_of(walk, tmp_path / "there", ref_every=1))) < 1e-9
    for name, changes in (
        ("halfway", {"ref_every": 2, "ref_mix": 0.5}),
        ("falling", {"schedule": "linear"}),
    ):
        other = kls_of(walk, tmp_path / name, **changes)
        assert other[:2] == fixed[:2]
        assert 1e-6 < other[2] < fixed[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ref_mix": 0.5}, "ref_mix is 0.5: it belongs to ref_every, give one"),
        ({"ref_mix": 0.0, "ref_every": 2}, "ref_mix is 0.0: give a number above 0, up to 1"),
        ({"ref_every": 150}, "ref_every is 150: it would never move in 150 steps"),
        ({"ref_every": 2, "lora": LoRAConfig(rank=2)}, "ref_every is 2: with lora.rank"),
    ],
)
def test_a_reference_that_cannot_move(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecastError, match=said):
        RLConfig(data="d", policy="p", output="o", **changes)


def test_a_reference_that_nobody_asks(walk: Path, tmp_path: Path) -> None:
    config = rl_config(walk, tmp_path / "run", kl_coef=0.0, ref_every=1)
    with pytest.raises(RecastError, match="ref_every is 1: ReCast compares with no reference"):
        train_rl(config)
    assert not (tmp_path / "run").exists()
