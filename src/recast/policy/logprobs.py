"""Log-probabilities of the update, of the reference and of the rollout: one code for all.

`space` says what a token's probability is normalised over: `full` the whole vocabulary, `level`
the codes of its level, `trie` the children that the trie allows for this prompt. Of the output
layer only the columns are made that the space needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.groups import select
from recast.items.catalog import Catalog
from recast.policy.encoder_decoder import start_token
from recast.policy.head import (
    candidate_logits,
    node_scores,
    node_scores_and_entropy,
    vocabulary_scores,
)
from recast.policy.load import Policy
from recast.policy.packed import Packed, pack, packed_forward
from recast.types import LogprobSpace, Prompts, RecastError, require

_FEW = 16
"""Reading a row of the output layer for one hidden state costs as much as a product with so many
columns that all hidden states share (width 128, one thread)."""

_ROWS = 8
_TOKENS = 1536  # of the branches of a row, at a time


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
    is_whole = space == "full" or not policy.catalog.codebook_sizes
    columns = None if is_whole else policy.catalog.level_tokens(level)
    read = (policy.model, hidden.flatten(0, 1), tokens.flatten(0, 1))
    first, end = columns or (0, policy.model.get_output_embeddings().weight.shape[0])
    if space == "trie" and _FEW * tokens.shape[2] < end - first:
        flat = candidate_logits(*read)
    else:
        flat = vocabulary_scores(*read, columns)
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
    policy: Policy,
    prompts: Prompts,
    branches: Int[Tensor, "B K L"],
    space: LogprobSpace,
    mask: Bool[Tensor, "B K L"] | None = None,
) -> Float[Tensor, "B K L"]:
    """Log-probability of the tokens in `mask` of every branch, in one packed forward; else 0.

    By default of all, but for branches of nothing but pad tokens, which are none.

    Raises `RecastError` in the `trie` space for a branch that the trie does not allow, in the
    `level` space for one with a token of another level and for items without levels.
    """
    if mask is None:
        is_some = (branches != policy.catalog.pad_token).any(-1, keepdim=True)
        mask = is_some.expand(branches.shape)
    return branch_scores(policy, prompts, branches, space, mask, with_entropy=False).logprobs


def item_logprobs(
    policy: Policy,
    prompts: Prompts,
    items: Int[Tensor, "B N"],
    space: LogprobSpace,
    mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B N"]:
    """Log-probability of everything that each item writes, of those in `mask`; else 0.

    As many items, or the whole catalogue, as you like: a part of them at a time. Raises what
    `branch_logprobs` raises.
    """
    catalog = policy.catalog
    place = torch.arange(catalog.max_length, device=items.device)
    if mask is None:
        mask = torch.ones_like(items, dtype=torch.bool)
    rows, size = torch.arange(len(items), device=items.device), _items_at_once(catalog)
    found = []
    for some in rows.split(_ROWS):
        few, scores = select(prompts, some), []
        for part, is_asked in zip(
            items[some].split(size, 1), mask[some].split(size, 1), strict=True
        ):
            asked = (place < catalog.lengths[part][..., None]) & is_asked[..., None]
            tokens = catalog.tokens_of(part)
            scores.append(branch_logprobs(policy, few, tokens, space, asked).sum(-1))
        found.append(torch.cat(scores, dim=1))
    return torch.cat(found)


def _items_at_once(catalog: Catalog) -> int:
    """Neighbours in the trie share their beginnings: more items of shorter beginnings."""
    return max(1, _TOKENS * catalog.trie.num_leaves // tokens_sent(catalog))


def tokens_sent(catalog: Catalog) -> int:
    """What all items cost together: their distinct beginnings, which alone are sent, and the last
    tokens, which are only read, for about an eighth each."""
    trie = catalog.trie
    sent = sum(map(len, trie.codes[:-1])) if trie.ends is None else int(catalog.lengths.sum())
    return max(1, sent + trie.num_leaves // 8)


class BranchScores(NamedTuple):
    """Of every token of some branches."""

    logprobs: Float[Tensor, "B K L"]
    entropy: Float[Tensor, "B K L"]
    """Of the distribution that the token was chosen from, in nats, without a gradient."""


def branch_scores(
    policy: Policy,
    prompts: Prompts,
    branches: Int[Tensor, "B K L"],
    space: LogprobSpace,
    mask: Bool[Tensor, "B K L"],
    *,
    with_entropy: bool = True,
) -> BranchScores:
    """What `branch_logprobs` gives, bit for bit, and the entropies of the same tokens (all 0 if
    none are wanted)."""
    reading = read_branches(policy.catalog, prompts, branches, mask, space)
    start = start_token(policy.model)
    packed = pack(prompts.tokens, prompts.lengths, branches, reading.asked, start_token=start)
    hidden = packed_forward(policy.model, packed)
    return reading.scores(policy, packed, hidden, with_entropy=with_entropy)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Which tokens of branches are scored, and over what: the columns of their level, or the
    children of a node of the trie."""

    branches: Int[Tensor, "B K L"]
    asked: Bool[Tensor, "B K L"]
    """Tokens that need the model: in the `trie` space a forced one has probability 1."""
    space: LogprobSpace
    path: Int[Tensor, "B K D_plus_1"] | None = None
    """Of every branch in the trie, and the token that each node decides; in the `trie` space."""
    decides: Int[Tensor, "B K D_plus_1"] | None = None
    excluded: Int[Tensor, "B S"] | None = None

    def logprobs(
        self, policy: Policy, packed: Packed, hidden: Float[Tensor, "B N W"]
    ) -> Float[Tensor, "B K L"]:
        """Of the tokens that are asked for, 0 elsewhere, from the hidden states of `packed`."""
        return self.scores(policy, packed, hidden, with_entropy=False).logprobs

    def scores(
        self, policy: Policy, packed: Packed, hidden: Float[Tensor, "B N W"], *, with_entropy: bool
    ) -> BranchScores:
        """The same and the entropies, all 0 if none are wanted.

        The output layer reads every distinct node once, however many branches go through it.
        """
        kind = torch.promote_types(hidden.dtype, torch.float32)
        found = torch.zeros(self.branches.shape, dtype=kind, device=hidden.device)
        entropy = torch.zeros_like(found)
        for level in range(1 if self.space == "full" else policy.catalog.num_levels):
            row, branch, place = self._tokens_at(level)
            if not len(row):
                continue
            column = packed.places[row, branch, place]
            nodes, index = (row * hidden.shape[1] + column).unique(return_inverse=True)
            first = torch.empty_like(nodes).scatter_(
                0, index, torch.arange(len(row), device=nodes.device)
            )
            states = hidden.flatten(0, 1)[nodes]
            if self.path is None or self.excluded is None:
                columns = None if self.space == "full" else policy.catalog.level_tokens(level)
                tokens = self.branches[row, branch, place]
                asked = (policy.model, states, index, tokens, columns)
                if with_entropy:
                    scores, spread = node_scores_and_entropy(*asked)
                else:
                    scores = node_scores(*asked)
            else:
                above = self.path[row, branch, level][first][:, None]
                children, child, allowed = policy.catalog.children(
                    level, above, self.excluded[row[first]]
                )
                every = token_scores(
                    policy, states[:, None], children, allowed, space=self.space, level=level
                )
                taken = self.path[row, branch, level + 1] - child[index, 0, 0]
                scores = every[:, 0][index, taken]
                if with_entropy:
                    spread = torch.special.entr(every[:, 0].detach().exp()).sum(-1)[index]
            found = found.index_put((row, branch, place), scores)
            if with_entropy:
                entropy[row, branch, place] = spread.to(kind)
        return BranchScores(found, entropy)

    def _tokens_at(
        self, level: int
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Row, branch and place of the tokens that are read at one level; all in `full`."""
        if self.space == "full":
            row, branch, place = self.asked.nonzero(as_tuple=True)
            return row, branch, place
        if self.decides is None:
            row, branch = self.asked[:, :, level].nonzero(as_tuple=True)
            return row, branch, torch.full_like(row, level)
        place = self.decides[:, :, level]
        inside = place < self.branches.shape[2]
        asked = self.asked.gather(2, place.clamp(max=self.branches.shape[2] - 1)[..., None])[..., 0]
        row, branch = (asked & inside).nonzero(as_tuple=True)
        return row, branch, place[row, branch]


def read_branches(
    catalog: Catalog,
    prompts: Prompts,
    branches: Int[Tensor, "B K L"],
    mask: Bool[Tensor, "B K L"],
    space: LogprobSpace,
) -> Reading:
    """What is to be read of these branches; raises what `branch_logprobs` raises."""
    if space == "full" or not branches.shape[1]:
        return Reading(branches=branches, asked=mask, space="full")
    if space == "level":
        require_levels(catalog)
        bounds = [catalog.level_tokens(level) for level in range(catalog.num_levels)]
        start, end = torch.tensor(bounds).to(branches.device).unbind(1)
        wrong = mask & ((branches < start) | (branches >= end))
        level = int(wrong.flatten(0, 1).any(0).int().argmax())
        _require_all(~wrong, branches, f"a token that is none of level {level}")
        return Reading(branches=branches, asked=mask, space=space)
    trie, excluded = catalog.trie, catalog.trie.excluded(prompts.seen)
    path = catalog.path_of(branches, prompts.domains)
    decides = catalog.ends_of(path)
    asked, open_ = torch.zeros(2, *mask.shape, dtype=torch.bool, device=mask.device)
    place = torch.arange(mask.shape[2], device=mask.device)
    for level in range(catalog.num_levels):
        node, child = path[:, :, level], path[:, :, level + 1]
        known = (child >= 0) & trie.is_open(level + 1, child.clamp(min=0), excluded)
        edge = (place >= decides[:, :, level, None]) & (place < decides[:, :, level + 1, None])
        open_ |= edge & known[..., None]
        decided = known & (trie.num_below(level, node.clamp(min=0)) > 1)
        asked |= (place == decides[:, :, level, None]) & decided[..., None]
    _require_all(open_ | ~mask, branches, "an item that is not in the catalogue, or was seen")
    return Reading(
        branches=branches,
        asked=asked & mask,
        space=space,
        path=path,
        decides=decides,
        excluded=excluded,
    )


def require_levels(catalog: Catalog, space: LogprobSpace = "level") -> None:
    """Raise `RecastError` for items that are no semantic IDs: only these have levels with tokens of
    their own, on which the supervised loss stands in the `trie` space too."""
    fits = bool(catalog.codebook_sizes)
    others = "full or trie" if space == "level" else "full"
    remedy = f"only semantic IDs have levels with tokens of their own, give {others}"
    require(fits, "logprob_space", space, remedy)


def _require_all(valid: Bool[Tensor, "B K L"], branches: Int[Tensor, "B K L"], what: str) -> None:
    if not bool(valid.all()):
        row, branch = (~valid.all(-1)).nonzero()[0].tolist()
        raise RecastError(
            f"branch {branches[row, branch].tolist()} of prompt {row} has {what}, and with it no "
            "probability in this logprob_space: use 'full'"
        )
