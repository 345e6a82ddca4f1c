"""The contract of a loss: one value per token, rollout or group, and nothing from padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from recast.methods.contract import loss_fault, units
from recast.methods.parts import Part, name_of, with_parameters
from recast.methods.probe import loss_inputs, probe_loss


def check_loss(loss: Callable[..., Tensor], *, parameters: Mapping[str, Any] | None = None) -> None:
    """Raise `AssertionError` with the property that a loss breaks.

    Its result has the shape [B, K, L], [B, K] or [B] and is finite, as is its gradient; it changes
    no input; padded rows (`loss_mask` all False) move neither the result nor its gradient. Among
    the groups are one without a positive, one without a negative and one of padding alone.
    """
    part = with_parameters("loss", loss, parameters or {})
    inputs = loss_inputs()
    before = {name: value.clone() for name, value in inputs.items()}

    def must(holds: bool, what: str) -> None:
        if not holds:
            raise AssertionError(f"loss {name_of(part)} {what}")

    result = probe_loss(part, inputs)
    for name, value in inputs.items():
        must(torch.equal(value, before[name]), f"changes {name} of its input")
    fault = loss_fault(result, inputs["loss_mask"])
    must(fault is None, f"gives {fault.what if fault else ''}")
    total, gradient = _masked_sum(part, inputs)
    must(bool(gradient.isfinite().all()), f"has a gradient that is not finite: {gradient.tolist()}")
    padded = ~inputs["loss_mask"]
    must(not bool(gradient[padded].any()), f"has a gradient in padding: {gradient.tolist()}")
    moved = {
        name: value - padded.float() if name.endswith("logprobs") else value
        for name, value in inputs.items()
    }
    other, _ = _masked_sum(part, moved)
    same = torch.allclose(other, total)
    must(same, f"reads padding: its sum moves from {float(total)} to {float(other)}")


def _masked_sum(loss: Part, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The sum as the actor takes it, and its gradient with respect to the log-probabilities."""
    logprobs = inputs["logprobs"].clone().requires_grad_()
    values = probe_loss(loss, inputs | {"logprobs": logprobs})
    total = torch.where(units(values, inputs["loss_mask"]), values, 0.0).sum()
    if not total.requires_grad:
        raise AssertionError(f"loss {name_of(loss)} has no gradient (it reads no `logprobs`)")
    [gradient] = torch.autograd.grad(total, [logprobs], allow_unused=True, materialize_grads=True)
    return total.detach(), gradient
