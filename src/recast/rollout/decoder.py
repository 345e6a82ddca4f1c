"""What may follow what in a search, and by whose score: one value for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recast.types import Prompts, Ranker, require


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """Constrained by the trie and ranked by the policy alone, unless it says otherwise.

    `Decoder(constrained=False)` sees what the model would invent; `Decoder(guide=ranker, alpha=.9)`
    is D3's mixture (`recast.rollout.guide`). Raises `RecastError` for a guide without the trie and
    for an `alpha` outside 0 to 1.
    """

    constrained: bool = True
    """False: every token of the space may follow every other."""
    guide: Ranker | None = None
    """Scores the whole catalogue for every row."""
    alpha: float = 0.9
    """Weight of the policy in the mixture; the guide gets the rest."""

    def __post_init__(self) -> None:
        remedy = "a guide knows the children in the trie alone, leave `constrained` on"
        require(self.constrained or self.guide is None, "constrained", self.constrained, remedy)
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "give a weight from 0 to 1")

    def guide_scores(self, prompts: Prompts, num_items: int) -> Float[Tensor, "B I"] | None:
        """The guide's score of every item for every prompt; None without a guide."""
        if self.guide is None:
            return None
        items = torch.arange(num_items, device=prompts.tokens.device)
        return self.guide(prompts, items.expand(len(prompts), -1))
