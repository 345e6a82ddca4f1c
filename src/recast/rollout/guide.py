"""D3 decoding (arXiv 2406.14900): a text-free model's scores of items, pushed to the tokens.

    p(item) = softmax of the scores over the row's candidates (seen items are none)
    guide(child | node) = log sum of p(item) below child - log sum of p(item) below node
    score(token) = alpha * policy(token | prefix) + (1 - alpha) * guide(token | prefix)

Both terms are log-probabilities; a path sums its tokens' scores, with no length normalisation. The
guide's terms telescope: along a whole path they add up to the log-probability of its SID.

Differs from the paper: none in the formulas. The authors' code gives a child the largest p(item)
below it instead of the sum, and renormalises those over the children.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.items.trie import Trie
from recast.types import RecastError, require

_FLOOR = -700.0  # exp(-700) is a normal float64: no sum of candidates is ever 0


def mix_scores(
    policy: Float[Tensor, "*n"], guide: Float[Tensor, "*n"], alpha: float
) -> Float[Tensor, "*n"]:
    """The score that the search ranks by; alpha 1 is the policy alone, bit for bit.

    The policy prefers the first token, the mixture the second:

    >>> mix_scores(torch.tensor([-1.0, -1.2]), torch.tensor([-3.0, -0.5]), 0.9)
    tensor([-1.2000, -1.1300])
    """
    return alpha * policy + (1 - alpha) * guide


def guide_logprobs(
    scores: Float[Tensor, "B I"], seen: Int[Tensor, "B S"], trie: Trie
) -> list[Float[Tensor, "B _nodes"]]:
    """For every level, the log-probability of each of its nodes given the node above, in float64.

    `seen` holds item indices, -1 as padding. A candidate counts at least exp(-700) times the best
    one of its row, so that no branch underflows to nothing; a node without candidates gets -inf.
    Example, items 0, 1, 2 with codes (0, 0), (0, 1), (1, 0) and p = .1, .3, .6: level 1 holds log
    .4 and log .6, level 2 log .25, log .75 and log 1.

    Raises `RecastError` for another number of items and for a candidate scored NaN or +inf.
    """
    num_items = len(trie.items)
    remedy = f"give one score for each of the catalogue's {num_items} items"
    require(scores.shape[1] == num_items, "width of the guide's scores", scores.shape[1], remedy)
    is_seen = torch.zeros(len(scores), num_items + 1, dtype=torch.bool, device=scores.device)
    is_seen.scatter_(1, torch.where(seen < 0, num_items, seen), True)
    is_seen = is_seen[:, :-1]
    wrong = (scores.isnan() | (scores == torch.inf)) & ~is_seen
    if bool(wrong.any()):
        row, item = wrong.nonzero()[0].tolist()
        raise RecastError(
            f"the guide gives item {item} the score {float(scores[row, item])} in row {row}: "
            "give every item a number"
        )
    known = scores.double().masked_fill(is_seen, -torch.inf)
    tiny = torch.finfo(known.dtype).tiny
    best = known.amax(1, keepdim=True).clamp(min=torch.finfo(known.dtype).min)
    mass = (known - best).clamp(min=_FLOOR).exp().masked_fill(is_seen, 0.0)
    found = []
    below = mass.new_zeros(len(mass), trie.num_leaves).index_add_(1, trie.leaves, mass)
    for offsets in reversed(trie.children[:-1]):
        parents = torch.arange(len(offsets) - 1, device=mass.device)
        parents = parents.repeat_interleave(offsets.diff())
        above = mass.new_zeros(len(mass), len(offsets) - 1).index_add_(1, parents, below)
        found.append(below.log() - above.clamp(min=tiny).log()[:, parents])
        below = above
    return found[::-1]
