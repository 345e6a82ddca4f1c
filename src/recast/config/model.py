"""The policy's shape: a model of one's own or a new one, all its weights or adapters alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from recast.config.check import MOST_STEPS, check_settings, within
from recast.errors import require

ModelKind = Literal["qwen3", "t5"]
"""A decoder that reads prompts itself, or one with an encoder for them."""

NewRows = Literal["vectors", "text", "spread"]
"""What the rows of semantic IDs begin as."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy: a model of this shape with random weights, or a Hugging Face one: any causal LM,
    or a T5."""

    path: str | None = None
    """Hugging Face folder to start from; the shape below is then its own, not this one."""
    kind: ModelKind | None = None
    """Architecture: a decoder (qwen3) or an encoder and a decoder (t5, which TIGER is); unset:
    qwen3, or what the model of `path` is."""
    new_rows: NewRows | None = None
    """What the rows of the semantic IDs begin as. In a new model: the vectors that the catalogue
    was quantized from, added to noise (vectors), or noise alone (spread); unset: vectors where its
    folder has them. In the model of `path`: from the texts of their items (text) or drawn with the
    spread of its own rows (spread); unset: text where it has a tokenizer and items have texts."""
    hidden_size: int = 64
    """Width of the residual stream."""
    num_layers: int = 2
    """Transformer blocks; of a T5 in the encoder, and as many in the decoder."""
    num_heads: int = 2
    """Attention heads."""
    num_kv_heads: int = 2
    """Heads of keys and values, a divisor of `num_heads`; a T5 has as many."""
    head_dim: int = 32
    """Width of a head."""
    intermediate_size: int = 128
    """Width inside the feed-forward blocks."""
    initializer_range: float = 0.05
    """Standard deviation of the random weights; 0.02 suits models a hundred times larger. A T5's
    follow from its widths."""
    tie_embeddings: bool = True
    """Use the token embeddings as the output layer too; a T5 does."""

    def __post_init__(self) -> None:
        check_settings(self)
        # Each twice that of the largest published model, or more.
        within(self, 1, 65536, "hidden_size")
        within(self, 1, 1024, "num_layers", "num_heads", "num_kv_heads", "head_dim")
        within(self, 1, 2**20, "intermediate_size")
        within(self, 0, 10, "initializer_range")
        heads, shared = self.num_heads, self.num_kv_heads
        remedy = f"give a divisor of num_heads {heads}"
        require(heads % shared == 0, "model.num_kv_heads", shared, remedy)
        require(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "give an even number")
        if self.kind == "t5" and self.path is None:
            remedy = f"a T5 has as many as num_heads, give {heads}"
            require(heads == shared, "model.num_kv_heads", shared, remedy)
            for name in ("initializer_range", "tie_embeddings"):
                value, default = getattr(self, name), getattr(ModelConfig, name)
                need = "it belongs to a qwen3, leave it out of a t5"
                require(value == default, f"model.{name}", value, need)
        foreign, need = "text", "it belongs to model.path, give one, or give vectors or spread"
        if self.path is not None:
            foreign, need = "vectors", "it belongs to a new model, give text or spread"
        require(self.new_rows != foreign, "model.new_rows", self.new_rows, need)


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Adapters in place of all weights; needs the extra `lora`."""

    rank: int | None = None
    """Rank of the adapters; unset: all weights are trained."""
    alpha: float | None = None
    """Their scale is alpha / rank; unset: twice the rank."""
    layers: str = "all-linear"
    """Whose weights get one: all linear layers but the output layer, or names such as
    `q_proj,v_proj`."""
    merge: bool = True
    """Save the sum of weights and adapters as a model like any other; off: the adapters alone, as
    PEFT reads them, which need the policy they started from."""

    def __post_init__(self) -> None:
        check_settings(self)
        within(self, 1, 65536, "rank")
        fits = self.alpha is None or 0 < self.alpha < math.inf
        require(fits, "lora.alpha", self.alpha, "give a positive scale")
        within(self, 0, MOST_STEPS, "alpha")
        if self.rank is None:
            for name in ("alpha", "layers", "merge"):
                value = getattr(self, name)
                is_default = value == getattr(LoRAConfig, name)
                require(is_default, f"lora.{name}", value, "it belongs to lora.rank, give one")
