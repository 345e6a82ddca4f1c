"""The output layer: hidden states that are read in, log-probabilities of tokens out.

It is applied to no other hidden state, over the columns that are asked for, and never to so many at
once that their logits fill more than 128 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MOST_LOGITS = 2**25
"""Float32 numbers of one part; with its gradients a pass holds about four times as many."""


def vocabulary_scores(
    model: torch.nn.Module,
    hidden: Float[Tensor, "N W"],
    tokens: Int[Tensor, "N C"],
    columns: tuple[int, int] | None = None,
) -> Float[Tensor, "N C"]:
    """Log-probability of each candidate after each hidden state, in float32 or wider.

    `columns` are the tokens it is normalised over, from the first up to the last, all by default;
    the candidates must be among them. Where the hidden states are too many for one part, the parts
    are computed again in the backward pass instead of kept.
    """
    logits_of, start, rows = _output_layer(model, columns)

    def scores(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        logits = logits_of(hidden)
        return (logits.gather(-1, tokens - start) - logits.logsumexp(-1, keepdim=True),)

    (found,) = _in_parts(scores, zip(hidden.split(rows), tokens.split(rows), strict=True))
    return found


def node_scores(
    model: torch.nn.Module,
    hidden: Float[Tensor, "N W"],
    index: Int[Tensor, " n"],
    tokens: Int[Tensor, " n"],
    columns: tuple[int, int] | None = None,
) -> Float[Tensor, " n"]:
    """The same for tokens that name their hidden state: `tokens[i]` behind `hidden[index[i]]`.

    The output layer is applied to every hidden state once, however many tokens follow it.
    """
    (found,) = _node_scores(model, hidden, index, tokens, columns, with_entropy=False)
    return found


def node_scores_and_entropy(
    model: torch.nn.Module,
    hidden: Float[Tensor, "N W"],
    index: Int[Tensor, " n"],
    tokens: Int[Tensor, " n"],
    columns: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The same, bit for bit, and the entropy in nats of what each token was chosen from, which has
    no gradient."""
    found, entropy = _node_scores(model, hidden, index, tokens, columns, with_entropy=True)
    return found, entropy


def _node_scores(
    model: torch.nn.Module,
    hidden: Tensor,
    index: Tensor,
    tokens: Tensor,
    columns: tuple[int, int] | None,
    *,
    with_entropy: bool,
) -> tuple[Tensor, ...]:
    logits_of, start, rows = _output_layer(model, columns)

    def scores(hidden: Tensor, index: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        logits = logits_of(hidden)
        chosen = logits.flatten().gather(0, index * logits.shape[1] + tokens - start)
        if not with_entropy:
            return (chosen - logits.logsumexp(-1).index_select(0, index),)
        total, entropy = _Normaliser.apply(logits)  # type: ignore[no-untyped-call]
        return chosen - total.index_select(0, index), entropy.index_select(0, index)

    if len(hidden) <= rows:
        return scores(hidden, index, tokens)
    part = index // rows
    order = part.argsort(stable=True)
    sizes = part.bincount(minlength=-(-len(hidden) // rows)).tolist()
    parts = (x[order].split(sizes) for x in (index % rows, tokens))
    found = _in_parts(scores, zip(hidden.split(rows), *parts, strict=True))
    back = order.argsort()
    return tuple(x[back] for x in found)


class _Normaliser(torch.autograd.Function):
    """Log of the sum of the exponentials of each row, and the entropy of what it normalises.

    The gradient is that of `logsumexp`, bit for bit. It needs the probabilities; here they are made
    one pass earlier, so that the entropy costs one product more.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
        total = logits.logsumexp(-1)
        probabilities = (logits - total[:, None]).exp_()
        entropy = total - torch.linalg.vecdot(probabilities, logits)
        ctx.save_for_backward(probabilities)
        ctx.mark_non_differentiable(entropy)
        return total, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        probabilities: Tensor = ctx.saved_tensors[0]
        return grads[0][:, None] * probabilities


def _output_layer(
    model: torch.nn.Module, columns: tuple[int, int] | None
) -> tuple[Callable[[Tensor], Tensor], int, int]:
    """Logits of these columns, in float32 or wider, the first of them and rows of one part."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    weight, bias = head.weight, head.bias
    start, end = columns or (0, len(weight))
    if columns:
        weight, bias = weight[start:end], None if bias is None else bias[start:end]

    def logits_of(hidden: Tensor) -> Tensor:
        logits = F.linear(hidden, weight, bias)
        return logits.float() if logits.dtype.itemsize < 4 else logits

    return logits_of, start, max(1, MOST_LOGITS // (end - start))


def _in_parts(
    scores: Callable[..., tuple[Tensor, ...]], parts: Iterable[tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """The parts in turn; of several, what the backward pass needs is computed again there."""
    every = list(parts)
    if len(every) == 1:
        return scores(*every[0])
    if torch.is_grad_enabled():
        found = [checkpoint(scores, *part, use_reentrant=False) for part in every]
    else:
        found = [scores(*part) for part in every]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))
