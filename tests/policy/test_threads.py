"""The number of torch threads: as asked, or the one that is faster here and now."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from recast.policy.threads import choose_threads


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever this machine has; the number of threads is put back."""
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    yield
    torch.set_num_threads(before)


def sleeper(calls: list[int], **seconds: float) -> Callable[[], None]:
    """Work that takes a set time, by the number of threads."""

    def work() -> None:
        calls.append(torch.get_num_threads())
        time.sleep(seconds["one" if calls[-1] == 1 else "four"])

    return work


def test_what_is_asked_for_is_not_measured() -> None:
    calls: list[int] = []
    assert choose_threads(sleeper(calls, one=0, four=0), 3) == 3
    assert torch.get_num_threads() == 3
    assert calls == []


@pytest.mark.parametrize(
    ("one", "four", "chosen"),
    [(0.04, 0.01, 4), (0.03, 0.06, 1), (0.04, 0.034, 1)],
    ids=["faster", "slower", "not by a third"],
)
def test_the_faster_count_is_chosen(one: float, four: float, chosen: int) -> None:
    calls: list[int] = []
    assert choose_threads(sleeper(calls, one=one, four=four), None) == chosen
    assert torch.get_num_threads() == chosen
    assert calls == [1] * 4 + [4] * 4


def test_a_hopeless_count_is_tried_once() -> None:
    calls: list[int] = []
    assert choose_threads(sleeper(calls, one=0.001, four=0.2), None) == 1
    assert torch.get_num_threads() == 1
    assert calls == [1] * 4 + [4]


def test_one_core_leaves_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    calls: list[int] = []
    assert choose_threads(sleeper(calls, one=0, four=0), None) == 1
    assert torch.get_num_threads() == 1
    assert calls == []


def test_a_single_slow_call_does_not_decide() -> None:
    """The median of three: one call held up by others counts for nothing."""
    calls: list[int] = []

    def work() -> None:
        calls.append(torch.get_num_threads())
        held_up = len(calls) == 6
        time.sleep(0.15 if held_up else 0.04 if calls[-1] == 1 else 0.01)

    assert choose_threads(work, None) == 4


def test_work_that_fails_is_not_hidden() -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        choose_threads(work, None)
