from __future__ import annotations

import torch
from small_rows import ragged, small_rows


def test_lists_of_rows_are_padded_and_cut_to_the_latest() -> None:
    lists = ragged([[5, 7, 9], [], [5]])
    assert lists.lengths.tolist() == [3, 0, 1]
    assert lists.take(torch.tensor([2, 0, 2])).tolist() == [[5, -1, -1], [5, 7, 9], [5, -1, -1]]
    assert lists.take(torch.tensor([0, 2]), last=2).tolist() == [[7, 9], [5, -1]]
    assert lists.take(torch.tensor([1])).shape == (1, 0)
    assert lists.take(torch.tensor([], dtype=torch.long)).shape == (0, 0)


def test_rows_of_a_split_and_of_a_task_are_in_the_order_of_the_file() -> None:
    rows = small_rows([[1]] * 4, splits=["test", "train", "test", "test"], tasks=[1, 1, 0, 1])
    assert rows.rows("test").tolist() == [0, 2, 3]
    assert rows.rows("test", task=1).tolist() == [0, 3]
    assert rows.rows("rl").tolist() == []
