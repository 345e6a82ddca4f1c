"""Seconds, tokens and memory of phases, counted by hand."""

from __future__ import annotations

import pytest
import tiny
import torch

from recast.policy.logprobs import branch_logprobs
from recast.rollout.beam import beam
from recast.run.clock import Clock, count_tokens
from recast.run.peak import begin_phase
from recast.types import Draw


@pytest.mark.parametrize(("name", "starts"), [("qwen3", 0), ("t5", 2)])
def test_tokens_of_a_phase_are_those_that_are_sent(name: str, starts: int) -> None:
    """Prompts of 4 and 7 tokens, items of 3, of which the last is not sent.

    The search sends both prompts, the two tokens of both targets and two beams at two levels; the
    pass sends both prompts, 0 0 once for the items 0 and 1, and all four of the items 3 and 5. A T5
    has a start token besides for each prompt.
    """
    policy, clock = tiny.tiny_policy(name, tiny.tiny_catalog()), Clock()
    prompts = tiny.make_prompts(policy.catalog, [[0], [1, 2]], [[3], [4]])
    with clock.measure("rollout"):
        beam(policy, prompts, 2, Draw(seed=0))
    branches = policy.catalog.tokens_of(torch.tensor([[0, 1], [3, 5]]))
    for _ in range(2):
        with clock.measure("update"):
            branch_logprobs(policy, prompts, branches, "full")
    measured = clock.read()
    assert measured["tokens/rollout"] == 11 + 2 * 2 + 2 * 2 * 2 + starts
    assert measured["tokens/update"] == 2 * (11 + 2 + 4 + starts)
    assert set(clock.read()) == {"memory/peak_gb"}


def test_a_phase_that_fails_counts_no_more() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="wrong"), clock.measure("rollout"):
        raise ValueError("wrong")
    count_tokens(5)
    with clock.measure("update"), clock.measure("signal"):
        count_tokens(3)
    measured = clock.read()
    assert {name for name in measured if name[:5] == "time/"} == {"time/update_s", "time/signal_s"}
    assert measured["tokens/signal"] == 3
    assert "tokens/update" not in measured  # none went through a model


@pytest.mark.skipif(not begin_phase(torch.device("cpu")), reason="the system keeps one peak")
def test_memory_of_a_phase_is_what_was_held_in_it() -> None:
    """200 MB, given back, then 50."""
    clock = Clock()
    for phase, size in (("rollout", 200), ("update", 50)):
        with clock.measure(phase):
            torch.ones(size * 250_000)
    measured = clock.read()
    assert measured["memory/rollout_gb"] - measured["memory/update_gb"] == pytest.approx(
        0.15, abs=0.02
    )
    assert measured["memory/peak_gb"] >= measured["memory/rollout_gb"]
