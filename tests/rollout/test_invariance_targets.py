"""Rollouts do not depend on the targets: prompts without any, as of a live request, get the same.

All but those of `dynamic`, whose rule is to keep targets first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import tiny
import torch

from recast.policy.prompts import make_prompts
from recast.rollout import beam, dynamic, gumbel, sample, sample_lists
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder
from recast.types import Draw, LogprobSpace, RolloutGroups

GUIDED = Decoder(guide=lambda prompts, items: (items % 3).float(), alpha=0.5)
SAMPLERS: dict[str, Callable[..., RolloutGroups]] = {
    "beam": beam,
    "unconstrained": partial(beam, constrained=False),
    "guided": partial(beam_search, decoder=GUIDED),
    "sample": sample,
    "gumbel": gumbel,
    "lists": partial(sample_lists, list_length=2),
}
SPACES: tuple[LogprobSpace, ...] = ("full", "level", "trie")
NOTHING = torch.empty(2, 0, dtype=torch.long)


def roll_out(name: str, space: LogprobSpace, targets: torch.Tensor) -> RolloutGroups:
    catalog = tiny.tiny_catalog()
    prompts = make_prompts(
        catalog,
        history=torch.tensor([[0, 3, 5], [6, -1, -1]]),
        targets=targets,
        seen=torch.tensor([[0, 3], [6, -1]]),
        row_ids=torch.tensor([11, 7]),
    )
    sampler = SAMPLERS.get(name, dynamic)
    return sampler(tiny.tiny_policy("llama", catalog), prompts, 4, Draw(logprob_space=space))


@pytest.mark.parametrize(
    ("name", "space"), [(n, s) for n in SAMPLERS for s in SPACES if n != "gumbel" or s == "trie"]
)
def test_no_target_changes_no_rollout(name: str, space: LogprobSpace) -> None:
    without = roll_out(name, space, NOTHING)
    given = roll_out(name, space, torch.tensor([[4, 2], [1, 0]]))
    assert without.target_logprobs.shape == (2, 0, 3)
    for field in ("tokens", "items", "loss_mask"):
        assert getattr(without, field).equal(getattr(given, field)), field
    assert without.rollout_logprobs.allclose(given.rollout_logprobs, atol=1e-6)
    if given.weights is not None:
        assert without.weights is not None
        assert without.weights.allclose(given.weights)


def test_dynamic_needs_no_target() -> None:
    assert bool(roll_out("dynamic", "full", NOTHING).exists.all())
