"""Rows of two tasks from a file to an evaluation, through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest
import small_chat
import torch
from small_walk import failure, metric_lines

from recast import cli
from recast.data.folder import load_items
from recast.items.catalog import build_catalog
from recast.policy.load import load_policy
from recast.policy.tasks import load_task

NUM_ITEMS = 12


def name(item: int) -> str:
    return f"<a_{item % 4}><b_{item // 4}>"


def write_rows(file: Path) -> None:
    """Users read items in turn; `chat` asks for the next, `list` for the next one or two."""
    rows = []
    for user in range(30):
        history = [(user + step) % NUM_ITEMS for step in range(2 + user % 3)]
        nexts = [(history[-1] + step) % NUM_ITEMS for step in (1, 2)]
        is_chat = user % 3 == 0
        said = "I read " + ", ".join(map(name, history)) + ". What next?"
        chat = [{"role": "user", "content": said}]
        system = [{"role": "system", "content": "Recommend."}]
        rows.append(
            {
                "user": f"u{user}",
                "prompt": json.dumps(chat if is_chat else system + chat),
                "targets": [f"i{item}" for item in nexts[: 1 + (not is_chat and user % 2)]],
                "task": "chat" if is_chat else "list",
                "split": "train" if user < 20 else "valid" if user < 25 else "test",
            }
        )
    pl.DataFrame(rows).write_parquet(file)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, catalogue, model and a policy of supervised training."""
    root = tmp_path_factory.mktemp("rows")
    write_rows(root / "rows.parquet")
    cli.main(["prepare", "--rows", str(root / "rows.parquet"), "--output", str(root / "data")])
    ids = load_items(root / "data")["item_id"].to_list()
    codes = [[int(i[1:]) % 4, int(i[1:]) // 4] for i in ids]
    build_catalog(codes, (4, 3), item_ids=ids).save(root / "catalog")
    small_chat.save_model(root / "model")
    cli.main([*sft_args(root, "sft"), r"--prompt.prefix=<think></think>"])
    return root


def sft_args(root: Path, output: str) -> list[str]:
    args = [
        "sft",
        "--data",
        root / "data",
        "--catalog",
        root / "catalog",
        "--output",
        root / output,
    ]
    args += ["--model.path", root / "model", "--epochs=3", "--batch_windows=8", "--lr=5e-3"]
    return list(map(str, [*args, "--threads=1", "--pass_tokens=4096"]))


def rl_args(root: Path, output: str) -> list[str]:
    args = ["rl", "--data", root / "data", "--policy", root / "sft" / "policy", "--threads=1"]
    args += ["--output", root / output, "--steps=2", "--group_size=3", "--prompts_per_step=6"]
    return list(map(str, [*args, "--method=recast", "--pass_tokens=4096", "--eval_every=1"]))


def test_supervised_training_keeps_how_it_rendered(walk: Path) -> None:
    policy = load_policy(walk / "sft" / "policy")
    assert policy.logprob_space == "full"
    # 640 positions, less two items of two codes and the end of the turn.
    assert policy.prompt.max_tokens == 640 - 5
    task = load_task(walk / "data", policy)
    prompts = task.prompts(torch.tensor([0]))
    text = policy.tokenizer.decode(prompts.tokens[0])
    assert text == (
        f"<|im_start|>user\nI read {name(0)}, {name(1)}. What next?<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>"
    )
    losses = [line["sft/loss"] for line in metric_lines(walk / "sft")]
    assert losses[-1] < 0.8 * losses[0]
    line = metric_lines(walk / "sft")[-1]
    whole, parts = line["valid/ndcg@10"], [line[f"{task}/valid/ndcg@10"] for task in task.tasks]
    assert whole == pytest.approx((2 * parts[0] + 3 * parts[1]) / 5)


def test_rl_and_evaluation_tell_the_tasks_apart(
    walk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["--task_weights.chat=1", "--task_weights.list=2"]
    cli.main([*rl_args(walk, "rl"), *weights])
    assert "the data has no rl rows: prompts are drawn from train" in capsys.readouterr().out
    table = pl.concat(map(pl.read_parquet, (walk / "rl" / "rollouts").iterdir()))
    counts = table.group_by("step", "task").len().sort("step", "task")["len"].to_list()
    assert counts == [2 * 3, 4 * 3] * 2
    line = metric_lines(walk / "rl")[-1]
    for name_of in ("group/all_zero_frac", "reward/mean"):
        parts = line[f"chat/{name_of}"], line[f"list/{name_of}"]
        assert line[name_of] == pytest.approx((parts[0] + 2 * parts[1]) / 3)
    args = ["evaluate", "--data", walk / "data", "--policy", walk / "rl" / "policy", "--threads=1"]
    cli.main(list(map(str, [*args, "--output", walk / "eval", "--beam_width=12", "--at=3"])))
    said = capsys.readouterr().out
    assert "\nlist: 4 rows of 4 users\n" in said
    facts = json.loads((walk / "eval" / "eval.json").read_text())
    assert {name: task["rows"] for name, task in facts["tasks"].items()} == {"chat": 1, "list": 4}
    assert facts["facts"]["events_seen"] == ["train"]
    recall = [facts["tasks"][task]["metrics"]["item/recall@3"]["value"] for task in facts["tasks"]]
    whole = facts["metrics"]["item/recall@3"]["value"]
    assert whole == pytest.approx((recall[0] + 4 * recall[1]) / 5)


def test_a_ranker_of_events_is_refused(walk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--method=adagrpo", "--ranker=item_knn"]
    line, code = failure(capsys, *rl_args(walk, "events"), *more)
    assert code == 2
    assert line.startswith(f"ranker item_knn is fitted on events, and {walk / 'data'} holds rows: ")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--prompt.max_tokens=8"], r"row 0 has a prompt of \d+ tokens, at most 8 fit"),
        (
            ["--prompt.max_tokens=640"],
            r"prompt.max_tokens is 640: the context of 640 tokens leaves",
        ),
        (["--prompt.template=x"], r"prompt.template is 'x': write {history} once, where the"),
        ([r"--prompt.prefix=\n"], r"prompt.prefix is '\\\\n': a shell passes backslash and letter"),
        (["--prompt.history=text"], r"--prompt.history is 'text': give .*sids or titles or both"),
        (["--logprob_space=trie"], r"logprob_space is 'trie': prompts are read with their answers"),
        (["--backwards_frac=0.5"], r"backwards_frac is 0.5: it belongs to windows of events"),
        (["--crop_frac=0.5"], r"crop_frac is 0.5: it belongs to windows of events"),
        (["--task_weights.buy=1"], r"task_weights is 'buy': the data has no such task, only chat"),
        (["--task_weights.chat=x"], r"task_weights.chat is 'x': give a number from 0 to 1000000"),
        (["--task_weights.chat=0"], r"task_weights is {'chat': 0}: give at least one task more"),
    ],
)
def test_settings_that_cannot_be(
    walk: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    line, code = failure(capsys, *sft_args(walk, "bad"), *more)
    assert code == 2
    assert re.match(said, line), line
    assert not (walk / "bad").exists()


def test_a_new_model_reads_no_text(walk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        arg for arg in sft_args(walk, "bad") if arg not in ("--model.path", str(walk / "model"))
    ]
    line, _ = failure(capsys, *args)
    assert line.startswith(
        "row 0 is text, and the policy has no tokenizer: start from a model with"
    )
    line, _ = failure(capsys, *args, "--prompt.suffix=/think")
    assert line.startswith(
        "prompt.suffix is '/think': the model has no tokenizer to render it with"
    )
