"""What an epoch of supervised training reads, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import small_chat
import torch
from small_chat import messages
from small_rows import small_rows

from recast.config import PromptConfig
from recast.data.plain_text import PlainRow, PlainText
from recast.policy.load import Policy
from recast.policy.tasks import Task, make_task
from recast.train.epochs import Epochs, make_epochs
from recast.types import RecastError, Sequences

ROWS = small_rows(
    [[1]] * 12,
    prompts=[messages("Buy what?")] * 8 + [None] * 4,
    history=[[]] * 8 + [[0]] * 4,
    splits=["train"] * 12,
    tasks=[0] * 8 + [1] * 4,
    task_names=("buy", "watch"),
    task_domains=(0, 0),
    is_chat=True,
    num_items=8,
)
PLAIN = PlainText("f", [PlainRow(None, "held out")], [PlainRow(None, f"text {n}") for n in "ab"])
KINDS = {
    "buy": "Buy what?",
    "watch": "oldest first: <|sid",
    "sid_to_title": "What is the item",
    "title_to_sid": "Which item is called",
    "titles_to_sid": "oldest first: Item",
    "plain_text": "text ",
}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return small_chat.chat_policy(prompt=PromptConfig(history="sids"))


@pytest.fixture(scope="module")
def task(policy: Policy) -> Task:
    return make_task(ROWS, policy)


def made(policy: Policy, task: Task, weights: dict[str, float], **settings: Any) -> Epochs:
    given = {"plain": PLAIN, "splits": ["train"], "loss_on": "answer", "epochs": 2, "seed": 0}
    return make_epochs(policy, task, ROWS, weights=weights, **(given | settings))


def texts(policy: Policy, sequences: Sequences) -> list[str]:
    parts = sequences.tokens.split(sequences.lengths.tolist())
    return [str(policy.tokenizer.decode(part)) for part in parts]


def kinds(policy: Policy, sequences: Sequences) -> list[str]:
    """Of every row in its place."""
    return [
        next(kind for kind, words in KINDS.items() if words in text)
        for text in texts(policy, sequences)
    ]


def counts(policy: Policy, epochs: Epochs, epoch: int = 0) -> dict[str, int]:
    found = kinds(policy, epochs.sequences(epoch))
    return {name: found.count(name) for name in KINDS if name in found}


def test_weights_of_further_tasks_alone_leave_own_rows(policy: Policy, task: Task) -> None:
    weights = {"sid_to_title": 0.5, "title_to_sid": 0.25, "titles_to_sid": 0.5, "plain_text": 0.25}
    epochs = made(policy, task, weights)
    further = {"sid_to_title": 6, "title_to_sid": 3, "titles_to_sid": 6, "plain_text": 3}
    assert counts(policy, epochs) == {"buy": 8, "watch": 4} | further
    assert epochs.notes == [
        "an epoch reads further rows: 6 sid_to_title (of 8), 3 title_to_sid (of 8), "
        "6 titles_to_sid (of 4), 3 plain_text (of 2)"
    ]
    # In passes: 12 titles of two epochs are each of the 8 once, four of them again.
    titles = [
        text
        for epoch in range(2)
        for text in texts(policy, epochs.sequences(epoch))
        if KINDS["sid_to_title"] in text
    ]
    assert sorted(titles.count(text) for text in set(titles)) == [1] * 4 + [2] * 4
    order = kinds(policy, epochs.sequences(0))
    assert set(order[:12]) - {"buy", "watch"}  # they are mixed
    assert order != kinds(policy, epochs.sequences(1))
    again = made(policy, task, weights).sequences(1)
    assert torch.equal(epochs.sequences(1).tokens, again.tokens)
    assert not any("held out" in text for text in texts(policy, epochs.sequences(0)))


def test_weights_of_own_tasks_are_what_others_are_beside(policy: Policy, task: Task) -> None:
    # 12 rows for weights of 4 in all: three of weight 1.
    epochs = made(policy, task, {"buy": 1, "watch": 3, "title_to_sid": 1})
    assert counts(policy, epochs) == {"buy": 3, "watch": 9, "title_to_sid": 3}
    nothing = {"buy": 0, "watch": 0, "title_to_sid": 1, "sid_to_title": 3}
    assert counts(policy, made(policy, task, nothing)) == {"sid_to_title": 9, "title_to_sid": 3}
    assert counts(policy, made(policy, task, {"sid_to_title": 0})) == {"buy": 8, "watch": 4}


def test_without_further_tasks_all_is_the_data(policy: Policy, task: Task) -> None:
    epochs, rows = made(policy, task, {}), torch.arange(12)
    for epoch in range(2):
        found, own = epochs.sequences(epoch), task.sequences(rows, epoch)
        assert torch.equal(found.tokens, own.tokens)
        assert torch.equal(found.loss_mask, own.loss_mask)


def test_a_loss_on_all_tokens_but_the_first(policy: Policy, task: Task) -> None:
    weights = {"title_to_sid": 0.5}
    answer = made(policy, task, weights).sequences(0)
    whole = made(policy, task, weights, loss_on="all").sequences(0)
    assert torch.equal(answer.tokens, whole.tokens)
    for row in range(len(whole)):
        one = whole.take(torch.tensor([row]))
        assert one.loss_mask.tolist() == [False] + [True] * (int(one.lengths) - 1)
    assert int(answer.loss_mask.sum()) == 18 * 5  # three codes, what ends an item and a turn


def test_of_many_plain_rows_those_that_a_run_reads(policy: Policy, task: Task) -> None:
    many = PLAIN._replace(rows=[PlainRow(None, f"text {number}") for number in range(50)])
    epochs = made(policy, task, {"plain_text": 0.25}, plain=many)
    assert len(epochs.parts["plain_text"]) == 2 * 3
    found = [x for n in range(2) for x in texts(policy, epochs.sequences(n)) if "text " in x]
    assert len(set(found)) == 6


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"buys": 1}, r"^task_weights is 'buys': the data has no such task, only buy, watch; furt"),
        ({"buy": 1, "plain_text": 1}, r"^task_weights is {'buy': 1}: give watch one too, 0 to"),
        ({"plain_text": 0.01}, r"^task_weights.plain_text is 0.01: that is none beside 12 rows"),
        ({"plain_text": 2e6}, r"task_weights.plain_text is 2000000.0: that is 24,000,000 rows an"),
    ],
)
def test_weights_that_cannot_be(
    policy: Policy, task: Task, weights: dict[str, float], said: str
) -> None:
    with pytest.raises(RecastError, match=said):
        made(policy, task, weights)


def test_plain_rows_without_a_file_or_beside_those_held_out(policy: Policy, task: Task) -> None:
    with pytest.raises(RecastError, match=r"^task_weights.plain_text is 1: give their file, --pla"):
        made(policy, task, {"plain_text": 1}, plain=None)
    with pytest.raises(RecastError, match=r"^task_weights.plain_text is 1: f has no row beside th"):
        made(policy, task, {"plain_text": 1}, plain=PLAIN._replace(rows=[]))
