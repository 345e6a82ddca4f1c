"""The table of traits says the truth: each is compared with what the part does."""

from __future__ import annotations

import pytest
import small_chat
import tiny
import torch

from recast.groups import select
from recast.losses import LOSSES
from recast.losses import TRAITS as OF_LOSSES
from recast.methods.parts import KINDS, Part, resources, supply, traits_of, with_parameters
from recast.methods.probe import probe_groups, probe_resources
from recast.methods.table import METHODS
from recast.rewards.hit import first_hit
from recast.rollout import SAMPLERS
from recast.rollout import TRAITS as OF_SAMPLERS
from recast.signals import SIGNALS
from recast.signals import TRAITS as OF_SIGNALS
from recast.types import Draw, Traits

GATES_THAT_OPEN = {"random_gate": {"rate": 0.5}, "adagrpo": {"tau": 0.7, "rho": 0.0}}
"""On the made-up groups; shut ones give nothing to compare."""


def test_every_entry_is_of_a_part_that_has_a_name() -> None:
    for traits, parts in ((OF_SAMPLERS, SAMPLERS), (OF_SIGNALS, SIGNALS), (OF_LOSSES, LOSSES)):
        assert traits.keys() <= parts.keys()
        assert Traits() not in traits.values()


def test_a_part_keeps_its_traits_when_parameters_are_bound() -> None:
    assert traits_of(METHODS["rere"].loss) == Traits(is_silent_at_zero=True)
    assert traits_of(METHODS["dpo"].signal).has_rewards
    assert traits_of(lambda groups: groups) == Traits()


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_reads_the_batch_where_it_says_so(name: str) -> None:
    """The first groups of a batch alone, against the same in the whole batch."""
    part = with_parameters("signal", SIGNALS[name], GATES_THAT_OPEN.get(name, {}))
    length = 1 + ("list_length" in resources(part))
    kinds = ("one hit", "all zero") * 5 + ("short", "no rollout")
    weighted = name == "gumbel_pg"
    groups = probe_groups(6, kinds=kinds, list_length=length, weighted=weighted)
    half = select(groups, torch.arange(4))

    def weights(of: object) -> torch.Tensor:
        given = probe_resources(groups, list_length=length)
        signal = supply(part, given)(of, first_hit(of))
        kept = torch.where(signal.keep[..., None], signal.advantages, 0.0)
        return torch.cat([kept[:4].flatten(), signal.nll_weight[:4]])

    assert torch.equal(weights(groups), weights(half)) != traits_of(part).reads_batch


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_has_weights_where_it_says_so(name: str) -> None:
    part: Part = supply(KINDS["sampler"][name], {"list_length": 2})
    policy = tiny.tiny_policy("qwen3", tiny.tiny_catalog())
    if traits_of(part).thinks:
        policy = small_chat.chat_policy()
        part = with_parameters("sampler", part, {"max_thought_tokens": 2})
    catalog = policy.catalog
    prompts = tiny.make_prompts(catalog, [[0, 1]], [[7]])
    space = "trie" if traits_of(part).is_over_children else "full"
    groups = part(policy, prompts, 3, Draw(logprob_space=space))
    assert (groups.thoughts is not None) == traits_of(part).thinks
    assert (groups.weights is not None) == traits_of(part).is_weighted
    assert groups.prompts is prompts
