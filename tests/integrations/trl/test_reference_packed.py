"""The packed trainer against stock TRL on the same batch: losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from small_trainer import CATALOG, make_trainer
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from recast.integrations.trl import GRPOTrainer
from recast.types import RecastError

# TRL leaves a setting unset that transformers has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing.* is deprecated:FutureWarning"
)


def batch_of(trainer: Any, seed: int = 0) -> dict[str, Tensor]:
    """Eleven rows, shuffled, of three prompts; as TRL pads them, and with one row masked out."""
    draw = torch.Generator().manual_seed(seed)
    low, high = CATALOG.first_token, CATALOG.vocab_size
    lengths, owners = [9, 1, 5], torch.tensor([0, 2, 1, 0, 2, 2, 0, 1, 2, 0, 0])
    prompts = torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        prompts[row, 9 - length :] = torch.randint(low, high, (length,), generator=draw)
    prompts[2, 4] = 0  # a prompt may begin with the token that pads
    mask = torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]
    completions = torch.randint(low, high, (11, 4), generator=draw)
    ends = torch.tensor([4, 3, 1, 4, 2, 0, 4, 4, 3, 4, 4])
    completion_mask = (torch.arange(4) < ends[:, None]).long()
    batch = {
        "prompt_ids": prompts[owners],
        "prompt_mask": mask.long()[owners],
        "completion_ids": completions * completion_mask,
        "completion_mask": completion_mask,
        "advantages": torch.randn(11, generator=draw),
        "num_items_in_batch": completion_mask.sum(),
    }
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    whole = torch.cat([batch["prompt_mask"], completion_mask], dim=1)
    with torch.no_grad():
        for name, shift in (("old", 0.3), ("ref", 0.0)):
            model = trainer.ref_model if name == "ref" else trainer.model
            found = trainer._get_per_token_logps_and_entropies(model, ids, whole, 4)[0]
            noise = torch.randn(found.shape, generator=draw)
            batch[f"{name}_per_token_logps"] = found + shift * noise * completion_mask
    return batch


def loss_and_gradients(trainer: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    if trainer.args.gradient_checkpointing:
        trainer.model.activation_checkpointing_enable()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dapo"},
        {"loss_type": "grpo", "temperature": 0.7},
        {"loss_type": "dr_grpo", "entropy_coef": 0.05},
        {"loss_type": "bnpo", "importance_sampling_level": "token", "top_entropy_quantile": 0.5},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"loss_type": "cispo"},
    ],
)
def test_loss_and_gradients_are_those_of_stock_trl(
    tmp_path: Path, settings: dict[str, Any], checkpointing: bool
) -> None:
    settings = settings | {"activation_checkpointing": checkpointing}
    stock = make_trainer(trl.GRPOTrainer, tmp_path / "stock", settings)
    packed = make_trainer(GRPOTrainer, tmp_path / "packed", settings)
    batch = batch_of(stock)
    torch.testing.assert_close(
        batch_of(packed)["ref_per_token_logps"], batch["ref_per_token_logps"], rtol=1e-5, atol=1e-5
    )
    expected, gradients = loss_and_gradients(stock, batch)
    loss, found = loss_and_gradients(packed, batch)
    assert gradients.keys() == found.keys()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    scale = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert scale > 1e-2
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 1e-5 * scale, name
    for name, value in stock._metrics["train"].items():
        assert packed._metrics["train"][name] == pytest.approx(value, rel=1e-4, nan_ok=True), name


def test_a_model_that_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=CATALOG.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        pad_token_id=0,
    )
    with pytest.raises(RecastError, match="is a MixtralForCausalLM, with images, experts"):
        make_trainer(GRPOTrainer, tmp_path, {"beta": 0.0}, model=MixtralForCausalLM(config))


def test_inputs_beyond_tokens_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(GRPOTrainer, tmp_path, {"beta": 0.0})
    tokens = torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(RecastError, match="pixel_values is 'x': the packed forward"):
        trainer._get_per_token_logps_and_entropies(
            trainer.model, tokens, tokens, 2, pixel_values="x"
        )
