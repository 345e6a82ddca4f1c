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
_SHARED = 8
"""Hidden states that share the rows of their siblings; measured for 190 to 1,000 of them, 256
families and width 128: 4 to 16 are the same within a tenth, 1 is up to four times slower."""


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


def candidate_logits(
    model: torch.nn.Module, hidden: Float[Tensor, "N W"], tokens: Int[Tensor, "N C"]
) -> Float[Tensor, "N C"]:
    """Logit of each candidate after each hidden state, in float32 or wider, from the rows of these
    candidates alone: normalised over nothing."""
    head = model.get_output_embeddings()  # type: ignore[operator]

    def scores(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        weight = head.weight.index_select(0, tokens.flatten()).view(*tokens.shape, -1)
        logits = (weight @ hidden[..., None])[..., 0]
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        return (logits if head.bias is None else logits + head.bias[tokens],)

    rows = max(1, MOST_LOGITS // (tokens.shape[1] * hidden.shape[1]))
    (found,) = _in_parts(scores, zip(hidden.split(rows), tokens.split(rows), strict=True))
    return found


def sibling_scores(
    model: torch.nn.Module,
    hidden: Float[Tensor, "N W"],
    tokens: Int[Tensor, " T"],
    first: Int[Tensor, " N"],
    count: Int[Tensor, " N"],
    chosen: Int[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """Log-probability of `tokens[chosen]` after each hidden state, normalised over its siblings,
    the `count` tokens from `first` on.

    Hidden states with the same siblings share these rows of the output layer, `_SHARED` at a time
    or more where few have others; families of like size go together, so that little is padded.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]

    def scores(
        hidden: Tensor, chosen: Tensor, slot: Tensor, column: Tensor, first: Tensor, count: Tensor
    ) -> tuple[Tensor, ...]:
        place = torch.arange(int(count.max()), device=count.device)
        is_real = place < count[:, None]
        siblings = tokens[first[:, None] + place * is_real]
        weight = head.weight.index_select(0, siblings.flatten()).view(*siblings.shape, -1)
        slots = hidden.new_zeros(len(first), int(column.max()) + 1, hidden.shape[1])
        logits = slots.index_put((slot, column), hidden) @ weight.mT
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        if head.bias is not None:
            logits = logits + head.bias[siblings][:, None]
        logits = logits.masked_fill(~is_real[:, None], -torch.inf)[slot, column]
        found = logits.gather(1, (chosen - first[slot])[:, None])[:, 0]
        return (found - logits.logsumexp(-1),)

    if not len(hidden):
        return hidden.sum(1)
    size = (count.double().log2() / 2).long()  # families of 1 to 3, 4 to 15, 16 to 63, ...
    order = (size * (len(tokens) + 1) + first).argsort(stable=True)
    begins = first[order]
    is_new = begins.diff(prepend=begins[:1] - 1) != 0
    place = torch.arange(len(order), device=order.device)
    place = place - place[is_new][is_new.cumsum(0) - 1]
    most = max(1, MOST_LOGITS // int(count.max()))
    column = place % min(max(_SHARED, -(-len(order) // int(is_new.sum()))), most)
    heads = (column == 0).nonzero()[:, 0]
    slot, leads = (column == 0).cumsum(0) - 1, order[heads]
    parts, cells, begin = [], 0, 0
    for slots in size[leads].unique_consecutive(return_counts=True)[1].tolist():
        end = begin + slots
        each = int(count[leads[begin:end]].max()) * hidden.shape[1]
        for low in range(begin, end, max(1, MOST_LOGITS // each)):
            high = min(low + max(1, MOST_LOGITS // each), end)
            last = int(heads[high]) if high < len(heads) else len(order)
            here = slice(int(heads[low]), last)
            index, some = order[here], leads[low:high]
            parts.append(
                (
                    hidden[index],
                    chosen[index],
                    slot[here] - low,
                    column[here],
                    first[some],
                    count[some],
                )
            )
        cells, begin = cells + slots * each, end
    (found,) = _in_parts(scores, parts, keep=cells <= MOST_LOGITS)
    return found[order.argsort()]


def sampled_scores(
    model: torch.nn.Module,
    hidden: Float[Tensor, "N W"],
    tokens: Int[Tensor, " N"],
    negatives: Int[Tensor, " C"],
) -> Float[Tensor, " N"]:
    """Log-probability of a token after each hidden state, normalised over it and those of the
    `negatives` that are others."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    bias = head.bias

    def scores(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        own = (hidden * head.weight[tokens]).sum(-1, keepdim=True)
        logits = F.linear(hidden, head.weight[negatives], None if bias is None else bias[negatives])
        own, logits = (x.float() if x.dtype.itemsize < 4 else x for x in (own, logits))
        if bias is not None:
            own = own + bias[tokens, None]
        logits = logits.masked_fill(negatives == tokens[:, None], -torch.inf)
        return (own[:, 0] - torch.cat([own, logits], dim=1).logsumexp(-1),)

    rows = max(1, MOST_LOGITS // (len(negatives) + 1))
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
    scores: Callable[..., tuple[Tensor, ...]],
    parts: Iterable[tuple[Tensor, ...]],
    *,
    keep: bool = False,
) -> tuple[Tensor, ...]:
    """The parts in turn; of several, what the backward pass needs is computed again there, unless
    they are small enough together to `keep` it."""
    every = list(parts)
    if len(every) == 1:
        return scores(*every[0])
    if torch.is_grad_enabled() and not keep:
        found = [checkpoint(scores, *part, use_reentrant=False) for part in every]
    else:
        found = [scores(*part) for part in every]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))
