"""All that changes from step to step of a loop, and nothing else: what a resumed loop needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from recast.config import Keep
from recast.policy.sharded import own_rows
from recast.train.alarms import Watched, nothing_watched
from recast.types import Metrics, RecastError

_MEMORY = 0.9  # of the running trainable fraction, per step
_NUM_TENSORS = 8  # fields of a loop's state that hold tensors: the first ones

_KINDS = ("model", "optimizer", "best", "average", "reference")

_FUSED = {"cpu", "cuda", "mps", "xpu"}  # devices with a kernel of AdamW


@dataclass(kw_only=True, slots=True)
class LoopState:
    """Where a loop stands; model and optimizer are shared with whoever updates them.

    Example, an RL run after 2 steps of 32 prompts with 16 rollouts each:
    `step=2  num_rollouts=1024  optimizer_steps=2  further=0  natural_frac=0.03`.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    keep: Keep
    """Which weights the run keeps."""
    ema: float = 0.0
    """Decay of the average of the weights; 0: there is none."""
    reference: torch.nn.Module | None = None
    """What the policy is compared with, where that moves."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """Of what is trained, over the optimizer's steps; what is validated and kept."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    generators: dict[str, Tensor] = field(default_factory=dict)
    """Torch's own, as they were after the latest change: dropout draws from them, and parts of a
    user may."""
    count: int = 0
    """Changes of the state: steps, or batches and validations."""
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
    best: Metrics = field(default_factory=dict)
    """Those of the best validation; none yet: empty."""
    waited: int = 0
    """Validations since the best one."""
    watched: Watched = field(default_factory=nothing_watched)
    """What the alarms have seen."""
    losses: list[float] = field(default_factory=list)
    """SFT: of the batches of this epoch, which are also where the next one begins."""
    sent_tokens: int = 0
    real_tokens: int = 0
    """SFT: sent in this epoch, and those of them that do not pad."""

    def moved(self) -> None:
        """A change is done."""
        self.count += 1
        self.generators = {"cpu": torch.get_rng_state()}
        if (device := next(self.model.parameters()).device).type == "cuda":
            self.generators["cuda"] = torch.cuda.get_rng_state(device)

    def remember(self, natural_frac: float) -> None:
        """Let this step's share of mixed groups move the running mean."""
        self.natural_frac = _MEMORY * self.natural_frac + (1 - _MEMORY) * natural_frac

    def remember_batch(self, loss: Tensor, sent_tokens: int, real_tokens: int) -> None:
        """A batch of SFT is done."""
        self.losses.append(float(loss))
        self.sent_tokens += sent_tokens
        self.real_tokens += real_tokens
        self.optimizer_steps += 1
        self._move_average()

    @torch.no_grad()
    def _move_average(self) -> None:
        """The weights after step i have the share of ema^(n - i), all shares together 1."""
        if not self.ema:
            return
        share = (1 - self.ema) / (1 - self.ema**self.optimizer_steps)
        for name, weight in self._trained().items():
            if name in self.average:
                self.average[name].lerp_(weight, share)
            else:
                self.average[name] = weight.detach().clone()

    @contextmanager
    def judged(self) -> Iterator[None]:
        """While it lasts the model is what a validation judges: where there is an average of the
        weights, it has that."""
        trained = self._trained() if self.average else {}
        before = {name: weight.detach().clone() for name, weight in trained.items()}
        try:
            _copy(self.average, trained)
            yield
        finally:
            _copy(before, trained)

    def epoch_metrics(self) -> Metrics:
        """The mean loss of the epoch's batches, and the tokens sent per real one."""
        mean = float(torch.tensor(self.losses).mean())
        return {"sft/loss": mean, "sft/padding": self.sent_tokens / self.real_tokens}

    def end_epoch(self) -> None:
        self.losses, self.sent_tokens, self.real_tokens = [], 0, 0
        self.step += 1

    def validated(self, metrics: Metrics) -> None:
        """Remember a validation, and the one whose NDCG@10 is the highest so far with its weights
        if they are what the run keeps."""
        self.valid = metrics
        self.waited += 1
        if metrics.get("valid/ndcg@10", -math.inf) > self.best.get("valid/ndcg@10", -math.inf):
            self.best, self.waited = metrics, 0
            if self.keep == "best":
                weights = self._weights() | self.average
                self.best_weights = {k: v.detach().clone() for k, v in weights.items()}

    @torch.no_grad()
    def move_reference(self, share: float) -> None:
        """Let the reference move to the policy: 1 is all the way."""
        reference = self._reference_weights()
        for name, value in self._weights().items():
            if value.is_floating_point():
                reference[name].lerp_(value, share)
            else:
                reference[name].copy_(value)

    @torch.no_grad()
    def take(self) -> Metrics:
        """Stand at the weights that the run keeps; returns their validation."""
        kept = self.average if self.keep == "last" else self.best_weights
        for name, value in self._weights().items():
            value.copy_(kept.get(name, value))
        return self.valid if self.keep == "last" else self.best

    @property
    def counts(self) -> Metrics:
        """What the run cost so far."""
        return {
            "rollouts": float(self.num_rollouts),
            "optimizer_steps": float(self.optimizer_steps),
            "cpu_s": self.cpu_s,
        }

    @property
    def is_finite(self) -> bool:
        """Whether a run can go on with what is trained, of which each rank looks at its part."""
        return all(bool(own_rows(x)[0].isfinite().all()) for x in self._trained().values())

    def facts(self) -> dict[str, Any]:
        """All but the tensors, as JSON holds it exactly."""
        return {field.name: getattr(self, field.name) for field in fields(self)[_NUM_TENSORS:]}

    def tensors(self) -> dict[str, Tensor]:
        """What is trained and what the optimizer knows of it, the best weights, those of a moving
        reference, the generators."""
        found = {f"model.{name}": value for name, value in self._weights().items()}
        for name, parameter in self._trained().items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
        found |= {f"best.{name}": value for name, value in self.best_weights.items()}
        found |= {f"average.{name}": value for name, value in self.average.items()}
        found |= {f"reference.{name}": value for name, value in self._reference_weights().items()}
        return found | {f"generator.{name}": value for name, value in self.generators.items()}

    def like(self) -> dict[str, Tensor]:
        """What the weights are, by all names that a checkpoint has for tensors of their shape."""
        moments = [f"optimizer.{{}}.{name}" for name in ("exp_avg", "exp_avg_sq")]
        names = [*(f"{kind}.{{}}" for kind in _KINDS if kind != "optimizer"), *moments]
        return {
            name.format(key): value.detach()
            for key, value in self._weights().items()
            for name in names
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Stand where `tensors()` and `facts()` were taken.

        Raises `RecastError` when they are of another model or another version.
        """
        kinds = {name: of_kind(tensors, f"{name}.") for name in _KINDS}
        own = {name: tuple(value.shape) for name, value in self._weights().items()}
        if own != {name: tuple(value.shape) for name, value in kinds["model"].items()} or (
            set(facts) != set(self.facts())
        ):
            raise RecastError("it is of another model or another version of recast")
        for name, value in self._weights().items():
            value.copy_(kinds["model"][name])
        for name, value in self._reference_weights().items():
            value.copy_(kinds["reference"][name])
        trained = self._trained()
        packed = self.optimizer.state_dict()
        packed["state"] = {
            index: of_kind(kinds["optimizer"], f"{name}.") for index, name in enumerate(trained)
        }
        packed["state"] = {index: held for index, held in packed["state"].items() if held}
        self.optimizer.load_state_dict(packed)
        device = next(self.model.parameters()).device
        self.best_weights = {name: value.to(device) for name, value in kinds["best"].items()}
        self.average = {name: value.to(device) for name, value in kinds["average"].items()}
        self.generators = of_kind(tensors, "generator.")
        torch.set_rng_state(self.generators["cpu"])
        if "cuda" in self.generators:
            torch.cuda.set_rng_state(self.generators["cuda"], device)
        for name, value in facts.items():
            setattr(self, name, value)

    def _trained(self) -> dict[str, Tensor]:
        """Parameters by name, in the order of the optimizer."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        held = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return {names[parameter]: parameter for parameter in held}

    def _weights(self) -> dict[str, Tensor]:
        """What training can change: the parameters of the optimizer, and what a model counts
        while it trains."""
        saved = self.model.state_dict()
        counted = {name for name, _ in self.model.named_buffers() if name in saved}
        return self._trained() | {name: saved[name] for name in counted}

    def _reference_weights(self) -> dict[str, Tensor]:
        """Those of a reference that moves, by the names of the policy's."""
        if self.reference is None:
            return {}
        weights = self.reference.state_dict()
        return {name: weights[name] for name in self._weights()}


@torch.no_grad()
def _copy(values: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def adamw(
    parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """The optimizer of both loops; where torch can, it goes over each weight once: a fifth of the
    time of one operation after the other, the same numbers but for rounding."""
    held = list(parameters)
    fused = {parameter.device.type for parameter in held} <= _FUSED
    return torch.optim.AdamW(held, lr=lr, weight_decay=weight_decay, fused=fused)


def of_kind(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of a prefix, without it.

    >>> of_kind({"best.w": torch.ones(1), "model.w": torch.zeros(1)}, "best.")
    {'w': tensor([1.])}
    """
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
