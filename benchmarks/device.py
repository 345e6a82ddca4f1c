"""What the GPU benchmark stands on: its sizes, the device's clock, memory and rate, a large model,
the naive side. Every helper that needs CUDA has a CPU branch, for the smoke run.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.harness import Work, peak_bytes, stock_attention
from recast.items.catalog import Catalog
from recast.policy.attention import ATTENTION
from recast.policy.head import vocabulary_scores
from recast.policy.load import Policy
from recast.policy.prompts import make_prompts
from recast.rollout.beam import beam_search
from recast.types import Prompts, RolloutGroups


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Everything that a smoke run makes smaller."""

    model: dict[str, int]
    words: int
    """Tokens of the vocabulary before those of the catalogue."""
    codebook: int
    items: int
    prompts: int
    widths: tuple[int, int]
    lengths: tuple[int, ...]
    matrix: int
    passes: int
    repeats: int


FULL = Sizes(
    model={
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 6144,
    },
    words=151_936,
    codebook=8192,
    items=1_000_000,
    prompts=8,
    widths=(32, 128),
    lengths=(1024, 4096),
    matrix=8192,
    passes=2,
    repeats=3,
)
SMOKE = Sizes(
    model={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 128,
    },
    words=100,
    codebook=8,
    items=60,
    prompts=2,
    widths=(4, 8),
    lengths=(16,),
    matrix=64,
    passes=2,
    repeats=1,
)


def milliseconds(device: torch.device, work: Work, repeats: int) -> float:
    """Median after a warm-up, on the device's clock; on the CPU on the wall's."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # blocks of another shape would be in the way
    work()
    return median(_milliseconds(device, work) for _ in range(repeats))


def _milliseconds(device: torch.device, work: Work) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def peak_gigabytes(device: torch.device, work: Work) -> float:
    """The most that `work` held on the device at once, above what was held before."""
    if device.type != "cuda":
        return peak_bytes(work) / 1e9
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOPs per second of square bfloat16 matrix products, ten in a row as in a model, of random
    numbers: zeros run faster."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = milliseconds(device, lambda: [a @ b for _ in range(10)], repeats=10)
    return 10 * 2 * size**3 / (times / 1e3)


class AttentionKernels(TorchFunctionMode):
    """Collects the names of the kernels that torch chooses for attention in the calls inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            kernel = SDPBackend(torch._fused_sdp_choice(*args, **kwargs)).name
            part = "prompt" if kwargs.get("is_causal") else "branches"
            self.names.add(f"{part} {kernel.removesuffix('_ATTENTION').lower()}")
        return func(*args, **kwargs)


def large_policy(shape: dict[str, int], catalog: Catalog, device: torch.device) -> Policy:
    """A Qwen3 in bfloat16, its random weights made on the device."""
    config = Qwen3Config(
        **shape,
        vocab_size=catalog.vocab_size,
        max_position_embeddings=2**13,
        tie_word_embeddings=True,
        bos_token_id=catalog.bos_token,
        pad_token_id=catalog.pad_token,
        eos_token_id=None,
        attn_implementation=ATTENTION,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return Policy(model=model, catalog=catalog.to(device), window=86)


def naive_logprobs(policy: Policy, rows: Int[Tensor, "N S"]) -> Float[Tensor, "N L"]:
    """Log-probabilities of the tokens of one item at the end of each row."""
    count = policy.catalog.num_levels
    with stock_attention(policy.model):
        hidden = policy.model.base_model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
    hidden = hidden[:, -count:].flatten(0, 1)
    return vocabulary_scores(policy.model, hidden, rows[:, -count:].reshape(-1, 1)).view(-1, count)


@torch.no_grad()
def naive_rollout(policy: Policy, passes: list[Int[Tensor, "N S"]]) -> None:
    """Every row decodes its own last tokens behind its own copy of the prompt."""
    count = policy.catalog.num_levels
    with stock_attention(policy.model):
        for rows in passes:
            asked, cache = rows[:, :-count], None
            for step in range(count):
                found = policy.model(
                    input_ids=asked, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                found.logits[:, -1].float().log_softmax(-1).max(-1)
                cache, asked = found.past_key_values, rows[:, step - count, None]


def moved_to(prompts: Prompts, device: torch.device) -> Prompts:
    return Prompts(**{f.name: getattr(prompts, f.name).to(device) for f in fields(Prompts)})


def with_a_hit(policy: Policy, prompts: Prompts, width: int) -> tuple[Prompts, RolloutGroups]:
    """The prompts with their best beam as the target, so that no group is dropped."""
    target = beam_search(policy, prompts, width).items[:, :1]
    prompts = make_prompts(
        policy.catalog,
        text=(prompts.tokens, prompts.lengths),
        targets=target,
        seen=prompts.seen,
        row_ids=prompts.row_ids,
    )
    return prompts, beam_search(policy, prompts, width)


def flops(policy: Policy, *, tokens: int, pairs: int, reads: int) -> float:
    """Of a forward and a backward pass: `tokens` that go through the layers, `pairs` of a token
    and one that it attends to, `reads` positions whose logits are read. The embedding is tied."""
    model, config = policy.model, policy.model.config
    embedding = model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters()) - embedding
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return float(6 * body * tokens + 6 * embedding * reads + 12 * attention * pairs)
