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

from transformers import LlamaConfig, Qwen3Config

from benchmarks.harness import (
    Row,
    actor_of,
    main,
    paired,
    peak_bytes,
    random_catalog,
    random_prompts,
    tiny_model,
)
from recast.config import LoRAConfig
from recast.methods.parts import supply
from recast.methods.table import METHODS
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy, trained_parameters
from recast.policy.lora import add_adapters, has_adapters
from recast.policy.prompts import make_prompts
from recast.rollout import SAMPLERS
from recast.rollout.add_gt import add_gt
from recast.train.actor import update

RUNS = ("recast", "openonerec_rl", "rere")
RANK = 8


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
        self.actor = actor_of(policy, reference, loss=self.method.loss)
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
        "Qwen3": partial(tiny_model, Qwen3Config, tie_word_embeddings=True),
        "Llama": partial(tiny_model, LlamaConfig),
    }
    rows = []
    for (name, make), method in itertools.product(makers.items(), RUNS):
        full = Policy(
            model=make(catalog.vocab_size, ATTENTION, hidden, layers), catalog=catalog, window=86
        )
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
