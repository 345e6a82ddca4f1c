"""How a run is started: what is taken out of the arguments, and what is refused."""

from __future__ import annotations

import pytest
from small_walk import failure

from recast.config.launch import Launch, split_launch
from recast.errors import RecastError


def test_the_rest_stays_in_its_order() -> None:
    args = ["rl", "--seed", "3", "--launcher", "ray", "--workers=2", "--lr", "1e-4"]
    assert split_launch(args) == (["rl", "--seed", "3", "--lr", "1e-4"], Launch("ray", (2, 2)))
    assert split_launch(["rl", "--seed=3"]) == (["rl", "--seed=3"], None)
    own = ["compare", "--workers=2"]
    assert split_launch(own, has_workers=True) == (own, None)
    assert split_launch([*own, "--launcher=ray"], has_workers=True)[1] == Launch("ray", (2, 2))


@pytest.mark.parametrize("text", ["0", "0:2", "2:1", "1:", ":2", "x", "-1:2", "1:2:3", "9" * 7, ""])
def test_workers_that_cannot_be(text: str) -> None:
    with pytest.raises(RecastError, match=r"^workers is '.*': give MIN:MAX"):
        split_launch(["--launcher=ray", f"--workers={text}"])


def test_a_launcher_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--launcher=slurm", "--workers=2"], ["--workers", "2"], ["--launcher"]):
        line, code = failure(capsys, "rl", *args)
        assert line.startswith("launcher is ")
        assert "give ray, or start the processes with torchrun" in line
        assert code == 2
    line, _ = failure(capsys, "prepare", "--launcher=ray", "--workers=2")
    assert "launcher" in line
