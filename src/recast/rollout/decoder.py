"""What may follow what in a search, and by whose score: one value for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recast.items.trie import Trie
from recast.rollout.guide import Mixing, guide_masses, mix_scores
from recast.types import Prompts, Ranker, require


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """Constrained by the trie and ranked by the policy alone, unless it says otherwise.

    `Decoder(constrained=False)` sees what the model would invent; `Decoder(guide=ranker, alpha=.9)`
    mixes a guide in (`recast.rollout.guide`). Raises `RecastError` for a guide without the trie and
    for an `alpha` outside 0 to 1.
    """

    constrained: bool = True
    """False: every token of the space may follow every other."""
    guide: Ranker | None = None
    """Scores the whole catalogue for every row."""
    alpha: float = 0.9
    """Weight of the policy in the mixture; the guide gets the rest."""
    kind: Mixing = "d3"
    """Of log-probabilities (d3), or of the distributions."""

    def __post_init__(self) -> None:
        remedy = "a guide knows the children in the trie alone, leave `constrained` on"
        require(self.constrained or self.guide is None, "constrained", self.constrained, remedy)
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "give a weight from 0 to 1")

    def masses(self, prompts: Prompts, trie: Trie) -> list[Float[Tensor, "B _nodes"]] | None:
        """Log of what the guide gives to every node of every level but the root, for every prompt;
        None without a guide."""
        if self.guide is None:
            return None
        items = torch.arange(len(trie.leaves), device=prompts.tokens.device)
        scores = self.guide(prompts, items.expand(len(prompts), -1))
        return guide_masses(scores, prompts.seen, trie, prompts.domains)

    def mix(self, policy: Float[Tensor, "*n"], mass: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """What prefixes are ranked by, from their log-probabilities and the guide's log masses."""
        return mix_scores(policy, mass, self.alpha, self.kind)
