"""What a token is drawn from: log-probabilities of candidates in, their weights out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recast.policy.logprobs import over_children
from recast.types import require, require_range


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """The policy's own, tempered first, cut to `top_k` then, to `top_p` last: transformers' order.

    Raises `RecastError` for a temperature below 0.01, in effect the most probable token alone, and
    above 100, any token; for a `top_p` that is no share above 0; for a `top_k` that is no count.
    """

    temperature: float = 1.0
    """Log-probabilities are divided by it."""
    top_p: float = 1.0
    """The fewest tokens, most probable first, that hold this share together; 1: all."""
    top_k: int = 0
    """So many most probable tokens; 0: all."""

    def __post_init__(self) -> None:
        require_range("temperature", self.temperature, 0.01, 100)
        require_range("top_p", self.top_p, 0, 1, above=True)
        is_count = type(self.top_k) is int and 0 <= self.top_k <= 2**31
        require(is_count, "top_k", self.top_k, "give a number of tokens, 0 for all")

    def weights(
        self, logprobs: Float[Tensor, "B N C"], allowed: Bool[Tensor, "B N C"]
    ) -> Float[Tensor, "B N C"]:
        """Of each candidate, in float64, from log-probabilities of any space, -inf where not
        allowed; 0 there and where cut off. A cut leaves those that it keeps as they are, so they
        need not add up to 1. Of equals the first is kept.

        >>> logprobs = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
        >>> Distribution(top_p=0.6).weights(logprobs, logprobs < 0).round(decimals=4).tolist()
        [[[0.5, 0.3, 0.0]]]
        >>> Distribution(top_k=1).weights(logprobs, logprobs < 0).round(decimals=4).tolist()
        [[[0.5, 0.0, 0.0]]]
        """
        weights = over_children(logprobs / self.temperature, allowed).double().exp()
        if self.top_k == 0 and self.top_p == 1:
            return weights
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        if self.top_k:
            ordered[..., self.top_k :] = 0.0
        before = ordered.cumsum(-1) - ordered
        if self.top_p < 1:
            enough = self.top_p * ordered.sum(-1, keepdim=True)
            ordered = ordered.masked_fill(before >= enough, 0.0)
        return torch.zeros_like(weights).scatter(-1, order, ordered)
