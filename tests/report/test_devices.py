"""A step on a cluster, by hand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import tiny
from small_walk import failure

from recast import cli
from recast.config.devices import CARDS, Devices, parse_devices
from recast.errors import RecastError
from recast.report.devices import QWEN3, Shape, Step, described, seconds, shape_of, ways


def test_the_published_shapes() -> None:
    published = {"1.7 B": 1.72, "8 B": 8.19, "14 B": 14.77}
    assert {name: round(shape.weights / 1e9, 2) for name, shape in QWEN3.items()} == published


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_the_shape_of_a_model(name: str) -> None:
    model = tiny.tiny_policy(name, tiny.tiny_catalog()).model
    shape = shape_of(model)
    assert shape.weights == sum(p.numel() for p in model.parameters())
    assert (shape.layers, shape.attention, shape.is_tied) == (2, 32, name == "qwen3")


def test_seconds_by_hand() -> None:
    """100 + 20 weights twice a token, 4 numbers a pair of each of 2 layers."""
    shape = Shape(body=100, layers=2, attention=4, width=2, vocabulary=10, is_tied=True)
    step, card = Step(2, 10, 4, 3), CARDS["H100"]._replace(flops=1000.0, far=100.0, near=200.0)
    naive, one = ways(step)["naive"], ways(step)["packed"]
    flops = {"naive": 2 * (100 * 96 + 20 * 24) + 32 * 624, "one": 2 * (3600 + 360) + 32 * 294}
    assert (naive.flops(shape), one.flops(shape)) == (flops["naive"], flops["one"])
    taken = seconds(shape, step, naive, Devices(16, card), has_reference=True)
    assert taken.compute == pytest.approx((flops["one"] + 4 * flops["naive"]) / (16 * 400))
    per_weight = 15 / 16 * 120 / 100
    assert taken.replicas == pytest.approx(8 * per_weight)
    assert taken.sharded == pytest.approx(4 * (4 + 1) * per_weight)
    near = seconds(shape, step, naive, Devices(8, card), has_reference=False)
    assert near.replicas == pytest.approx(8 * 7 / 8 * 120 / 200)
    assert seconds(shape, step, naive, Devices(1, card), has_reference=False).sharded == 0


def test_what_does_not_fit_has_no_time() -> None:
    step = Step(64, 3400, 32, 3)
    small, large = (
        list(described(QWEN3[name], step, parse_devices("64xH100"), has_reference=True))
        for name in ("1.7 B", "8 B")
    )
    assert "34.4 GB as a replica, 7.4 GB as one of 64" in small[2]
    assert "163.8 GB as a replica, which does not fit" in large[2]
    assert [line.split()[-2] for line in large[-3:]] == ["-"] * 3
    assert [line.split()[1] for line in small[-3:]] == ["6.97", "0.44", "0.22"]


def test_cards_that_nobody_knows(walk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("H100", "0xH100", "64xRTX", "1000000xH100", "64 x H100", "-1xH100", ""):
        with pytest.raises(RecastError, match=r"^devices is '.*': give a number up to 100,000 and"):
            parse_devices(text)
    args = ["inspect", f"--data={walk / 'data'}", f"--policy={walk / 'sft' / 'policy'}"]
    args += ["--group_size=6", "--prompts_per_step=8", "--threads=1", "--pass_tokens=4096"]
    line, code = failure(capsys, *args, "--devices=7xABC")
    assert code == 2
    assert line.startswith("devices is '7xABC': give a number")
    cli.main([*args, "--devices=8xA100"])
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, text in enumerate(lines) if text.startswith("devices   8 x A100, "))
    assert [text.split()[0] for text in lines[-4:-1]] == ["naive", "pair", "packed"]
    assert max(map(len, lines[at:])) <= 100


def test_the_worked_example_of_the_docs() -> None:
    page = Path(__file__).parents[2] / "docs" / "scale.md"
    assert doctest.testfile(str(page), module_relative=False) == (0, 4)
