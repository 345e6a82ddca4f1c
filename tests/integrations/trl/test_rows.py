"""Rows of a batch packed by prompt, by hand and back again."""

from __future__ import annotations

import torch

from recast.integrations.trl.rows import NO_LABEL, pack_rows


def test_the_example_of_the_docstring() -> None:
    tokens = torch.tensor([[0, 7, 5, 6], [8, 9, 5, 0], [0, 7, 4, 0]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0]])
    rows = pack_rows(tokens, mask, 2)
    assert rows.prompts.tolist() == [[7, 0], [8, 9]]
    assert rows.lengths.tolist() == [1, 2]
    assert rows.owners.tolist() == [0, 1, 0]
    assert rows.slots.tolist() == [0, 0, 1]
    assert rows.labels.tolist() == [
        [[5, 6], [4, NO_LABEL]],
        [[5, NO_LABEL], [NO_LABEL, NO_LABEL]],
    ]


def test_a_prompt_that_begins_with_the_padding_token_is_another_prompt() -> None:
    tokens = torch.tensor([[0, 7, 5], [0, 7, 5]])
    rows = pack_rows(tokens, torch.tensor([[0, 1, 1], [1, 1, 1]]), 1)
    assert rows.lengths.tolist() == [1, 2]
    assert rows.owners.tolist() == [0, 1]
