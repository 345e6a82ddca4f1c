"""The update of every method that thoughts serve against plain transformers, one copy each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import naive
import pytest
import small_actor
import small_chat
import tiny
import torch
from small_thoughts import opened, prompt_of, prompts_of, thinking, written
from torch import Tensor
from transformers import PreTrainedModel

from recast.config import StepConfig
from recast.groups import select
from recast.losses import KLS
from recast.methods.assembly import resolve
from recast.methods.parts import needs, resources, supply
from recast.methods.table import METHODS, Method
from recast.rollout import SAMPLERS
from recast.train.actor import update
from recast.types import Draw, RecastError, RolloutGroups, Signal

SERVED = [name for name, method in METHODS.items() if "think" in method.samplers]
SAME = ("dapo", "minionerec")
"""Learn by the parts of openonerec_rl, without its dual clip, and of rere."""
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "think", {"thoughts": 3}) for name in SERVED if name not in SAME),
    ("recast", "think", {"thoughts": 1}),
    ("openonerec_rl", "think", {"thoughts": 2, "repeats": True, "strict_think": True}),
    ("recast", "think", {"thoughts": 2, "closes": True, "loss_over": "written"}),
    ("openonerec_rl", "openonerec", {}),
]


@pytest.mark.parametrize(("name", "sampler", "settings"), CASES)
def test_the_gradient_of_a_method_behind_thoughts(
    name: str, sampler: str, settings: dict[str, Any]
) -> None:
    """Of all rollouts of all thoughts of a row as one group: thoughts that are closed, cut by the
    limit or empty, behind a prompt that ends in <think> with strict_think, and beams too many."""
    policy, other, method = thinking(), small_chat.chat_policy("llama"), METHODS[name]
    prompts = select(prompts_of(policy), torch.tensor([0, 1]))
    if "strict_think" in settings:
        prompts = opened(policy, prompts)
    size = 18 if settings.get("repeats") else 12
    groups = SAMPLERS[sampler](
        policy, prompts, size, Draw(seed=3, step=2), max_thought_tokens=4, **settings
    )
    assert groups.thoughts
    if "thoughts" in settings:
        assert len(set(groups.thoughts.num_written.flatten().tolist())) > 1
    rewards = method.reward(groups)
    assert rewards.shape == (2, size)
    signal = supply(method.signal, {"natural_frac": 0.1})(groups, rewards)
    assert bool((signal.advantages[..., 0] * signal.keep).any()) or sampler == "openonerec"
    plain, reference = tiny.twin(policy.model), tiny.twin(other.model)
    wanted = naive.gradients(plain, naive_loss(plain, reference, signal, method))
    actor = small_actor.make_actor(
        replace(policy, model=tiny.twin(policy.model, "recast_packed")),
        reference=other,
        loss=method.loss,
        kl_coef=0.1,
        loss_agg=method.loss_agg,
    )
    update(actor, signal)
    found = naive.flat_gradients(actor.policy.model)
    assert float(wanted.norm()) > 1e-3
    assert naive.relative_error(found, wanted) <= 1e-5


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SERVED])
def test_a_method_that_thoughts_do_not_serve(name: str) -> None:
    """Is refused before anything is loaded."""
    ranker = "item_knn" if "ranker" in resources(METHODS[name].signal) else None
    config = StepConfig(data="data", policy="policy", method=name, sampler="think", ranker=ranker)
    with pytest.raises(RecastError, match=r"sampler is 'think'.* method") as error:
        resolve(config)
    assert "\n" not in str(error.value)


def naive_loss(
    plain: PreTrainedModel, reference: PreTrainedModel, signal: Signal, method: Method
) -> Tensor:
    """Mean of the loss over all that it is a loss of, and .1 times that of the KL over tokens, or
    of the rollouts' means."""
    values, kls, counts = [], [], []
    for row, place in (signal.keep & signal.groups.exists).nonzero().tolist():
        sequence, count, mask = writes(signal.groups, row, place)
        index = torch.tensor(sequence[-count:])[:, None]
        own, theirs = (
            naive.next_logits(model, sequence[:-1], count).log_softmax(-1).gather(1, index).T
            for model in (plain, reference)
        )
        inputs = {"logprobs": own[None], "old_logprobs": own[None].detach()}
        inputs |= {"advantages": signal.advantages[row, place].expand(1, 1, count)}
        inputs |= {"loss_mask": mask[None, None]}
        asked = {key: value for key, value in inputs.items() if needs(method.loss, key)}
        value = method.loss(**asked)
        values.append((value * mask).sum() if value.ndim == 3 else value.sum())
        kls.append((KLS["k3"](own[0], theirs[0].detach()) * mask).sum())
        counts.append(int(mask.sum()))
    loss = sum(values) / (sum(counts) if value.ndim == 3 else len(values))
    if method.loss_agg == "token-mean":
        return loss + 0.1 * sum(kls) / sum(counts)
    return loss + 0.1 * sum(kl / n for kl, n in zip(kls, counts, strict=True)) / len(kls)


def writes(groups: RolloutGroups, row: int, place: int) -> tuple[list[int], int, Tensor]:
    """A rollout's own copy of everything, how much of it is written, and what of that counts."""
    assert groups.thoughts
    thought = int(groups.thoughts.of[row, place])
    tokens, item = written(groups, row, thought), groups.tokens[row, place].tolist()
    before = groups.thoughts.loss_mask[row, thought, : len(tokens)]
    mask = torch.cat([before, groups.loss_mask[row, place]])
    return prompt_of(groups, row) + tokens + item, len(tokens) + len(item), mask
