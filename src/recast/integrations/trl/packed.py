"""The packed half of the trainer: old, reference and policy log-probabilities, prompts sent once.

Losses and gradients are those of stock TRL, whatever its settings of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from recast.integrations.trl.host import (
    StockTrainer,
    check_fields,
    check_forward,
    check_methods,
    split_tensor_dict,
)
from recast.integrations.trl.rows import NO_LABEL, pack_rows
from recast.policy.attention import Layout, packed_attention
from recast.policy.body import body_of, require_steady
from recast.policy.packable import is_packable
from recast.policy.packed import pack
from recast.types import RecastError, require

ATTENTION = "recast_packed_or_sdpa"


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The packed attention where a call has a layout; transformers' own in all others, so that
    `generate` stays what it was."""
    if layout is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return found
    return packed_attention(module, query, key, value, None, layout=layout, **kwargs)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class PackedGRPOTrainer(StockTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer, every distinct prompt of a batch sent through the models once.

    Raises `RecastError` for models that cannot be packed, and when TRL's private methods moved.
    """

    _buffered_inputs: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_methods()
        super().__init__(*args, **kwargs)
        check_fields(self)
        self._deferred = False
        model = self._causal_lm(self.model)
        plain = isinstance(model, PreTrainedModel) and not self._is_vlm
        if self.aux_loss_enabled or not (plain and is_packable(model)):
            raise RecastError(
                f"the model is a {type(model).__name__}, with images, experts, adapters or an "
                "attention that the packed forward cannot replace: choose a plain text model, "
                "such as Qwen3"
            )
        check_forward(model)
        model.set_attn_implementation(ATTENTION)
        if self.ref_model is not None:
            self._causal_lm(self.ref_model).set_attn_implementation(ATTENTION)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Int[Tensor, "N S"],
        attention_mask: Int[Tensor, "N S"],
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"] | None, None]:
        """As TRL's, 0 where the mask is 0; rows that share a prompt are branches of one row.

        Rows whose completion is masked out do not go through the model at all.
        """
        others["compute_aux_loss"] = compute_aux_loss or None
        for name, value in others.items():
            require(value is None, name, value, "the packed forward has no place for it")
        nothing = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
        if self._deferred:
            return nothing, None, None
        live = attention_mask[:, -logits_to_keep:].any(1)
        live[0] |= ~live.any()  # of nothing: 0, and part of the graph
        rows = pack_rows(input_ids[live], attention_mask[live], logits_to_keep)
        at_once = max(1, (batch_size or len(input_ids)) // rows.labels.shape[1])
        found = []
        for prompts, lengths, labels in zip(
            *(x.split(at_once) for x in (rows.prompts, rows.lengths, rows.labels)), strict=True
        ):
            packed = pack(prompts, lengths, labels.clamp(min=0), labels != NO_LABEL)
            read = packed.places.flatten(1) + packed.layout.prompt_width
            require_steady(self._causal_lm(model), packed.positions)
            with self.accelerator.autocast(), _reading(body_of(self._causal_lm(model)), read):
                found.append(
                    model(
                        input_ids=packed.tokens,
                        attention_mask=packed.layout.mask,  # else transformers would make one
                        position_ids=packed.positions,
                        layout=packed.layout,
                        shift_labels=labels.flatten(1),
                        fused_lm_head=True,
                    )
                )

        def per_row(name: str) -> Tensor:
            values = torch.cat([getattr(output, name) for output in found])
            values = values.view(rows.labels.shape)[rows.owners, rows.slots]
            return nothing.to(values).index_copy(0, live.nonzero()[:, 0], values)

        return per_row("log_probs"), per_row("entropy") if compute_entropy else None, None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's, but micro batches are made of shuffled groups instead of shuffled rows: rows of
        one prompt that go through the model together cost little more than one."""
        every = self.args.steps_per_generation * self.num_iterations
        if self.model.training and (self._step % every == 0 or self._buffered_inputs is None):
            batch = self._generate_and_score_completions(generation_batch)
            _, group = batch["prompt_ids"].unique(dim=0, return_inverse=True)
            order = torch.randperm(int(group.max()) + 1, device=group.device)[group].argsort()
            batch = {name: x[order] if x.ndim else x for name, x in batch.items()}
            self._buffered_inputs = split_tensor_dict(batch, self.args.steps_per_generation)
            return self._buffered_inputs[self._step % self.args.steps_per_generation]
        return super()._prepare_inputs(generation_batch)

    def _causal_lm(self, model: Any) -> Any:
        return self.accelerator.unwrap_model(model)


@contextmanager
def _reading(backbone: torch.nn.Module, columns: Int[Tensor, "U n"]) -> Iterator[None]:
    """Hand on the hidden states of these columns alone: TRL's output layer scores all it gets."""

    def pick(module: Any, args: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        index = columns[..., None].expand(-1, -1, hidden.shape[2])
        output.last_hidden_state = hidden.gather(1, index)
        return output

    handle = backbone.register_forward_hook(pick)
    try:
        yield
    finally:
        handle.remove()
