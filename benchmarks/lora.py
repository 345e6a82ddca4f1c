"""Adapters of rank 8 beside the training of all weights: memory and time of a step.

Both sides make the same step of the same method: rollout, reward, signal, reference pass, update.
Memory is what stays (weights, the reference's copy, gradients, AdamW's moments) plus the peak of a
step above it.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from functools import partial

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.harness import (
    Row,
    main,
    paired,
    peak_bytes,
    random_catalog,
    random_prompts,
    tiny_qwen3,
)
from recast.config import LoRAConfig
from recast.methods.parts import supply
from recast.methods.table import METHODS
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy
from recast.policy.lora import add_adapters, has_adapters
from recast.policy.prompts import make_prompts
from recast.rollout import SAMPLERS
from recast.rollout.add_gt import add_gt
from recast.train.actor import Actor, frozen_reference, trained_parameters, update

RUNS = ("recast", "openonerec_rl", "rere")
RANK = 8


def tiny_llama(vocab_size: int, hidden: int, layers: int) -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2**14,
        initializer_range=0.1,
        bos_token_id=1,
        pad_token_id=0,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    return model.eval()


class Step:
    """A step of a method, on all weights or on adapters."""

    def __init__(self, policy: Policy, method: str, num_prompts: int, width: int, length: int):
        self.method, self.width = METHODS[method], width
        self.sampler = SAMPLERS[self.method.samplers[0]]
        prompts = random_prompts(policy.catalog, num_prompts, length)
        hits = self.sampler(policy, prompts, width).items[:, width // 2, None]
        self.prompts = make_prompts(policy.catalog, history=prompts.history, targets=hits)
        reference = policy
        if not has_adapters(policy.model):
            model = copy.deepcopy(policy.model).requires_grad_(False)
            reference = replace(policy, model=model)
        self.actor = Actor(
            policy=policy,
            reference=frozen_reference(reference, "full"),
            optimizer=torch.optim.AdamW(trained_parameters(policy), lr=0.0, weight_decay=0.0),
            loss=self.method.loss,
            kl_coef=0.001,
            kl_rollouts="kept",
            max_grad_norm=1.0,
            space="full",
            micro_batch_tokens=65536,
            updates_per_rollout=1,
        )
        models = {id(x.model): x.model for x in (policy, reference)}.values()
        self.stays = sum(p.nbytes for model in models for p in model.parameters())
        self.stays += 3 * sum(p.nbytes for p in trained_parameters(policy))

    def run(self) -> None:
        groups = self.sampler(self.actor.policy, self.prompts, self.width)
        if self.method.add_gt:
            groups = add_gt(groups)
        signal = supply(self.method.signal, {"natural_frac": 0.1})
        metrics = update(self.actor, signal(groups, self.method.reward(groups)))
        assert metrics["actor/grad_norm"] > 0

    def memory(self) -> int:
        self.run()
        return self.stays + peak_bytes(self.run)


def run(smoke: bool) -> list[Row]:
    """A row of each kind of model and each method."""
    hidden, layers, num_prompts, width, length, repeats = (
        (64, 2, 2, 8, 16, 1) if smoke else (256, 4, 8, 16, 256, 7)
    )
    catalog = random_catalog(60, 8) if smoke else random_catalog(10_000, 256)
    makers = {
        "Qwen3": partial(tiny_qwen3, attention=ATTENTION, hidden=hidden, layers=layers),
        "Llama": partial(tiny_llama, hidden=hidden, layers=layers),
    }
    rows = []
    for (name, make), method in itertools.product(makers.items(), RUNS):
        full = Policy(model=make(catalog.vocab_size), catalog=catalog, window=86)
        adapted = replace(
            full,
            model=add_adapters(copy.deepcopy(full.model), LoRAConfig(rank=RANK), "model", seed=0),
        )
        whole, lora = (Step(p, method, num_prompts, width, length) for p in (full, adapted))
        lora_s, whole_s = paired(lora.run, whole.run, repeats)
        lora_bytes, whole_bytes = lora.memory(), whole.memory()
        rows.append(
            Row(
                name=f"lora_{name.lower()}_{method}",
                what=f"memory of a step with adapters of rank {RANK}, {name} {hidden} x {layers}, "
                f"`{method}`, P {num_prompts}, G {width}, prompt {length}",
                against="the same step on all weights",
                value=lora_bytes / whole_bytes,
                bar=1.0,
                at_least=False,
                details=f"{lora_bytes / 1e6:.0f} MB against {whole_bytes / 1e6:.0f} MB; time "
                f"{lora_s:.3f} s against {whole_s:.3f} s ({lora_s / whole_s:.2f}x), {repeats} "
                "repeats",
            )
        )
    return rows


if __name__ == "__main__":
    main(run)
