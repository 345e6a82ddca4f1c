"""What a policy reads of a row, to the letter; what is cut, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_chat
import tiny
import torch
from small_chat import messages
from small_events import small_events
from small_rows import small_rows

from recast.config import PromptConfig
from recast.data.rows import Rows
from recast.policy.chat import ChatTask, with_room
from recast.policy.load import Policy, load_policy, save_policy
from recast.policy.tasks import HistoryTask, make_task
from recast.types import RecastError

BEGIN, END = "<|sid_begin|>", "<|sid_end|>"
SPELLED = [f"{BEGIN}<s_a_{a}><s_b_{b}><s_c_{c}>{END}" for a, b, c in tiny.CODES.tolist()]
USER, ASKS = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def task_of(rows: Any, policy: Policy) -> ChatTask:
    task = make_task(rows, policy)
    assert isinstance(task, ChatTask)
    return task


def rendered(task: ChatTask, policy: Policy, row: int = 0) -> str:
    prompts = task.prompts(torch.tensor([row]))
    return str(policy.tokenizer.decode(prompts.tokens[0, : int(prompts.lengths[0])]))


def one(prompt: str | None = None, history: list[int] | None = None, **settings: Any) -> Rows:
    lists = None if history is None else [history]
    return small_rows([[1]], prompts=[prompt], history=lists, num_items=8, **settings)


def test_messages_texts_and_histories_to_the_letter() -> None:
    policy = small_chat.chat_policy()
    said = f"I saw {SPELLED[0]}."
    row = one(messages(said, "Good.", "Next?", system="Be brief."), is_chat=True)
    middle = f"{USER}{said}<|im_end|>\n<|im_start|>assistant\nGood.<|im_end|>\n{USER}Next?{ASKS}"
    text = rendered(task_of(row, policy), policy)
    assert text == f"<|im_start|>system\nBe brief.<|im_end|>\n{middle}{BEGIN}"
    for given in (f"as it is: {SPELLED[2]}\n", f"as it is: {SPELLED[2]}\n{BEGIN}"):
        assert rendered(task_of(one(given), policy), policy) == f"as it is: {SPELLED[2]}\n{BEGIN}"
    asked = PromptConfig(
        system="Short!",
        suffix=" /no_think",
        prefix="<think>\n</think>\n",
        history="both",
        template="Seen: {history}?",
    )
    policy = replace(policy, prompt=asked)
    text = rendered(task_of(row, policy), policy)
    expected = middle.replace(f"Next?{ASKS}", f"Next? /no_think{ASKS}<think>\n</think>\n")
    assert text == f"<|im_start|>system\nShort!<|im_end|>\n{expected}{BEGIN}"
    text = rendered(task_of(one(history=[3, 0]), policy), policy)
    both = f"Item 3 {SPELLED[3]}, Item 0 {SPELLED[0]}"
    assert f"{USER}Seen: {both}? /no_think{ASKS}<think>" in text
    titles = replace(policy, prompt=replace(asked, history="titles"))
    assert "Seen: Item 3, Item 0?" in rendered(task_of(one(history=[3, 0]), titles), titles)


def test_events_are_rendered_where_the_policy_renders() -> None:
    policy = small_chat.chat_policy()
    events = small_events([[0, 1, 2], [3, 4]], num_items=8)
    task = task_of(events, policy)
    assert rendered(task, policy, 2).count(f"{SPELLED[0]}, {SPELLED[1]}\n") == 1
    assert task.targets(torch.tensor([2, 4])).tolist() == [[2], [4]]
    assert task.history_lengths(torch.tensor([2, 4])).tolist() == [2, 1]
    plain = make_task(events, replace(policy, prompt=PromptConfig()))
    assert isinstance(plain, HistoryTask)


def test_without_a_tokenizer_a_history_is_its_items() -> None:
    catalog = small_chat.chat_catalog()
    policy = replace(tiny.tiny_policy("qwen3", catalog), window=3)
    task = task_of(small_rows([[1, 2]], history=[[3, 4, 5]], num_items=8), policy)
    tokens = catalog.tokens[[4, 5]].flatten().tolist()
    assert task.prompts(torch.tensor([0])).tokens.tolist() == [[301, *tokens, 313]]
    sequences = task.sequences(torch.tensor([0]), 0)
    first, second = catalog.tokens[[1, 2]].tolist()
    assert sequences.tokens[sequences.loss_mask].tolist() == [*first, 314, 313, *second, 314]
    with pytest.raises(RecastError, match="row 0 is text, and the policy has no tokenizer: start"):
        make_task(one("a text"), policy)


def test_the_oldest_items_are_cut_and_counted() -> None:
    policy = small_chat.chat_policy()
    run = " ; ".join(SPELLED[:4])
    rows = small_rows(
        [[1]] * 4,
        prompts=[messages(f"{SPELLED[7]} was first. Then {run}. Now?"), None, f"{run}\n", "short"],
        history=[[], [0, 1, 2, 3], [], []],
        num_items=8,
    )
    rows = replace(rows, is_chat=torch.tensor([True, False, False, False]))
    whole, ids = task_of(rows, policy), torch.arange(4)
    lengths = whole.lengths(ids).tolist()
    assert whole.notes(ids) == []
    # An item is 5 tokens, the comma and the space behind it one each.
    limited = replace(policy, prompt=PromptConfig(history="sids", max_tokens=lengths[1] - 1))
    task = task_of(rows, limited)
    text = rendered(task, policy, 1)
    assert f": {SPELLED[1]}, {SPELLED[2]}, {SPELLED[3]}\n" in text
    assert int(task.lengths(ids)[1]) == lengths[1] - 7
    limited = replace(policy, prompt=PromptConfig(history="sids", max_tokens=lengths[0] - 9))
    task = task_of(replace(rows, history=small_rows([[1]] * 4).history), limited)
    text = rendered(task, policy, 0)
    assert text.startswith(f"{USER}{SPELLED[7]} was first. Then {SPELLED[2]} ; {SPELLED[3]}. Now?")
    only = torch.tensor([0])
    most = lengths[0] - 9
    said = f"1 of 1 prompts have more than {most} tokens: 2 of their oldest items are left out"
    assert task.notes(only) == [said]
    tight = replace(policy, prompt=PromptConfig(history="sids", max_tokens=10))
    task = task_of(rows, tight)
    assert rendered(task, policy, 3) == f"short{BEGIN}"
    with pytest.raises(RecastError, match=r"row 0 has a prompt of \d+ tokens, at most 10 fit, and"):
        task.lengths(only)


def test_room_is_kept_for_the_longest_answer() -> None:
    """640 positions; an answer of two items has 3 + 1 + 1 + 3 + 1 tokens and an end."""
    policy = small_chat.chat_policy()
    assert with_room(policy, 2).prompt.max_tokens == 640 - 10
    given = replace(policy, prompt=PromptConfig(max_tokens=7))
    assert with_room(given, 2).prompt.max_tokens == 7
    given = replace(policy, prompt=PromptConfig(max_tokens=631))
    with pytest.raises(RecastError, match=r"^prompt.max_tokens is 631: the context of 640 tokens "):
        with_room(given, 2)
    assert task_of(one("x"), policy).limit == 640 - 3


def test_several_tasks_domains_and_targets_without_a_sid() -> None:
    codes = torch.cat([tiny.CODES[:4], tiny.CODES[:4]])
    codes[1] = -1
    policy = small_chat.chat_policy()
    catalog = small_chat.build_catalog(
        codes,
        tiny.SIZES,
        domain_of=[0] * 4 + [1] * 4,
        domains=("video", "goods"),
        names=small_chat.NAMES,
        first_token=303,
        pad_token=300,
        bos_token=301,
    )
    policy = replace(policy, catalog=catalog)
    rows = small_rows(
        [[1], [0, 1, 2], [4]],
        history=[[0], [3, 1], [5]],
        splits=["train"] * 3,
        tasks=[0, 0, 1],
        task_names=("watch", "buy"),
        task_domains=(0, 1),
        domains=("video", "goods"),
        num_items=8,
    )
    task = task_of(rows, policy)
    assert task.tasks == ("watch", "buy")
    assert task.rows("train").tolist() == [1, 2]  # the only target of row 0 writes nothing
    assert task.rows("rl").tolist() == [1, 2]  # there are none of its own
    prompts = task.prompts(torch.tensor([1, 2]))
    assert prompts.target_items.tolist() == [[0, 2], [4, -1]]
    assert prompts.domains.tolist() == [0, 1]
    assert f": {SPELLED[3]}\n" in rendered(task, policy, 1)
    assert task.item_counts(["train"]).tolist() == [1, 2, 1, 0, 1, 0, 0, 0]


def test_every_epoch_has_its_own_order() -> None:
    policy = small_chat.chat_policy()
    rows = small_rows(
        [[i % 8] for i in range(30)], history=[[i % 8] for i in range(30)], num_items=8
    )
    task, ids = task_of(rows, policy), torch.arange(30)
    first, again, other = (task.sequences(ids, epoch).tokens.tolist() for epoch in (0, 0, 1))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (small_chat.CHATML.replace("m['content']", "m['content'][:20]"), "loses <s_a_0> of its"),
        ("{{ raise_exception('no system, please') }}", r"template .*\(no system, please\): give"),
        ("{% for m in messages %}{{ m.nothing.at_all }}{% endfor %}", "does not go through the"),
        ("{{ messages[0]['content'] | upper }}", r"loses <\|sid_begin\|> of its user message"),
        (None, "row 0 holds messages, and the tokenizer of the policy has no chat template: start"),
    ],
)
def test_a_template_that_loses_items_or_fails(template: str | None, said: str) -> None:
    policy = small_chat.chat_policy()
    policy.tokenizer.chat_template = template
    task = task_of(one(messages(f"1 {SPELLED[0]} next?"), is_chat=True), policy)
    with pytest.raises(RecastError, match=said):
        task.prompts(torch.tensor([0]))


def test_a_template_that_drops_the_system_message_is_told() -> None:
    template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    policy = small_chat.chat_policy(prompt=PromptConfig(system="Be brief."))
    policy.tokenizer.chat_template = template
    with pytest.raises(RecastError, match=r"^prompt.system is 'Be brief.': the chat template"):
        task_of(one(messages("Hi"), is_chat=True), policy).prompts(torch.tensor([0]))
    own = one(messages("Hi", system="Be brief."), is_chat=True)
    with pytest.raises(RecastError, match=r"^row 0: the chat .* its system message 'Be brief.': w"):
        task_of(own, replace(policy, prompt=PromptConfig())).prompts(torch.tensor([0]))


def test_a_template_may_read_a_mode_out_of_the_system_message() -> None:
    policy = small_chat.chat_policy(prompt=PromptConfig(system="Be brief. /no_think"))
    policy.tokenizer.chat_template = "{{ messages[0].content.replace('/no_think', '') }}Q:"
    text = rendered(task_of(one(messages("Hi"), is_chat=True), policy), policy)
    assert text == f"Be brief. Q:{BEGIN}"


def test_where_a_prefix_ends() -> None:
    policy = small_chat.chat_policy(prompt=PromptConfig(prefix=f"<think></think>{BEGIN}"))
    text = rendered(task_of(one(messages("Hi"), is_chat=True), policy), policy)
    assert text.endswith(f"{ASKS}<think></think>{BEGIN}")
    policy = replace(policy, prompt=PromptConfig(prefix="In <s_b_1>"))
    with pytest.raises(RecastError, match=r"^prompt.prefix is 'In <s_b_1>': the item begins beh"):
        task_of(one("x"), policy)


def test_names_that_are_no_tokens_are_refused() -> None:
    policy = small_chat.chat_policy()
    for text, said in (
        ("<s_a_9>", "row 0: the tokenizer of the policy does not read <s_a_9> as one token: give"),
        ("<a_1><b_1>", "row 0 holds <a_1>, and the catalogue's semantic IDs are called <s_a_0>"),
    ):
        with pytest.raises(RecastError, match=said):
            task_of(one(text), policy).lengths(torch.tensor([0]))
    policy = replace(policy, tokenizer=small_chat.chat_tokenizer())
    with pytest.raises(RecastError, match="the policy does not read <s_a_0> as token 303, which"):
        task_of(one("x"), policy)


def test_settings_of_messages_are_refused_for_a_text() -> None:
    policy = small_chat.chat_policy(prompt=PromptConfig(suffix=" /think"))
    with pytest.raises(
        RecastError, match=r"^prompt.suffix is .*: row 0 is rendered already, leave"
    ):
        task_of(one("x"), policy).lengths(torch.tensor([0]))


def test_a_policy_keeps_how_it_renders(tmp_path: Path) -> None:
    prompt = PromptConfig(prefix="<think>\n</think>\n", max_tokens=99, history="titles")
    save_policy(small_chat.chat_policy(prompt=prompt), tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    assert (again.prompt.prefix, again.prompt.max_tokens) == (prompt.prefix, 99)
    row = one(messages(f"{SPELLED[0]}, next?"), is_chat=True)
    assert rendered(task_of(row, again), again).endswith(f"{ASKS}{prompt.prefix}{BEGIN}")
    record = tmp_path / "policy" / "recast.json"
    facts = json.loads(record.read_text())
    for wrong, said in (
        ({"template": "x"}, "prompt.template is 'x': write {history} once"),
        ({"text": "x"}, "unexpected keyword argument 'text'"),
        ({"max_tokens": 10**9}, "prompt.max_tokens is 1000000000: give 1048576 or less"),
        ("x", "argument after"),
    ):
        record.write_text(json.dumps(facts | {"prompt": wrong}))
        with pytest.raises(RecastError, match=f"recast.json is damaged .*{said}"):
            load_policy(tmp_path / "policy")
