"""The supervised loss: token sequences in, their negative log-likelihood and its gradient out.

Padding costs as much as what is learned. So short sequences share rows, each blind to its
neighbours, and long ones go through the model in parts of like length, as do the prompts and
answers of an encoder-decoder; the gradient is that of the batch, divided once by all tokens that
count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import Precision
from recast.draws import uniforms
from recast.items.catalog import Catalog
from recast.policy.attention import Layout, some_rows
from recast.policy.body import Among, dropout_mask, dropping, hidden_states
from recast.policy.encoder_decoder import start_token
from recast.policy.head import sampled_scores, sibling_scores, vocabulary_scores
from recast.policy.load import Policy
from recast.policy.packed import pack
from recast.policy.passes import by_length
from recast.policy.sharded import backward, compute
from recast.run.world import add_up, world

MOST_SHARED = 512
"""Tokens of a row that sequences share: its attention costs their square."""
_LEAST_SAVED = 8
"""Rows are shared where that saves at least one in so many."""
NO_LIMIT = 2**62


def has_parts(policy: Policy, longest: int) -> bool:
    """Whether sequences go through the model by their length, where padding has to be weighed."""
    return longest - 1 > MOST_SHARED or start_token(policy.model) is not None


class Learned(NamedTuple):
    """What one batch was."""

    loss: Float[Tensor, ""]
    """Mean negative log-likelihood of the tokens that count."""
    sent_tokens: int
    real_tokens: int
    """Without those that pad."""


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


def learn(
    policy: Policy,
    tokens: Int[Tensor, "B P"],
    loss_mask: Bool[Tensor, "B P"],
    *,
    dropout: float,
    layer_dropout: float = 0.0,
    precision: Precision,
    pass_tokens: int,
    micro_batch_tokens: int = NO_LIMIT,
    negatives: Int[Tensor, " C"] | None = None,
) -> Learned:
    """Add the gradient of the mean negative log-likelihood of a batch, in the policy's space or, of
    one-level semantic IDs, over each label and the `negatives`.

    Dropout of the embeddings draws the same numbers however the batch is sent; that of the layers
    draws from torch's generator as the parts are sent: a mask for every number of every block would
    be larger than the activations of a batch without padding. `pass_tokens` is what the padding of
    long sequences is weighed against (`recast.policy.passes`); a pass has `micro_batch_tokens` at
    most, unless a sequence has more on its own. Each rank sends some of the rows of every part and
    adds the gradient of these; both dropouts are those of the whole batch.
    """
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
    count, total, sent = loss_mask.sum(), [], 0
    for rows in parts:
        own, among = _of_rank(rows)
        with policy.computing_in(precision), dropping(policy.model, layer_dropout, among):
            loss = compute(policy.model, partial(nll_sum, policy, own, negatives)) / count
        backward(loss)
        total.append(loss.detach())
        sent += rows.tokens.numel()
    loss = add_up(torch.stack(total).sum())
    return Learned(loss, sent, int(lengths.sum()))


def _of_rank(rows: Rows) -> tuple[Rows, Among | None]:
    """The rows of a part that this rank sends; one without any sends the first, of which nothing
    counts, since it draws what the others draw."""
    rank, size, count = world().rank, world().size, len(rows.tokens)
    if size == 1:
        return rows, None
    index = list(range(rank, count, size)) or [0]
    own = _some(rows, torch.tensor(index, device=rows.tokens.device), rows.tokens.shape[1])
    if rank >= count:
        own = replace(own, counts=torch.zeros_like(own.counts))
    return own, Among(index, count)


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
    return [_some(whole, part, int(lengths[part].max())) for part in parts]


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


def _some(whole: Rows, index: Int[Tensor, " N"], width: int) -> Rows:
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


def nll_sum(
    policy: Policy, rows: Rows, negatives: Int[Tensor, " C"] | None = None
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the labels that count, each given the tokens before it, summed."""
    embedded = policy.model.get_input_embeddings()(rows.tokens)
    if rows.noise is not None:
        embedded = embedded * rows.noise
    hidden = hidden_states(policy.model, rows.positions, embedded=embedded, layout=rows.layout)
    read, labels = hidden[rows.counts], rows.labels[rows.counts]
    if negatives is not None:
        return -sampled_scores(policy.model, read, labels, negatives).sum()
    if policy.logprob_space == "full":
        return -vocabulary_scores(policy.model, read, labels[:, None]).sum()
    catalog = policy.catalog
    ends = [catalog.level_tokens(level)[1] for level in range(catalog.num_levels)]
    place = torch.bucketize(labels, torch.tensor(ends).to(labels.device), right=True)
    total = read.new_zeros((), dtype=torch.promote_types(read.dtype, torch.float32))
    for level in range(catalog.num_levels):
        here = place == level
        is_whole = level == 0 and len(catalog.trie.codes[0]) == catalog.codebook_sizes[0]
        if rows.nodes is None or is_whole:  # the root's children are then the level's codes
            columns = catalog.level_tokens(level)
            scores = vocabulary_scores(policy.model, read[here], labels[here][:, None], columns)
        else:
            scores = _scores_of(policy, level, read[here], rows.nodes[rows.counts][here])
        total = total - scores.sum()
    return total


def draw_negatives(
    catalog: Catalog, count: int | None, seed: int, step: int
) -> Int[Tensor, " C"] | None:
    """Tokens of so many different items, the same for a whole batch and others in every step."""
    if count is None:
        return None
    items = catalog.is_written.cpu().nonzero()[:, 0]
    draws = uniforms(seed, step, items, "negatives", 1)[:, 0]
    return catalog.tokens[items[draws.topk(count).indices].to(catalog.device), 0].long()


def _nodes(catalog: Catalog, tokens: Int[Tensor, "B P"]) -> Int[Tensor, "B P"]:
    """Node of the trie that each token of items leads to."""
    items = tokens.unflatten(1, (-1, catalog.num_levels))
    return catalog.path_of(items)[..., 1:].flatten(1)


def _scores_of(
    policy: Policy, level: int, hidden: Float[Tensor, "N W"], nodes: Int[Tensor, " N"]
) -> Float[Tensor, " _decided"]:
    """Log-probabilities of the nodes, normalised over the children of their parents, but for those
    of only children, which are 0."""
    catalog = policy.catalog
    offsets = catalog.trie.children[level]
    parents = torch.searchsorted(offsets, nodes.int(), right=True) - 1
    first = offsets[parents].long()
    count = offsets[parents + 1].long() - first
    some = count > 1
    tokens = catalog.trie.codes[level].long() + catalog.level_tokens(level)[0]
    read = (hidden[some], tokens, first[some], count[some], nodes[some])
    return sibling_scores(policy.model, *read)


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
