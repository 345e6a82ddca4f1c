"""Whether a device computes what the CPU does: gradients, rollouts and a step of tiny models."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from benchmarks.device import moved_to, with_a_hit
from benchmarks.harness import actor_of, random_catalog, random_prompts, tiny_qwen3
from benchmarks.update import gradient
from recast.items.catalog import Catalog
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.rewards.hit import set_ratio
from recast.rollout.beam import beam_search
from recast.rollout.sample import sample
from recast.signals.grpo import grpo
from recast.train.actor import update
from recast.types import Prompts


def check_device(device: torch.device) -> None:
    """Raise unless gradients, rollouts and a step on the device are the CPU's, in float32."""
    torch.set_float32_matmul_precision("highest")
    catalog = random_catalog(60, 8)
    prompts = random_prompts(catalog, 3, 40)
    prompts = replace(prompts, lengths=torch.tensor([40, 19, 7]))
    for model in (tiny_qwen3(catalog.vocab_size, attention=ATTENTION), _tiny_mistral(catalog)):
        here = Policy(model=model, catalog=catalog, window=86)
        there = replace(here, model=copy.deepcopy(model)).to(str(device))
        rough = replace(there, model=copy.deepcopy(there.model).to(torch.bfloat16))
        groups = beam_search(here, prompts, 8)
        drawn = sample(here, prompts, 8)
        moved = moved_to(prompts, device)
        require_equal("beams", groups.items, beam_search(there, moved, 8).items)
        require_equal("draws", drawn.items, sample(there, moved, 8).items)
        name = type(model).__name__
        wanted = _gradient(here, prompts, groups.tokens)
        for other, bound in ((there, 1e-5), (rough, 0.1)):
            found = _gradient(other, moved, groups.tokens)
            require_near(f"{name}: gradient in {other.model.dtype}", found, wanted, bound)
        require_near(f"{name}: weights", _step(there, moved), _step(here, prompts), 1e-4)


def _tiny_mistral(catalog: Catalog) -> PreTrainedModel:
    """A model whose layers see 8 positions back."""
    config = MistralConfig(
        vocab_size=catalog.vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.1,
        attn_implementation=ATTENTION,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def _gradient(policy: Policy, prompts: Prompts, branches: Int[Tensor, "B G L"]) -> Tensor:
    policy.model.zero_grad(set_to_none=True)
    branch_logprobs(policy, prompts, branches.to(policy.catalog.device), "full").mean().backward()
    return gradient(policy).float().cpu()


def _step(policy: Policy, prompts: Prompts) -> Tensor:
    """How far one step moves the weights."""
    before = [p.detach().clone() for p in policy.model.parameters()]
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    prompts, groups = with_a_hit(policy, prompts, 8)
    update(
        actor_of(policy, policy, optimizer, micro_batch_tokens=64), grpo(groups, set_ratio(groups))
    )
    moves = (p.detach() - b for p, b in zip(policy.model.parameters(), before, strict=True))
    return torch.cat([move.flatten() for move in moves]).cpu()


def require_equal(name: str, wanted: Tensor, found: Tensor) -> None:
    if not torch.equal(wanted, found.cpu()):
        raise AssertionError(f"{name} on the device are not the CPU's: {found} for {wanted}")


def require_near(name: str, found: Tensor, wanted: Tensor, bound: float) -> None:
    error = float((found - wanted).norm() / wanted.norm())
    print(f"{name}: the device is {error:.1e} from the CPU in float32 (at most {bound:g})")
    if not error <= bound:
        raise AssertionError(f"{name} on the device is {error:.1e} from the CPU's")
