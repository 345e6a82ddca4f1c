"""Every command of a guide runs, in the order of the page, on a few users."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from small_walk import NUM_ITEMS, write_events

from recast import cli

GUIDE = (Path(__file__).parents[1] / "docs" / "guides" / "strong-start.md").read_text()
SMALLER = {
    "baselines": "--epochs=1 --threads=1 --valid_rows=20",
    "tokenize": "--collaborative_weight=1",
    "sft": "--epochs=1 --threads=1 --model.hidden_size=32 --model.num_layers=1 --pass_tokens=4096",
    "evaluate": "--threads=1",
    "rl": "--steps=2 --prompts_per_step=4 --group_size=4 --threads=1 --pass_tokens=4096",
}
"""What the test adds to a command, so that it takes no time."""


def test_the_way_to_a_strong_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_events(Path("events.csv"))
    rows = ["item,title", *(f"{item},Item {item}" for item in range(NUM_ITEMS))]
    Path("items.csv").write_text("\n".join(rows))
    commands = re.findall(r"^    recast (.*)$", GUIDE.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) > 10
    for command in commands:
        verb, *args = shlex.split(command)
        cli.main([verb, *args, *SMALLER.get(verb, "").split()])
    told = json.loads(Path("run/valid/mixture/eval.json").read_text())
    assert told["alpha_chosen_on"]["split"] == "valid"
    for key in re.findall(r"^- `(\w+)`:", GUIDE, re.MULTILINE):
        assert told[key] is not None
    capsys.readouterr()
    code = re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "strong-start", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    labels = [line[:9].strip() for line in lines if re.match(r".{9} +\.\d{4} ", line)]
    assert labels == ["item-kNN", "SFT", "SFT + kNN"]
    assert "Events seen in training: train + rl." in lines
