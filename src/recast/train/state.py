"""All that changes from step to step of a loop, and nothing else: what a resumed loop needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recast.types import Metrics

_MEMORY = 0.9  # of the running trainable fraction, per step


@dataclass(kw_only=True, slots=True)
class LoopState:
    """Where a loop stands; model and optimizer are shared with whoever updates them.

    Example, an RL run after 2 steps of 32 prompts with 16 rollouts each:
    `step=2  num_rollouts=1024  optimizer_steps=2  further=0  natural_frac=0.03`.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    """RL: rollout batches done; SFT: epochs done."""
    further: int = 0
    """Batches taken from behind those of the steps, by methods that fill theirs."""
    natural_frac: float = 0.0
    """Running mean of the share of groups that hold both a hit and a miss."""
    num_rollouts: int = 0
    optimizer_steps: int = 0
    cpu_s: float = 0.0
    """CPU seconds of training alone, without validation."""
    valid: Metrics = field(default_factory=dict)
    """Of the latest validation."""
    best: Metrics = field(default_factory=lambda: {"valid/ndcg@10": -math.inf})
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    waited: int = 0
    """Validations since the best one."""

    def remember(self, natural_frac: float) -> None:
        """Let this step's share of mixed groups move the running mean."""
        self.natural_frac = _MEMORY * self.natural_frac + (1 - _MEMORY) * natural_frac

    def keep_if_best(self, metrics: Metrics) -> None:
        """Keep the weights whose validation NDCG@10 is the highest so far."""
        self.waited += 1
        if metrics["valid/ndcg@10"] > self.best["valid/ndcg@10"]:
            self.best, self.waited = metrics, 0
            self.best_weights = {k: v.clone() for k, v in self.model.state_dict().items()}

    @property
    def counts(self) -> Metrics:
        """What the run cost so far."""
        return {
            "rollouts": float(self.num_rollouts),
            "optimizer_steps": float(self.optimizer_steps),
            "cpu_s": self.cpu_s,
        }
