"""What goes through the model together in supervised training: a batch of sequences in, rows of
tokens with their labels out.

Padding costs as much as what is learned. So short sequences share rows, each blind to its
neighbours, and long ones go in parts of like length, as do the prompts and answers of an
encoder-decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.items.catalog import Catalog
from recast.policy.attention import Layout, some_rows
from recast.policy.body import dropout_mask
from recast.policy.encoder_decoder import start_token
from recast.policy.load import Policy
from recast.policy.packed import pack
from recast.policy.passes import by_length

MOST_SHARED = 512
"""Tokens of a row that sequences share: its attention costs their square."""
_LEAST_SAVED = 8
"""Rows are shared where that saves at least one in so many."""
NO_LIMIT = 2**62


def has_parts(policy: Policy, longest: int) -> bool:
    """Whether sequences go through the model by their length, where padding has to be weighed."""
    return longest - 1 > MOST_SHARED or start_token(policy.model) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What goes through the model together: R rows of W tokens, each predicting its label.

    Example, the sequences 1 5 6 and 1 7 in one row: `tokens=[[1, 5, 1]]  labels=[[5, 6, 7]]`
    `counts=[[1, 1, 1]]  positions=[[0, 1, 0]]`, where the last token sees itself alone.
    """

    tokens: Int[Tensor, "R W"]
    labels: Int[Tensor, "R W"]
    counts: Bool[Tensor, "R W"]
    positions: Int[Tensor, "R W"]
    noise: Float[Tensor, "R W _"] | None
    """Dropout: what the embeddings are multiplied by."""
    nodes: Int[Tensor, "R W"] | None = None
    """In the `trie` space: what each label leads to, of its level of the trie."""
    layout: Layout | None = None


def split_batch(
    policy: Policy,
    tokens: Int[Tensor, "B P"],
    loss_mask: Bool[Tensor, "B P"],
    *,
    dropout: float,
    pass_tokens: int,
    micro_batch_tokens: int,
) -> tuple[list[Rows], int]:
    """The parts of a batch, and its tokens without those that pad."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    lengths = (loss_mask * place).amax(1)  # the last token that counts is not sent
    start = start_token(policy.model)
    if start is None:
        whole = Rows(
            tokens=tokens[:, :-1],
            labels=tokens[:, 1:],
            counts=loss_mask[:, 1:],
            positions=place[:-1].expand(len(tokens), -1),
            noise=_dropout_noise(policy, tokens[:, 1:], dropout),
            nodes=_nodes(policy.catalog, tokens[:, 1:]) if policy.logprob_space == "trie" else None,
        )
        parts = _parts(whole, lengths, pass_tokens, micro_batch_tokens)
    else:
        pairs = _pairs(policy, tokens, loss_mask, dropout)
        parts, lengths = _pair_parts(pairs, start, pass_tokens, micro_batch_tokens), lengths + 1
    return parts, int(lengths.sum())


def _parts(
    whole: Rows, lengths: Int[Tensor, " B"], pass_tokens: int, most: int = NO_LIMIT
) -> list[Rows]:
    """The batch in as few tokens as its lengths allow, without those that nobody learns from."""
    width = int(lengths.max())
    if width <= MOST_SHARED:
        row, begin = first_fit(lengths.tolist(), width)
        is_shared = _LEAST_SAVED * (len(row) - 1 - max(row)) >= len(row)
        if ((max(row) + 1) if is_shared else len(row)) * width <= most:
            return [share_rows(whole, lengths, row, begin, width) if is_shared else whole]
    parts = by_length(lengths, torch.zeros_like(lengths), most, pass_tokens)
    if len(parts) == 1:
        return [whole]
    return [some(whole, part, int(lengths[part].max())) for part in parts]


def first_fit(lengths: list[int], width: int) -> tuple[list[int], list[int]]:
    """A row and a place in it for every sequence: the longest first, each into the first row of
    `width` tokens that has room.

    >>> first_fit([2, 5, 3, 4], 6)
    ([1, 0, 2, 1], [4, 0, 0, 0])
    """
    row, begin = [0] * len(lengths), [0] * len(lengths)
    taken: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fits = (r for r, used in enumerate(taken) if used + length <= width)
        chosen = next(fits, len(taken))
        if chosen == len(taken):
            taken.append(0)
        row[index], begin[index] = chosen, taken[chosen]
        taken[chosen] += length
    return row, begin


def share_rows(
    whole: Rows, lengths: Int[Tensor, " B"], row: list[int], begin: list[int], width: int
) -> Rows:
    """The sequences at their places in rows that they share; none sees another."""
    device, last = lengths.device, whole.tokens.shape[1]
    place = torch.arange(last, device=device)
    inside = place < lengths[:, None]
    target = (torch.tensor(row) * width + torch.tensor(begin)).to(device)
    # Which token of the batch stands in each cell; -1 = none.
    cells = lengths.new_full(((max(row) + 1) * width,), -1)
    source = torch.arange(len(lengths) * last, device=device).view(-1, last)
    cells[(target[:, None] + place)[inside]] = source[inside]
    cells = cells.view(-1, width)
    filled, flat = cells >= 0, cells.clamp(min=0)
    owner = torch.where(filled, flat // last, -1)
    positions = torch.where(filled, flat % last, torch.arange(width, device=device))
    mask = (owner[:, :, None] == owner[:, None]) & (positions[:, :, None] >= positions[:, None])
    noise = whole.noise
    return Rows(
        tokens=whole.tokens.flatten()[flat],
        labels=whole.labels.flatten()[flat],
        counts=whole.counts.flatten()[flat] & filled,
        positions=positions,
        noise=None if noise is None else noise.flatten(0, 1)[flat],
        nodes=None if whole.nodes is None else whole.nodes.flatten()[flat],
        layout=Layout(
            prompt_width=0, mask=mask[:, None], query_positions=positions, key_positions=positions
        ),
    )


def some(whole: Rows, index: Int[Tensor, " N"], width: int) -> Rows:
    noise = whole.noise
    return Rows(
        tokens=whole.tokens[index, :width],
        labels=whole.labels[index, :width],
        counts=whole.counts[index, :width],
        positions=whole.positions[index, :width],
        noise=None if noise is None else noise[index, :width],
        nodes=None if whole.nodes is None else whole.nodes[index, :width],
        layout=None if whole.layout is None else some_rows(whole.layout, index),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pairs:
    """A batch as an encoder-decoder reads it: what counts of a sequence is its answer, of A tokens
    at most, the P tokens in front of it are the prompt.

    Example, the sequence 1 5 6 7 8 with a loss on 7 and 8: `prompts=[[1, 5, 6]]  answers=[[7, 8]]`.
    """

    prompts: Int[Tensor, "B P"]
    lengths: Int[Tensor, " B"]
    answers: Int[Tensor, "B A"]
    counts: Bool[Tensor, "B A"]
    noise: Float[Tensor, "B P_plus_A W"] | None
    nodes: Int[Tensor, "B A"] | None


def _pairs(
    policy: Policy, tokens: Int[Tensor, "B P"], loss_mask: Bool[Tensor, "B P"], dropout: float
) -> _Pairs:
    lengths, sizes = loss_mask.int().argmax(1), loss_mask.sum(1)
    place = torch.arange(int(sizes.max()), device=tokens.device)
    index = (lengths[:, None] + place).clamp(max=tokens.shape[1] - 1)
    prompts, answers = tokens[:, : int(lengths.max())], tokens.gather(1, index)
    sent = torch.cat([prompts, answers], dim=1)
    return _Pairs(
        prompts=prompts,
        lengths=lengths,
        answers=answers,
        counts=place < sizes[:, None],
        noise=_dropout_noise(policy, sent, dropout),
        nodes=_nodes(policy.catalog, answers) if policy.logprob_space == "trie" else None,
    )


def _pair_parts(pairs: _Pairs, start: int, pass_tokens: int, most: int) -> list[Rows]:
    """The decoder's rows are the start token and the answers, whose last tokens are not sent."""
    parts, sizes = [], pairs.counts.sum(1)
    for index in by_length(pairs.lengths, sizes, most, pass_tokens):
        lengths, width = pairs.lengths[index], int(pairs.lengths[index].max())
        end = int(sizes[index].max())
        answers, counts = pairs.answers[index, :end], pairs.counts[index, :end]
        prompts = pairs.prompts[index, :width]
        packed = pack(prompts, lengths, answers[:, None], counts[:, None], start_token=start)
        noise = pairs.noise
        if noise is not None:
            after = pairs.prompts.shape[1]
            noise = torch.cat([noise[index, :width], noise[index, after : after + end]], dim=1)
        parts.append(
            Rows(
                tokens=packed.tokens,
                labels=F.pad(answers, (width, 0)),
                counts=F.pad(counts, (width, 0)),
                positions=packed.positions,
                noise=noise,
                nodes=None if pairs.nodes is None else F.pad(pairs.nodes[index, :end], (width, 0)),
                layout=packed.layout,
            )
        )
    return parts


def _nodes(catalog: Catalog, tokens: Int[Tensor, "B P"]) -> Int[Tensor, "B P"]:
    """Node of the trie that each token of items leads to."""
    items = tokens.unflatten(1, (-1, catalog.num_levels))
    return catalog.path_of(items)[..., 1:].flatten(1)


def _dropout_noise(
    policy: Policy, tokens: Int[Tensor, "B P"], rate: float
) -> Float[Tensor, "B P W"] | None:
    """0, or 1 / (1 - rate), for every number of the embeddings of so many tokens; None without
    any."""
    if not rate:
        return None
    weight = policy.model.get_input_embeddings().weight
    shape = (*tokens.shape, weight.shape[1])
    return dropout_mask(torch.empty(shape, dtype=weight.dtype, device=weight.device), rate)
