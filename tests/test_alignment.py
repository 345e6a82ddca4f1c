"""Rows of several kinds, from files to a policy that still speaks, through the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_chat
import yaml
from small_walk import failure, metric_lines, numbers, same, weights

from recast import cli, sft
from recast.data.folder import load_items
from recast.evaluation import text
from recast.items.catalog import build_catalog
from recast.train import keeper

MIXED = ["--task_weights.sid_to_title=0.5", "--task_weights.title_to_sid=0.5"]
MIXED += ["--task_weights.titles_to_sid=0.25", "--task_weights.plain_text=0.5"]


@pytest.fixture(scope="module", autouse=True)
def few_tokens() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "MOST_ANSWER", 8)
        yield


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 users walk a ring of 12 items with titles; a model, chats, and a policy of both."""
    root = tmp_path_factory.mktemp("alignment")
    events = [(f"u{u}", f"i{(u + t) % 12}", 12 * t + u) for u in range(12) for t in range(6)]
    pl.DataFrame(events, schema=["user", "item", "time"], orient="row").write_csv(root / "e.csv")
    items = {"item": [f"i{i}" for i in range(12)], "title": [f"Book {i}" for i in range(12)]}
    pl.DataFrame(items).write_csv(root / "i.csv")
    args = ["--interactions", root / "e.csv", "--items", root / "i.csv", "--text", "title"]
    run("prepare", *args, "--output", root / "data")
    made = load_items(root / "data")
    ids = made["item_id"].to_list()
    codes = [[int(i[1:]) % 4, int(i[1:]) // 4] for i in ids]
    texts = made["text"].to_list()
    build_catalog(codes, (4, 3), item_ids=ids, texts=texts).save(root / "catalog")
    small_chat.save_model(root / "model")
    chats = [small_chat.messages(f"Say {n}.", f"{n}, {n}!") for n in range(24)]
    lines = [json.dumps({"messages": json.loads(chat)}) + "\n" for chat in chats]
    (root / "chats.jsonl").write_text("".join(lines))
    run(*sft_args(root, "sft"), *MIXED)
    return root


def run(*args: object) -> None:
    cli.main(list(map(str, args)))


def sft_args(root: Path, output: str | Path) -> list[str]:
    args = ["sft", "--data", root / "data", "--catalog", root / "catalog", "--epochs=2"]
    args += ["--output", root / output, "--model.path", root / "model", "--batch_windows=32"]
    args += ["--prompt.history=sids", "--lr=5e-3", "--threads=1", "--pass_tokens=4096"]
    return list(map(str, [*args, "--plain_text", root / "chats.jsonl", "--window=5"]))


def text_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metric_lines(folder) if "text/nats" in line]


def test_a_mixture_is_learned_and_its_text_measured(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = text_lines(walk / "sft")
    steps = [line["step"] for line in metric_lines(walk / "sft")]
    assert (before["step"], after["step"]) == (0, steps[-1])
    assert 0 <= after["text/stops"] <= 1
    # The same seed without these rows: chats are learned here, and lost there.
    run(*sft_args(walk, tmp_path / "alone"))
    said = capsys.readouterr().out
    line = r"\ntext before: \d\.\d{4} nats a token on 3 held-out rows of .*, \d+% of 3 answers stop"
    assert re.search(line, said)
    first, alone = text_lines(tmp_path / "alone")
    assert first["text/nats"] == before["text/nats"]
    assert after["text/nats"] < min(before["text/nats"], alone["text/nats"])
    args = sft_args(walk, tmp_path / "silent")
    place = args.index("--plain_text")
    run(*args[:place], *args[place + 2 :])  # to measure moves no weight
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "silent"))
    settings = yaml.safe_load((walk / "sft" / "config.yaml").read_text())
    assert settings["task_weights"]["plain_text"] == 0.5


def test_without_an_epoch_nothing_is_learned_of_it(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*sft_args(walk, tmp_path / "start"), *MIXED, "--epochs=0")
    said = capsys.readouterr().out
    assert "epochs is 0: nothing is trained or validated" in said
    assert "an epoch reads further rows: " in said
    before, after = text_lines(tmp_path / "start")
    assert numbers(before) == numbers(after)


def test_a_mixture_goes_on_bit_for_bit(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails within its second epoch."""
    monkeypatch.setattr(keeper, "_MOST", 1.0)
    work, calls = sft.train_batch, []

    def failing(*given: Any, **named: Any) -> None:
        calls.append(given)
        if len(calls) == 6:
            raise RuntimeError("the power is gone")
        work(*given, **named)

    monkeypatch.setattr(sft, "train_batch", failing)
    args = [*sft_args(walk, tmp_path / "ended"), *MIXED, "--checkpoint_s=0"]
    with pytest.raises(SystemExit):
        run(*args)
    monkeypatch.undo()
    assert len(metric_lines(tmp_path / "ended")) == 2  # the text before, and an epoch
    run(*args, "--resume")
    assert same(weights(tmp_path / "ended"), weights(walk / "sft"))
    folders = (tmp_path / "ended", walk / "sft")
    ours, theirs = ([numbers(line) for line in metric_lines(folder)] for folder in folders)
    assert ours == theirs


def test_rl_tells_text_too(walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["rl", "--data", walk / "data", "--policy", walk / "sft" / "policy", "--threads=1"]
    args += ["--steps=1", "--group_size=3", "--prompts_per_step=4", "--pass_tokens=4096"]
    run(*args, "--output", tmp_path / "rl", "--plain_text", walk / "chats.jsonl")
    before, after = text_lines(tmp_path / "rl")
    # What was saved is what was measured at the end of supervised training.
    assert before["text/nats"] == pytest.approx(text_lines(walk / "sft")[1]["text/nats"], rel=1e-6)
    assert (before["step"], after["step"]) == (0, 1)
    assert "\ntext after: " in capsys.readouterr().out
    line, code = failure(
        capsys, *map(str, args), f"--output={tmp_path / 'no'}", "--task_weights.plain_text=1"
    )
    assert (code, line) == (
        2,
        "task_weights is 'plain_text': the data has no such task, only chat",
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--plain_text=missing.jsonl"], r"missing.jsonl: no such file: check the path"),
        (["--plain_text="], r"plain_text is '': give a name or leave it out"),
        (["--loss_on=prompt"], r"--loss_on is 'prompt': give .*answer or all"),
        (["--task_weights.sid_to_titles=1"], r"task_weights is 'sid_to_titles': the data has no"),
        (["--task_weights.sid_to_title=-1"], r"task_weights.sid_to_title is -1: give a number"),
        (["--prompt.history=titles", "--task_weights.titles_to_sid=1"], r".*holds? already, leave"),
        ([*MIXED, "--logprob_space=trie"], r"logprob_space is 'trie': prompts are read with their"),
    ],
)
def test_settings_that_cannot_be(
    walk: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    line, code = failure(capsys, *sft_args(walk, "bad"), *more)
    assert code == 2
    assert re.match(said, line), line
    assert not (walk / "bad").exists()


def test_beside_windows_of_events(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [arg for arg in sft_args(walk, tmp_path / "run") if arg != "--prompt.history=sids"]
    line, _ = failure(capsys, *args, "--loss_on=all")
    assert line.startswith("loss_on is 'all': windows of events are learned from the first item")
    run(*args, *MIXED, "--loss_on=all", "--max_steps=2")
    said = capsys.readouterr().out
    assert "windows of 5 items" in said
    assert "an epoch reads further rows: 6 sid_to_title (of 12)" in said
    new = [arg for arg in args if arg not in ("--model.path", str(walk / "model"))]
    line, _ = failure(capsys, *new, f"--output={tmp_path / 'new'}")
    assert re.match(r".*chats.jsonl is text, and the policy has no tokenizer: start from", line)
