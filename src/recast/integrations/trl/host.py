"""What is taken from TRL, and the check that it is still what this folder was written for.

TRL's trainer has no public place for another forward pass or for advantages, so private methods are
overridden; a version in which they moved must be refused, not misread.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from recast.types import RecastError

try:
    import trl
except ModuleNotFoundError as error:
    raise ImportError('this trainer needs TRL: pip install "recast-rl[trl]"') from error

WRITTEN_FOR = "1.16.0"
METHODS = {
    "_get_per_token_logps_and_entropies": (
        *("model", "input_ids", "attention_mask", "logits_to_keep"),
        *("batch_size", "compute_entropy", "compute_aux_loss"),
    ),
    "_prepare_inputs": ("generation_batch",),
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_tokenize_prompts": ("prompts",),
    "_generate": ("prompts",),
}
"""Private methods that are overridden or called, with the parameters relied upon."""
FIELDS = (
    *("_step", "_buffered_inputs", "_metrics", "_is_vlm", "aux_loss_enabled", "rollout_func"),
    *("num_generations", "num_generations_eval", "reward_weights", "ref_model", "tools"),
)
FORWARD = ("fused_lm_head", "shift_labels")
"""Parameters of the forward that TRL gives the model to read log-probabilities."""


def moved(what: str) -> RecastError:
    """The installed TRL is not the one this folder was written for."""
    return RecastError(
        f"TRL {trl.__version__} {what}: recast.integrations.trl was written for TRL {WRITTEN_FOR}, "
        f"use that one (pip install trl=={WRITTEN_FOR})"
    )


try:
    from trl import GRPOTrainer as StockTrainer
    from trl.models import unwrap_model_for_generation
    from trl.models.utils import disable_gradient_checkpointing
    from trl.trainer.utils import split_tensor_dict
except ImportError as error:
    raise moved(f"does not give what is asked of it ({error})") from error

__all__ = ["StockTrainer", "disable_gradient_checkpointing", "split_tensor_dict"]
__all__ += ["unwrap_model_for_generation"]


def check_methods() -> None:
    """Raise `RecastError` unless the installed trainer has the private methods relied upon."""
    for name, needed in METHODS.items():
        method = getattr(StockTrainer, name, None)
        if method is None:
            raise moved(f"has no GRPOTrainer.{name}")
        for parameter in needed:
            if parameter not in signature(method).parameters:
                raise moved(f"has a GRPOTrainer.{name} without the parameter {parameter!r}")


def check_fields(trainer: Any) -> None:
    """The same for the fields of a trainer."""
    for name in FIELDS:
        if not hasattr(trainer, name):
            raise moved(f"has no GRPOTrainer.{name}")


def check_forward(model: Any) -> None:
    """The same for the forward that a trainer gave its model."""
    known = signature(model.forward, follow_wrapped=False).parameters
    for parameter in FORWARD:
        if parameter not in known:
            raise moved(f"gives models no forward({parameter}=...)")
