"""A memory plan before a run: what one token costs in training, measured, and what is free."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from recast.config import ModelConfig
from recast.items.catalog import Catalog
from recast.policy.body import hidden_states, text_config
from recast.policy.encoder_decoder import T5_DISTANCES, is_encoder_decoder
from recast.policy.head import MOST_LOGITS
from recast.policy.load import Policy
from recast.policy.packed import root_layout
from recast.run.environment import memory_gib
from recast.run.world import gathered, world
from recast.types import RecastError

MOST_TOKENS = 65536
"""More per pass saves nothing: from a few thousand tokens on the time grows with them."""

_ASSUMED = 4 * 2**30  # where the system does not tell
_SHARE = 0.5  # of the free memory; the rest is for the backward pass, the search and for others


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """How the models are run within the memory at hand."""

    micro_batch_tokens: int
    checkpointing: bool
    """Keep a layer's inputs alone and compute the rest again in the backward pass."""
    text: str
    """The plan in one line."""


def plan_memory(
    policy: Policy,
    longest: int,
    wanted: int | None,
    *,
    reference: bool = False,
    reads: int = 0,
    has_lora: bool = True,
    fsdp_size: int = 1,
) -> MemoryPlan:
    """As many tokens per pass as fit into half of the free memory, 65,536 at most, or `wanted`.

    `longest` is the largest number of tokens that one prompt has with its branches; where they do
    not fit, activations are checkpointed. The model's gradients and AdamW's two moments come first,
    the copy of a `reference`, and the logits of the `reads` positions that a step reads. `has_lora`
    says whether adapters are a way out. Of `fsdp_size` ranks that share all this each holds the
    weights whole too, while it rolls out. Several ranks take the plan of the one that has least.

    Raises `RecastError` where the first of these alone, whatever the batch, take more memory than
    there is. What a pass takes is an estimate from above and only said.
    """
    weights = sum(p.nbytes for p in policy.model.parameters())
    trained = sum(p.nbytes for p in policy.model.parameters() if p.requires_grad)
    more = 3 * trained + reference * weights
    if fsdp_size > 1:
        more = (weights + more) // fsdp_size
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    # Logits, their exponentials and the gradients of both.
    logits = 4 * 4 * min(MOST_LOGITS, vocabulary * reads)
    _refuse_more_than_all(policy, weights + more, has_lora and trained == weights, reference)
    found = free_bytes(policy.catalog.device)
    free = _ASSUMED if found is None else found
    known = f"{size(free)} " + ("assumed, what is free is not known" if found is None else "free")
    room = max(free - more - logits, 0) * _SHARE
    per_token: float = bytes_per_token(policy)
    fits = int(room / per_token)
    checkpointing = fits < longest and policy.model.supports_gradient_checkpointing
    if checkpointing:
        layers = text_config(policy.model).num_hidden_layers
        hidden = policy.model.get_input_embeddings().weight[0].nbytes
        per_token = hidden * layers + per_token / layers
        fits = int(room / per_token)
    tokens = wanted or max(min(fits, MOST_TOKENS), 1)
    how = "in training with checkpointing" if checkpointing else "in training"
    parts = [
        f"memory: {known}, {size(weights + more)} for weights, gradients and "
        f"AdamW, {size(logits)} for logits, {size(per_token)} per token {how}",
        f"at most {tokens:,} tokens a pass, about {size(tokens * per_token)}",
    ]
    if longest > tokens:
        alone = f"a prompt alone takes up to {longest:,}, about {size(longest * per_token)}"
        parts.append(alone)
    if max(tokens, longest) * per_token > free:
        parts.append("more than is free: shorten the window or the group, or use a smaller model")
    plan = MemoryPlan(micro_batch_tokens=tokens, checkpointing=checkpointing, text="; ".join(parts))
    return min(gathered(plan), key=lambda one: (not one.checkpointing, one.micro_batch_tokens))


def _refuse_more_than_all(policy: Policy, needed: int, to_lora: bool, reference: bool) -> None:
    device = policy.catalog.device
    there = all_bytes(device)
    if needed > there:
        ways = ["set lora.rank"] if to_lora else []
        ways += ["set kl_coef to 0, which needs no reference"] if reference else []
        raise RecastError(
            f"the policy takes {size(needed)} in training for weights, gradients, AdamW's moments "
            f"{'and the reference' if reference else ''}, and {size(there)} are all that there is: "
            + " or ".join([*ways, "choose a smaller policy"])
        )


def all_bytes(device: torch.device) -> float:
    """Memory that the device has, of a machine this rank's share; infinite where the system does
    not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return (memory_gib() or inf) * 2**30 / world().local_size


def require_memory(config: ModelConfig, catalog: Catalog) -> None:
    """Refuse a shape that does not fit into the free memory, before it is made: weights, gradients,
    AdamW's two moments and the best weights so far, 4 bytes each."""
    count = count_parameters(config, catalog.vocab_size)
    free = free_bytes(torch.device("cpu"))
    if free is not None and 5 * 4 * count > free:
        raise RecastError(
            f"model has {count:,} parameters, which take {size(5 * 4 * count)} in training, and "
            f"{size(free)} are free: choose a smaller model.hidden_size or model.num_layers"
        )


def count_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Parameters of a model of this shape, of a Qwen3 or a T5.

    A Qwen3's block of width 4 with one head of 2 and 3 inside has 4 * 4 * 2 + 3 * 4 * 3 and
    2 * 4 + 2 * 2 in its norms, 80; 10 tokens add 40, the last norm 4:

    >>> shape = {"hidden_size": 4, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1}
    >>> count_parameters(ModelConfig(**shape, head_dim=2, intermediate_size=3), 10)
    124
    """
    width, heads = config.hidden_size, 2 * (config.num_heads + config.num_kv_heads)
    if config.kind == "t5":
        attention, inside = width * heads * config.head_dim, 2 * width * config.intermediate_size
        blocks = config.num_layers * (3 * attention + 2 * inside + 5 * width)
        return vocab_size * width + blocks + 2 * (width + T5_DISTANCES * config.num_heads)
    block = width * (heads * config.head_dim + 3 * config.intermediate_size)
    block += 2 * width + 2 * config.head_dim
    tables = 1 if config.tie_embeddings else 2
    return tables * vocab_size * width + config.num_layers * block + width


def bytes_per_token(policy: Policy) -> int:
    """Bytes that one token adds to what a forward pass keeps for the backward pass, counted.

    The difference of two prompts, so that what a pass keeps once is left out.
    """
    more = min(64, getattr(text_config(policy.model), "max_position_embeddings", None) or 64)
    few = more // 2
    return max((_kept_bytes(policy, more) - _kept_bytes(policy, few)) // (more - few), 1)


def cached_bytes(policy: Policy) -> int:
    """Bytes of the keys and values of one token, of all layers, in the weights' own precision."""
    config = text_config(policy.model)
    weight = policy.model.get_input_embeddings().weight
    heads = getattr(config, "num_key_value_heads", None)
    size = getattr(config, "head_dim", None) or weight.shape[1] // config.num_attention_heads
    width = heads * size if heads else weight.shape[1]
    return int(2 * config.num_hidden_layers * width * weight.itemsize)


def _kept_bytes(policy: Policy, length: int) -> int:
    model = policy.model
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    tokens = torch.full((1, length), policy.catalog.bos_token, device=policy.catalog.device)
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda x: x):
        # The result holds the graph, and with it every address, until all are counted.
        positions = torch.arange(length, device=tokens.device)[None]
        # A T5's row is an encoder's with the decoder's root; a node costs about as much as a token
        # of the prompt with its keys and values for the cross attention.
        layout = None
        if is_encoder_decoder(model):
            layout = root_layout(torch.full_like(tokens[:, 0], length), length - 1)
        graph = hidden_states(model, positions, tokens=tokens, layout=layout)
        total = sum(kept.values())
    del graph
    return total


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device now; on the CPU within the limit of the container, and this
    rank's share of it.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file() and (line := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        found.append(int(line[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        found.append(int(most) - int((group / "memory.current").read_text()))
    return max(min(found), 0) // world().local_size if found else None


def size(count: float) -> str:
    """Bytes in words.

    >>> size(9_400), size(3.2e6), size(16.8e9)
    ('9.4 kB', '3.2 MB', '16.8 GB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
