"""Rows that tie semantic IDs to words, to the letter, and which of their tokens are learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_chat
import tiny
import torch
from small_chat import messages
from small_events import small_events
from small_rows import small_rows

from recast.config import PromptConfig
from recast.data.plain_text import PlainRow
from recast.policy import alignment
from recast.policy.alignment import history_rows, item_rows, plain_rows
from recast.policy.load import Policy
from recast.types import RecastError, Sequences

BEGIN, END = "<|sid_begin|>", "<|sid_end|>"
SPELLED = [f"{BEGIN}<s_a_{a}><s_b_{b}><s_c_{c}>{END}" for a, b, c in tiny.CODES.tolist()]
USER, ASKS = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return small_chat.chat_policy()


def read(rows: Sequences, policy: Policy) -> list[tuple[str, str]]:
    """What each row shows and what it learns."""
    found = []
    for row in range(len(rows)):
        one = rows.take(torch.tensor([row]))
        assert not one.loss_mask[0]
        learned = one.loss_mask.nonzero()[0, 0]
        assert bool(one.loss_mask[learned:].all())
        parts = one.tokens[:learned], one.tokens[learned:]
        found.append(tuple(policy.tokenizer.decode(part) for part in parts))
    return found


def test_both_ways_between_a_title_and_a_semantic_id(policy: Policy) -> None:
    titles, notes = item_rows(policy, "sid_to_title")
    assert notes == []
    assert read(titles, policy) == [
        (f"{USER}What is the item {sid} called?{ASKS}", f"Item {item}<|im_end|>")
        for item, sid in enumerate(SPELLED)
    ]
    sids, _ = item_rows(policy, "title_to_sid")
    assert read(sids, policy) == [
        (f"{USER}Which item is called Item {item}?{ASKS}{BEGIN}", f"{sid[len(BEGIN) :]}<|im_end|>")
        for item, sid in enumerate(SPELLED)
    ]
    asked = PromptConfig(suffix=" /no_think", prefix="<think>\n</think>\n")
    first = read(item_rows(replace(policy, prompt=asked), "sid_to_title")[0], policy)[0]
    assert first[0] == (
        f"{USER}What is the item {SPELLED[0]} called? /no_think{ASKS}<think>\n</think>\n"
    )


def test_without_a_chat_template_a_line_ends_the_question(policy: Policy) -> None:
    tokenizer = small_chat.chat_tokenizer(template=None)
    tokenizer.add_tokens(policy.catalog.names.of(policy.catalog.codebook_sizes))
    rows, _ = item_rows(replace(policy, tokenizer=tokenizer), "sid_to_title")
    said = (f"What is the item {SPELLED[0]} called?", "\nItem 0<|im_end|>")
    assert read(rows, policy)[0] == said


def test_which_items_have_a_row() -> None:
    codes = tiny.CODES.clone()
    codes[2] = -1
    texts = ["A", " ", "no semantic ID", "B" * 200, "C", "", "", ""]
    policy = small_chat.chat_policy(prompt=PromptConfig(history="sids", max_tokens=60))
    made = small_chat.build_catalog(
        codes,
        tiny.SIZES,
        names=small_chat.NAMES,
        texts=texts,
        first_token=303,
        pad_token=300,
        domains=["films", "books"],
        domain_of=[0, 0, 0, 0, 1, 1, 1, 1],
    )
    policy = replace(policy, catalog=made)
    rows, notes = item_rows(policy, "title_to_sid")
    asked = [prompt for prompt, _ in read(rows, policy)]
    assert [text.split("user\n")[1].split("?")[0] for text in asked] == [
        "Which item of films is called A",
        "Which item of books is called C",
    ]
    assert notes == ["title_to_sid: 1 of 3 items are left out, too long"]
    # As an answer a long title is no matter of the prompt, but of the context.
    assert len(item_rows(policy, "sid_to_title")[0]) == 3
    bare = replace(policy, catalog=replace(made, texts=[""] * 8))
    with pytest.raises(RecastError, match=r"^task_weights is 'title_to_sid': no item of the cata"):
        item_rows(bare, "title_to_sid")
    with pytest.raises(RecastError, match=r"^sid_to_title is text, and the policy has no token"):
        item_rows(replace(policy, tokenizer=None), "sid_to_title")


def test_histories_of_titles(policy: Policy) -> None:
    events = small_events([[0, 1, 2], [3, 4]], [["train"] * 3, ["train", "test"]], num_items=8)
    for prompt in (policy.prompt, PromptConfig()):
        plain = replace(policy, prompt=prompt)  # with windows of events beside them, too
        rows, notes = history_rows(plain, events, ["train"], 9, seed=0)
        found = sorted(read(rows, policy))
        assert [learned for _, learned in found] == [
            f"{SPELLED[1][len(BEGIN) :]}<|im_end|>",
            f"{SPELLED[2][len(BEGIN) :]}<|im_end|>",
        ]
        assert "oldest first: Item 0, Item 1\nWhich" in found[1][0]
        assert notes == []
    assert len(history_rows(policy, events, ["train"], 1, seed=0)[0]) == 1
    text = small_rows([[1]], prompts=["a text"], splits=["train"], num_items=8)
    with pytest.raises(RecastError, match="'titles_to_sid': no training row is a history of items"):
        history_rows(policy, text, ["train"], 9, seed=0)
    titles = replace(policy, prompt=PromptConfig(history="titles"))
    with pytest.raises(RecastError, match=r"'titles_to_sid': prompt.history is titles, which the"):
        history_rows(titles, events, ["train"], 9, seed=0)


def test_plain_rows_are_read_as_they_are(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = [
        PlainRow(messages("Hello?", system="Be kind."), "Hi."),
        PlainRow(messages("One?", "1", "Two?"), "two"),
    ]
    policy = replace(policy, prompt=PromptConfig(system="Recommend.", suffix="!", prefix="So: "))
    rows, _ = plain_rows(policy, chats, "f")
    assert read(rows, policy) == [
        (f"<|im_start|>system\nBe kind.<|im_end|>\n{USER}Hello?{ASKS}", "Hi.<|im_end|>"),
        (
            f"{USER}One?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n{USER}Two?{ASKS}",
            "two<|im_end|>",
        ),
    ]
    texts = [PlainRow(None, text) for text in ("abcdefghij", "z", "xyz")]
    assert read(plain_rows(policy, texts[:1] + texts[2:], "f")[0], policy) == [
        ("a", "bcdefghij"),
        ("x", "yz"),
    ]
    monkeypatch.setattr(alignment, "LONGEST_PLAIN", 8)
    rows, notes = plain_rows(policy, texts, "f")
    assert read(rows, policy) == [("a", "bcdefgh"), ("x", "yz")]
    assert notes == ["f: 1 of 3 rows are cut at 8 tokens", "f: 1 of 3 rows hold nothing to learn"]
    with pytest.raises(RecastError, match=r"^plain_text is 'f': none has an answer within 8 token"):
        plain_rows(policy, chats, "f")


def test_chats_that_the_template_does_not_take(policy: Policy) -> None:
    tokenizer = small_chat.chat_tokenizer(template=None)
    tokenizer.add_tokens(policy.catalog.names.of(policy.catalog.codebook_sizes))
    bare = replace(policy, tokenizer=tokenizer)
    with pytest.raises(RecastError, match=r"^f: row 0 holds messages, and the tokenizer of"):
        plain_rows(bare, [PlainRow(messages("Hi?"), "Hi.")], "f")
