"""Every command of a guide runs, in the order of the page, on a few users."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import polars as pl
import pytest
import small_chat
from small_walk import NUM_ITEMS, write_events

from recast import cli

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
GUIDE = (GUIDES / "strong-start.md").read_text()
SMALLER = {
    "baselines": "--epochs=1 --threads=1 --valid_rows=20",
    "tokenize": "--collaborative_weight=1",
    "sft": "--epochs=1 --threads=1 --model.hidden_size=32 --model.num_layers=1 --pass_tokens=4096",
    "evaluate": "--threads=1",
    "rl": "--steps=2 --prompts_per_step=4 --group_size=4 --threads=1 --pass_tokens=4096",
}
"""What the test adds to a command, so that it takes no time."""


def run_commands(guide: str, more: dict[str, str]) -> int:
    """Run what a guide tells to, each command with more settings by its verb; how many."""
    commands = re.findall(r"^    recast (.*)$", guide.replace("\\\n", " "), re.MULTILINE)
    for command in commands:
        verb, *args = shlex.split(command)
        cli.main([verb, *args, *more.get(verb, "").split()])
    return len(commands)


def test_the_way_to_a_strong_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_events(Path("events.csv"))
    rows = ["item,title", *(f"{item},Item {item}" for item in range(NUM_ITEMS))]
    Path("items.csv").write_text("\n".join(rows))
    assert run_commands(GUIDE, SMALLER) > 10
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


def test_the_way_of_your_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Users read 12 items in turn and are asked for the next two; nothing says what is `valid`."""
    monkeypatch.chdir(tmp_path)
    small_chat.save_model(Path("model"))
    sids = {f"i{item}": [f"<a_{item % 4}>", f"<b_{item // 4}>"] for item in range(12)}
    Path("index.json").write_text(json.dumps(sids))
    items = [{"item": item, "title": f"Item {item}"} for item in sids]
    pl.DataFrame(items).write_csv("items.csv")
    rows = []
    for user in range(40):
        names = ["".join(sids[f"i{(user + step) % 12}"]) for step in range(9)]
        said = [{"role": "user", "content": f"I read {', '.join(names)}. What next?"}]
        bought = [f"i{(user + step) % 12}" for step in (9, 10)]
        split = "train" if user < 32 else "test"
        rows.append(
            {"uid": user, "messages": json.dumps(said), "bought": str(bought), "split": split}
        )
    pl.DataFrame(rows).write_csv("rows.csv")
    shorter = {
        "prepare": "--valid_frac=0.2",
        "sft": "--prompt.max_tokens=60 --threads=1 --pass_tokens=4096 --lr=5e-3",
        "evaluate": "--threads=1",
        "rl": "--steps=2 --prompts_per_step=4 --group_size=4 --threads=1 --pass_tokens=4096",
    }
    guide = (GUIDES / "own-rows.md").read_text()
    assert run_commands(guide, shorter) == 5
    told = json.loads(Path("run/eval/eval.json").read_text())
    assert told["metrics"]["item/recall@1"]["value"] <= 0.5
    assert "8 of 8 prompts have more than 60 tokens" in told["notes"][0]
    assert told["facts"]["events_seen"] == ["train"]
