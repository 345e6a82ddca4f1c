"""Log-probabilities of the update, of the reference and of the rollout: one code for all.

`space` says what a token's probability is normalised over: `full` the whole vocabulary, `level`
the codes of its level, `trie` the children that the trie allows for this prompt.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import LogprobSpace
from recast.items.catalog import Catalog
from recast.policy.load import Policy
from recast.policy.packed import packed_logits
from recast.types import Prompts, RecastError


def token_scores(
    logits: Float[Tensor, "B N V"],
    tokens: Int[Tensor, "B N C"],
    allowed: Bool[Tensor, "B N C"],
    *,
    space: LogprobSpace,
    level: int,
    catalog: Catalog,
) -> Float[Tensor, "B N C"]:
    """Log-probabilities of the candidate `tokens` at each of N nodes, in float32 or wider.

    In the `trie` space the candidates must be all children; others score -inf in every space.
    """
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    chosen = logits.gather(-1, tokens).masked_fill(~allowed, -torch.inf)
    if space == "full":
        whole = logits
    elif space == "level":
        start, end = catalog.level_tokens(level)
        whole = logits[..., start:end]
    else:
        # A dead node has no child: its scores stay -inf instead of becoming NaN.
        whole = torch.where(allowed.any(-1, keepdim=True), chosen, 0.0)
    return chosen - whole.logsumexp(-1, keepdim=True)


def branch_logprobs(
    policy: Policy, prompts: Prompts, branches: Int[Tensor, "B K L"], space: LogprobSpace
) -> Float[Tensor, "B K L"]:
    """Log-probability of every token of every branch, in one packed forward.

    Raises `RecastError` in the `trie` space for a branch that the trie does not allow.
    """
    root, rest = packed_logits(policy.model, prompts.tokens, prompts.lengths, branches)
    catalog = policy.catalog
    excluded = catalog.trie.excluded(prompts.seen)
    return torch.stack(
        [
            target_scores(
                rest[:, :, level - 1] if level else root,
                branches,
                excluded,
                level=level,
                space=space,
                catalog=catalog,
            )
            for level in range(catalog.num_levels)
        ],
        dim=-1,
    )


def target_scores(
    logits: Float[Tensor, "B N V"],
    branches: Int[Tensor, "B K L"],
    excluded: Int[Tensor, "B S"],
    *,
    level: int,
    space: LogprobSpace,
    catalog: Catalog,
) -> Float[Tensor, "B K"]:
    """Log-probability of each branch's token at `level`; N is K, or 1 where all share one row.

    A branch of pad tokens is none: in the `trie` space, where it has no probability, it scores 0.
    """
    token = branches[:, :, level]
    if space != "trie":
        asked = token.view(len(token), logits.shape[1], -1)
        everything = torch.ones_like(asked, dtype=torch.bool)
        scores = token_scores(logits, asked, everything, space=space, level=level, catalog=catalog)
        return scores.flatten(1)
    nodes = catalog.trie.nodes_of(level, catalog.leaf_of(branches))
    asked, _, allowed = catalog.children(level, nodes, excluded)
    mine = (asked == token[..., None]) & allowed
    padding = (branches == catalog.pad_token).all(-1)
    if bool((lost := ~mine.any(-1) & ~padding).any()):
        row, branch = lost.nonzero()[0].tolist()
        raise RecastError(
            f"branch {branches[row, branch].tolist()} of prompt {row} is not in the catalogue, or "
            "was seen, and has no probability in logprob_space 'trie': use 'full' or 'level'"
        )
    logits = logits.expand(-1, token.shape[1], -1)
    scores = token_scores(logits, asked, allowed, space=space, level=level, catalog=catalog)
    return scores.gather(-1, mine.int().argmax(-1, keepdim=True))[..., 0].masked_fill(padding, 0.0)
