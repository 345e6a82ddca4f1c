"""Every method, SFT and the evaluation with the policy off the CPU: no tensor is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from other_device import NAME, OtherDevice
from small_walk import rl_config, sft_config, weights

from recast.config import EvaluateConfig
from recast.evaluation.evaluate import evaluate_policy
from recast.methods.parts import resources
from recast.methods.table import METHODS
from recast.rl import train_rl
from recast.sft import train_sft
from recast.types import RecastError

OWN: dict[str, dict[str, Any]] = {"dapo": {"max_rollout_batches": 2}}


def test_a_tensor_of_the_cpu_is_refused() -> None:
    with OtherDevice():
        there = torch.arange(3, device=NAME)
        assert there.device.type == NAME
        assert int(there.sum()) == 3
        with pytest.raises(RuntimeError, match="on the CPU"):
            there + torch.arange(3)


def _difference(start: Path, one: Path, other: Path) -> float:
    """Between two runs, as a share of the way that the first went."""
    begin, here, there = weights(start), weights(one), weights(other)
    way = torch.cat([(here[name] - begin[name]).flatten() for name in begin])
    apart = torch.cat([(here[name] - there[name]).flatten() for name in begin])
    return float(apart.norm() / way.norm())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_weights_of_the_cpu(
    walk: Path, one_level: Path, tmp_path: Path, name: str
) -> None:
    needs_ranker = "ranker" in resources(METHODS[name].signal) | resources(METHODS[name].reward)
    settings = OWN.get(name, {}) | ({"ranker": str(one_level)} if needs_ranker else {})
    settings |= {"method": name, "steps": 1, "valid_rows": 8}
    settings |= {} if METHODS[name].samplers else {"group_size": 1}
    train_rl(rl_config(walk, tmp_path / "here", **settings))
    with OtherDevice():
        train_rl(rl_config(walk, tmp_path / "there", device=NAME, **settings))
    # Adam makes full steps of gradients that are nothing but rounding.
    assert _difference(walk / "sft", tmp_path / "here", tmp_path / "there") < 0.05


def test_sft_and_evaluation_too(walk: Path, one_level: Path, tmp_path: Path) -> None:
    few = {"epochs": 1, "dropout": 0.0, "logprob_space": "trie", "valid_rows": 8}
    train_sft(sft_config(walk, tmp_path / "here", **few))
    with OtherDevice():
        train_sft(sft_config(walk, tmp_path / "there", **few, device=NAME))
    assert _difference(walk / "sft", tmp_path / "here", tmp_path / "there") < 0.01
    found = []
    for device in ("cpu", NAME):
        output = tmp_path / f"eval-{device}"
        config = EvaluateConfig(
            data=str(walk / "data"),
            policy=str(walk / "sft" / "policy"),
            output=str(output),
            decoder="d3",
            guide=str(one_level),
            device=device,
            threads=1,
        )
        with OtherDevice():
            found.append(evaluate_policy(config))
    assert found[0] == pytest.approx(found[1])


def test_a_device_that_is_not_there_is_refused(walk: Path, tmp_path: Path) -> None:
    for device in ("cuda:7", "nonsense"):
        with pytest.raises(RecastError, match=f"device is '{device}': torch .* give cpu"):
            train_rl(rl_config(walk, tmp_path / "run", device=device))
    assert not (tmp_path / "run").exists()
