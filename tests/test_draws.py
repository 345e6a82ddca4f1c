"""Counter-based random numbers, and the selection of rows."""

from __future__ import annotations

import naive
import pytest
import tiny
import torch

from recast.draws import uniforms
from recast.groups import is_first, select

WORD = 2**64


def _mix(x: int) -> int:
    """SplitMix64 in unbounded integers, as its authors print it."""
    x = (x + 0x9E3779B97F4A7C15) % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def test_the_mixing_function_is_splitmix64() -> None:
    """First outputs of SplitMix64 from seed 1234567, as published with Vigna's generators."""
    assert _mix(1234567) == 6457827717110365317
    # zlib.crc32(b"a") = 0xE8B7BE43
    state = _mix(_mix(_mix(5) + 2) + 0xE8B7BE43)
    wanted = [(_mix(_mix(state + 9) + c) >> 11) / 2**53 for c in range(3)]
    assert uniforms(5, 2, torch.tensor([9]), "a", 3).tolist() == [wanted]


def test_draws_are_uniform() -> None:
    draws = uniforms(0, 0, torch.arange(2000), "x", 10)
    assert draws.dtype == torch.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.bincount((draws.flatten() * 100).long(), minlength=100)
    statistic = float(((counts - 200.0) ** 2 / 200).sum())
    assert statistic < naive.chi_square_limit(99)


@pytest.mark.parametrize("axis", ["column", "row", "step", "seed", "name"])
def test_draws_that_differ_in_one_key_are_independent(axis: str) -> None:
    rows = torch.arange(4000)
    first = uniforms(0, 0, rows, "x", 2)[:, 0]
    other = {
        "column": uniforms(0, 0, rows, "x", 2)[:, 1],
        "row": uniforms(0, 0, rows + 1, "x", 1)[:, 0],
        "step": uniforms(0, 1, rows, "x", 1)[:, 0],
        "seed": uniforms(1, 0, rows, "x", 1)[:, 0],
        "name": uniforms(0, 0, rows, "y", 1)[:, 0],
    }[axis]
    cells = torch.bincount((first * 5).long() * 5 + (other * 5).long(), minlength=25)
    assert float(((cells - 160.0) ** 2 / 160).sum()) < naive.chi_square_limit(24)
    assert not torch.equal(first, other)


def test_draws_depend_on_nothing_but_their_keys() -> None:
    rows = torch.tensor([7, 3, 11])
    whole = uniforms(2, 5, rows, "x", 4)
    assert torch.equal(uniforms(2, 5, rows.flip(0), "x", 4), whole.flip(0))
    assert torch.equal(uniforms(2, 5, rows[1:2], "x", 2), whole[1:2, :2])
    assert uniforms(2, 5, rows[:0], "x", 4).shape == (0, 4)


def test_select_keeps_what_belongs_together() -> None:
    groups = tiny.make_groups(
        [[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 9], [8, 8]]],
        [[[1, 2]], [[3, 3]], [[4, 4]]],
        seed=6,
    )
    chosen = select(groups, torch.tensor([2, 0]))
    assert chosen.tokens.tolist() == [[[9, 9], [8, 8]], [[1, 2], [3, 4]]]
    assert chosen.items.tolist() == [[4, 5], [0, 1]]
    assert chosen.prompts.row_ids.tolist() == [2, 0]
    assert chosen.prompts.targets.tolist() == [[[4, 4]], [[1, 2]]]
    assert (chosen.seed, len(chosen.prompts)) == (6, 2)
    assert torch.equal(chosen.uniforms("x", 3), groups.uniforms("x", 3)[[2, 0]])
    empty = select(groups, torch.tensor([], dtype=torch.long))
    assert empty.tokens.shape == (0, 2, 2)


def test_predictions_name_only_rollouts_that_exist() -> None:
    groups = tiny.make_groups([[[1, 2], [3, 4]]], [[[1, 2]]], exists=[[True, False]])
    assert groups.predictions.tolist() == [[[[1, 2]], [[-1, -1]]]]
    assert groups.exists.tolist() == [[True, False]]


def test_is_first_marks_the_first_of_equal_rows() -> None:
    rows = torch.tensor([[[1, 2], [2, 1], [1, 2]], [[3, 3], [3, 3], [3, 3]]])
    assert is_first(rows).tolist() == [[True, True, False], [True, False, False]]
