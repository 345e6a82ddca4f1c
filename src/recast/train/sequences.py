"""The supervised loss: token sequences in, their negative log-likelihood and its gradient out.

The gradient is that of the batch, however it is sent (`recast.train.sft_rows`), divided once by all
tokens that count.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import Precision
from recast.draws import uniforms
from recast.items.catalog import Catalog
from recast.policy.body import Among, dropping, hidden_states
from recast.policy.head import sampled_scores, sibling_scores, vocabulary_scores
from recast.policy.load import Policy
from recast.policy.sharded import backward, compute
from recast.run.world import add_up, world
from recast.train.sft_rows import NO_LIMIT, Rows, some, split_batch


class Learned(NamedTuple):
    """What one batch was."""

    loss: Float[Tensor, ""]
    """Mean negative log-likelihood of the tokens that count."""
    sent_tokens: int
    real_tokens: int
    """Without those that pad."""


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
    parts, real = split_batch(
        policy,
        tokens,
        loss_mask,
        dropout=dropout,
        pass_tokens=pass_tokens,
        micro_batch_tokens=micro_batch_tokens,
    )
    count, total, sent = loss_mask.sum(), [], 0
    for rows in parts:
        own, among = _of_rank(rows)
        with policy.computing_in(precision), dropping(policy.model, layer_dropout, among):
            loss = compute(policy.model, partial(nll_sum, policy, own, negatives)) / count
        backward(loss)
        total.append(loss.detach())
        sent += rows.tokens.numel()
    loss = add_up(torch.stack(total).sum())
    return Learned(loss, sent, real)


def _of_rank(rows: Rows) -> tuple[Rows, Among | None]:
    """The rows of a part that this rank sends; one without any sends the first, of which nothing
    counts, since it draws what the others draw."""
    rank, size, count = world().rank, world().size, len(rows.tokens)
    if size == 1:
        return rows, None
    index = list(range(rank, count, size)) or [0]
    own = some(rows, torch.tensor(index, device=rows.tokens.device), rows.tokens.shape[1])
    if rank >= count:
        own = replace(own, counts=torch.zeros_like(own.counts))
    return own, Among(index, count)


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
