"""`recast inspect` on the small walk: what it prints is what the run would do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import small_chat
import tiny
import torch
from small_rows import small_rows
from small_walk import failure

from recast import cli
from recast.data.folder import load_data
from recast.policy.chat import chat_task
from recast.policy.load import load_policy
from recast.policy.logprobs import branch_logprobs
from recast.report.inspection import shown_prompt
from recast.train.search import prompt_batches


def look(walk: Path, *more: str) -> list[str]:
    args = ["inspect", f"--data={walk / 'data'}", f"--policy={walk / 'sft' / 'policy'}"]
    return [*args, "--group_size=6", "--prompts_per_step=8", "--threads=1", *more]


def test_a_row_is_shown_as_the_run_has_it(walk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(walk.rglob("*"))
    cli.main(look(walk, "--pass_tokens=4096"))
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert sorted(walk.rglob("*")) == before
    assert max(map(len, lines)) <= 100

    policy = load_policy(walk / "sft" / "policy")
    task = tiny.task_of(load_data(walk / "data"), policy)
    row = prompt_batches(task.rows("rl"), 8, 1, 0)[0, :1]
    prompts = task.prompts(row)
    tokens = prompts.tokens[0, : int(prompts.lengths[0])].tolist()
    user = int(task.users(row))
    head = f"prompt    row {int(row)} of rl, task history, user {user}: {len(tokens)} tokens"
    assert lines[0] == head
    numbers = " ".join(lines[1 : lines.index(next(x for x in lines if "oldest first" in x))])
    assert [int(x) for x in numbers.split()] == tokens
    shown = text[text.index("oldest first") : text.index("target ")]
    assert re.findall(r"'(\d+)'", shown) == [
        policy.catalog.item_ids[item] for item in prompts.history[0].tolist() if item >= 0
    ]

    item = int(prompts.target_items[0, 0])
    place = lines.index(next(x for x in lines if x.startswith("target ")))
    assert f"'{policy.catalog.item_ids[item]}'" in lines[place]
    written = " ".join(map(str, prompts.targets[0, 0].tolist()))
    assert lines[place + 1] == f"          tokens {written}: the trie leads to them"
    with torch.no_grad():
        logprobs = branch_logprobs(policy, prompts, prompts.targets, "full")[0, 0]
    each = " ".join(f"{value:.2f}" for value in logprobs.tolist())
    total = float(logprobs.sum())
    assert lines[place + 2] == f"          log-probability {each}, in sum {total:.2f} (full)"
    assert "reward    set_ratio gives the target 1, other items at most 0: the highest" in lines
    assert "rollouts  6 of 6 by sample: log-probability, reward" in lines
    of_rollouts = re.findall(r"^ +(-\d+\.\d\d) +(\S+)  <a_", text, re.MULTILINE)
    assert len(of_rollouts) == 6
    assert of_rollouts == sorted(of_rollouts, key=lambda pair: -float(pair[0]))
    longest = int(task.lengths(task.rows("rl")).max())
    count = len(task.rows("rl"))
    assert re.search(rf"prompt tokens of rl \({count} rows\): .* longest {longest} \(row ", text)
    assert re.search(r"step      8 prompts of 6 rollouts: \d+\.\d\d s, measured\n", text)
    assert re.search(r"rollout \d.*update \d.*; 1 torch thread, at", text)
    assert "tokens a pass" in text


def test_another_row_split_and_method(walk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = int(load_data(walk / "data").rows("test")[-1])
    more = ["--pass_tokens=4096", "--split=test", f"--row={row}"]
    cli.main(look(walk, *more, "--method=sft_continued"))
    text = capsys.readouterr().out
    assert text.startswith(f"prompt    row {row} of test, ")
    assert "reward    SFT continued makes no rollouts: it learns from the target alone\n" in text
    assert "step      8 prompts of 0 rollouts: " in text
    cli.main(look(walk, *more, "--method=adagrpo", "--ranker=item_knn"))
    text = capsys.readouterr().out
    assert re.search(
        r"^reward    collaborative gives the target .*: it follows the ranker$", text, re.M
    )


def test_what_cannot_be_shown_is_one_line(walk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, status = failure(capsys, *look(walk, "--row=0"))
    assert status == 2
    assert re.fullmatch(r"row is 0: give one of split rl, such as \d+, or leave it out", line)
    line, _ = failure(capsys, *look(walk, "--split=valid", "--prompts_per_step=999"))
    assert line.startswith("prompts_per_step is 999: the data has ")
    assert "rows in the valid slice" in line
    line, _ = failure(capsys, *look(walk, "--output=x"))
    assert line.startswith("--output is no flag of recast inspect: ")


def test_a_rendered_prompt_is_shown_as_text() -> None:
    policy = small_chat.chat_policy()
    said = small_chat.messages("Seen: <s_a_0><s_b_0><s_c_1>.\nNext?")
    rows = small_rows([[1, 4]], prompts=[said], is_chat=True, num_items=8, task_names=("video",))
    task = chat_task(rows, policy)
    prompts = task.prompts(torch.tensor([0]))
    head, *lines = shown_prompt(policy, task, prompts, "test")
    tokens = prompts.tokens[0].tolist()
    assert head == f"prompt    row 0 of test, task video, user 0: {len(tokens)} tokens"
    bar = "          | "
    assert lines[:5] == [
        f"{bar}<|im_start|>user",
        f"{bar}Seen: <s_a_0><s_b_0><s_c_1>.",
        f"{bar}Next?<|im_end|>",
        f"{bar}<|im_start|>assistant",
        f"{bar}<|sid_begin|>",
    ]
    assert " ".join(lines[5:]).split() == [str(token) for token in tokens]
