"""Log-probabilities of the update, of the reference and of the rollout: one code for all.

`space` says what a token's probability is normalised over: `full` the whole vocabulary, `level`
the codes of its level, `trie` the children that the trie allows for this prompt. The output layer
is applied to the hidden states that are read and to no other, over the columns that the space
needs, and never to so many at once that their logits fill more than 128 MB.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recast.policy.load import Policy
from recast.policy.packed import packed_hidden
from recast.types import LogprobSpace, Prompts, RecastError

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
    head = model.get_output_embeddings()  # type: ignore[operator]
    weight, bias = head.weight, head.bias
    start, end = columns or (0, len(weight))
    if columns:
        weight, bias = weight[start:end], None if bias is None else bias[start:end]

    def scores(hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = F.linear(hidden, weight, bias)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        return logits.gather(-1, tokens - start) - logits.logsumexp(-1, keepdim=True)

    rows = max(1, MOST_LOGITS // (end - start))
    if len(hidden) <= rows:
        return scores(hidden, tokens)
    parts = zip(hidden.split(rows), tokens.split(rows), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(scores, *part, use_reentrant=False) for part in parts])
    return torch.cat([scores(*part) for part in parts])


def token_scores(
    policy: Policy,
    hidden: Float[Tensor, "B N W"],
    tokens: Int[Tensor, "B N C"],
    allowed: Bool[Tensor, "B N C"],
    *,
    space: LogprobSpace,
    level: int,
) -> Float[Tensor, "B N C"]:
    """Log-probabilities of the candidate `tokens` at each of N nodes; -inf where not allowed.

    In the `level` space they must be tokens of the level, in the `trie` space all children.
    """
    columns = None if space == "full" else policy.catalog.level_tokens(level)
    flat = vocabulary_scores(policy.model, hidden.flatten(0, 1), tokens.flatten(0, 1), columns)
    scores = flat.view(tokens.shape).masked_fill(~allowed, -torch.inf)
    return over_children(scores, allowed) if space == "trie" else scores


def over_children(
    scores: Float[Tensor, "B N C"], allowed: Bool[Tensor, "B N C"]
) -> Float[Tensor, "B N C"]:
    """Scores of any space, normalised over the allowed candidates."""
    # A dead node has none: its scores stay -inf instead of becoming NaN.
    some = torch.where(allowed.any(-1, keepdim=True), scores, 0.0)
    return scores - some.logsumexp(-1, keepdim=True)


def branch_logprobs(
    policy: Policy, prompts: Prompts, branches: Int[Tensor, "B K L"], space: LogprobSpace
) -> Float[Tensor, "B K L"]:
    """Log-probability of every token of every branch, in one packed forward.

    Raises `RecastError` in the `trie` space for a branch that the trie does not allow, in the
    `level` space for one with a token of another level.
    """
    catalog, sent = policy.catalog, branches
    if space == "trie":
        paths = catalog.path_of(branches)
        levels = range(catalog.num_levels)
        sent = torch.stack(
            [catalog.without_forced(branches[:, :, i], paths[:, :, i + 1], i + 1) for i in levels],
            dim=-1,
        )
    root, rest = packed_hidden(policy.model, prompts.tokens, prompts.lengths, sent)
    excluded = catalog.trie.excluded(prompts.seen)
    return torch.stack(
        [
            branch_scores(
                policy,
                rest[:, :, level - 1] if level else root,
                branches,
                excluded,
                level=level,
                space=space,
            )
            for level in range(catalog.num_levels)
        ],
        dim=-1,
    )


def branch_scores(
    policy: Policy,
    hidden: Float[Tensor, "B N W"],
    branches: Int[Tensor, "B K L"],
    excluded: Int[Tensor, "B S"],
    *,
    level: int,
    space: LogprobSpace,
) -> Float[Tensor, "B K"]:
    """Score of each branch's token at `level`; N is K, or 1 at the root, which all share.

    A branch of pad tokens is none: where it has no probability it scores 0.
    """
    catalog = policy.catalog
    batch, nodes = hidden.shape[:2]
    if not branches.shape[1]:
        return hidden.new_zeros(batch, 0)
    own = branches[:, :, level].view(batch, nodes, -1)
    everything = torch.ones_like(own, dtype=torch.bool)
    if space == "full":
        return token_scores(policy, hidden, own, everything, space=space, level=level).flatten(1)
    padding = (branches == catalog.pad_token).all(-1)
    if space == "level":
        start, end = catalog.level_tokens(level)
        inside = (own >= start) & (own < end)
        _require_all(
            inside.flatten(1) | padding, branches, f"a token that is none of level {level}"
        )
        own = own.where(inside, start)
        scores = token_scores(policy, hidden, own, everything, space=space, level=level)
        return scores.flatten(1).masked_fill(padding, 0.0)
    path = catalog.path_of(branches)
    above = path[:, :, level] if level else path.new_zeros(batch, 1)
    asked, child, allowed = catalog.children(level, above, excluded)
    place = (path[:, :, level + 1].view(own.shape) - child[..., :1]).clamp(0, asked.shape[-1] - 1)
    valid = (path[:, :, -1] >= 0) & allowed.gather(-1, place).flatten(1)
    _require_all(valid | padding, branches, "an item that is not in the catalogue, or was seen")
    scores = token_scores(policy, hidden, asked, allowed, space=space, level=level)
    return scores.gather(-1, place).flatten(1).masked_fill(padding, 0.0)


def _require_all(valid: Bool[Tensor, "B K"], branches: Int[Tensor, "B K L"], what: str) -> None:
    if not bool(valid.all()):
        row, branch = (~valid).nonzero()[0].tolist()
        raise RecastError(
            f"branch {branches[row, branch].tolist()} of prompt {row} has {what}, and with it no "
            "probability in this logprob_space: use 'full'"
        )
