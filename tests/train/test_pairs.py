"""Supervised training of an encoder-decoder: prompts and answers apart, against one row each."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import tiny
import torch
from small_events import small_events
from torch import Tensor

from recast.policy.tasks import HistoryTask
from recast.train.sequences import learn
from recast.train.sft_rows import NO_LIMIT
from recast.types import LogprobSpace, Sequences

HISTORIES, TARGETS = [[0], [3, 5, 1, 2, 2], [7, 6], [4, 4, 4]], [5, 0, 2, 6]
"""Prompts of 4, 16, 7 and 10 tokens and an item each."""


def sequences() -> Sequences:
    catalog = tiny.tiny_catalog()
    prompts = tiny.make_prompts(catalog, HISTORIES, [[item] for item in TARGETS])
    rows = [
        torch.cat([tokens[:length], target[0]])
        for tokens, length, target in zip(
            prompts.tokens, prompts.lengths, prompts.targets, strict=True
        )
    ]
    counts = [torch.arange(len(row)) >= len(row) - 3 for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    return Sequences(tokens=torch.cat(rows), loss_mask=torch.cat(counts), lengths=lengths)


def learned(space: LogprobSpace, dropout: float = 0.0, **sent: int) -> tuple[float, Tensor, int]:
    policy = replace(tiny.tiny_policy("t5", tiny.tiny_catalog()), logprob_space=space)
    torch.manual_seed(3)
    batch = sequences().batch(torch.arange(4))
    done = learn(policy, *batch, dropout=dropout, precision="float32", **sent)
    assert done.real_tokens == 4 + 16 + 7 + 10 + 4 * 3
    return float(done.loss), naive.flat_gradients(policy.model), done.sent_tokens


@pytest.mark.parametrize("space", ["full", "level", "trie"])
def test_the_loss_is_that_of_one_row_for_every_item(space: LogprobSpace) -> None:
    catalog = tiny.tiny_catalog()
    model = tiny.twin(tiny.tiny_policy("t5", catalog).model)
    total = torch.zeros(())
    for history, item in zip(HISTORIES, TARGETS, strict=True):
        prompt = [1, *catalog.tokens_of(torch.tensor(history)).flatten().tolist()]
        tokens = naive.written(catalog, item)
        logits = naive.next_logits(model, prompt + tokens[:-1], 3)
        for level, token in enumerate(tokens):
            over = list(range(logits.shape[1]))
            if space == "level":
                over = list(range(*catalog.level_tokens(level)))
            elif space == "trie":
                over = naive.allowed_children(catalog, [], tokens[:level])
            total = total - logits[level, token] + logits[level, over].logsumexp(0)
    wanted = naive.gradients(model, total / 12)
    loss, gradient, _ = learned(space, pass_tokens=4096)
    assert loss == pytest.approx(float(total.detach()) / 12, rel=1e-5)
    assert naive.relative_error(gradient, wanted) <= 1e-5


def test_neither_parts_nor_padding_change_the_gradient() -> None:
    """In one pass; each length on its own; at most 20 tokens a pass. Dropout draws the same."""
    whole, parts, few = (
        learned("full", 0.3, pass_tokens=tokens, micro_batch_tokens=most)
        for tokens, most in ((4096, NO_LIMIT), (1, NO_LIMIT), (4096, 20))
    )
    assert whole[2] == 4 * (16 + 3)
    assert parts[2] == 4 + 16 + 7 + 10 + 4 * 3
    assert whole[2] > few[2] > parts[2]
    for other in (parts, few):
        assert other[0] == pytest.approx(whole[0], rel=1e-5)
        assert naive.relative_error(other[1], whole[1]) <= 1e-5
    assert naive.relative_error(whole[1], learned("full", pass_tokens=4096)[1]) > 0.1


def test_every_row_is_read_with_its_own_history() -> None:
    """Two users with 4 and 3 events; the third has one event, and no row."""
    users = [[5, 2, 2, 7], [0, 1, 3], [6]]
    events = small_events(users, [["train"] * len(items) for items in users])
    task = HistoryTask(
        interactions=events, catalog=tiny.tiny_catalog(), window=3, has_windows=False
    )
    wanted = [[5, 2], [5, 2, 2], [2, 2, 7], [0, 1], [0, 1, 3]]
    tokens = [task.catalog.tokens[torch.tensor(row)].flatten().tolist() for row in wanted]
    found = []
    for epoch in (0, 1):
        read = task.sequences(task.rows("train"), epoch)
        rows, masks = (x.split(read.lengths.tolist()) for x in (read.tokens, read.loss_mask))
        for mask in masks:
            assert mask.nonzero()[:, 0].tolist() == [*range(len(mask) - 3, len(mask))]
        found.append([row.tolist() for row in rows])
        assert sorted(found[-1]) == sorted([1, *row] for row in tokens)
    assert found[0] != found[1]
