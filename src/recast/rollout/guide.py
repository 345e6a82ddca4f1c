"""A text-free model's scores of items, mixed into the search of a policy.

    p(item) = softmax of the scores over the row's candidates (items of its domain not yet seen)
    mass(prefix) = sum of p(item) below it

D3 (arXiv 2406.14900) mixes log-linearly, the other one the distributions:

    d3       alpha * log policy(prefix) + (1 - alpha) * log mass(prefix)
    mixture  log(alpha * policy(prefix) + (1 - alpha) * mass(prefix))

policy(prefix) is the product of its tokens' probabilities, with no length normalisation. Prefixes
of one length below the root share out the whole mass, so the second form is, of every prefix, the
probability under the mixture of both models' items, exactly.

Differs from the paper: none in the formula. The authors add the guide token by token, log mass of
the child less that of the node above: along a path these sums telescope to log mass(prefix). Their
code gives a child the largest p(item) below it instead of the sum, and renormalises those over the
children.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.items.trie import Trie
from recast.types import RecastError, require

Mixing = Literal["d3", "mixture"]

_FLOOR = -700.0  # exp(-700) is a normal float64: no sum of candidates is ever 0


def mix_scores(
    policy: Float[Tensor, "*n"], guide: Float[Tensor, "*n"], alpha: float, kind: Mixing = "d3"
) -> Float[Tensor, "*n"]:
    """The score of prefixes that the search ranks by, from the log-probabilities that both models
    give them; alpha 1 is the policy alone, bit for bit, and 0 the guide.

    The policy prefers the first prefix, both mixtures the second:

    >>> policy, guide = torch.tensor([-1.0, -1.2]), torch.tensor([-3.0, -0.5])
    >>> mix_scores(policy, guide, 0.9)
    tensor([-1.2000, -1.1300])
    >>> mix_scores(policy, guide, 0.75, "mixture").exp()  # .75 * .3679 + .25 * .0498, ...
    tensor([0.2884, 0.3775])
    """
    if alpha in (0, 1):  # else what is impossible for one of them would be 0 * -inf
        return policy if alpha == 1 else guide.to(policy.dtype)
    guide = guide.to(policy.dtype)
    if kind == "d3":
        return alpha * policy + (1 - alpha) * guide
    return torch.logaddexp(policy + math.log(alpha), guide + math.log1p(-alpha))


def guide_masses(
    scores: Float[Tensor, "B I"],
    seen: Int[Tensor, "B S"],
    trie: Trie,
    domains: Int[Tensor, " B"] | None = None,
) -> list[Float[Tensor, "B _nodes"]]:
    """For every level from the root's children on, the log mass of each of its nodes, in float64.

    `seen` holds item indices, -1 as padding; rows are of domain 0 by default. A candidate counts at
    least exp(-700) times the best one of its row, so that no branch underflows to nothing; a node
    without candidates gets -inf.
    Example, items 0, 1, 2 with codes (0, 0), (0, 1), (1, 0) and p = .1, .3, .6: level 1 holds log
    .4 and log .6, level 2 log .1, log .3 and log .6.

    Raises `RecastError` for another number of items and for a candidate scored NaN or +inf.
    """
    num_items = len(trie.leaves)
    remedy = f"give one score for each of the catalogue's {num_items} items"
    require(scores.shape[1] == num_items, "width of the guide's scores", scores.shape[1], remedy)
    is_seen = torch.zeros(len(scores), num_items + 1, dtype=torch.bool, device=scores.device)
    is_seen.scatter_(1, torch.where(seen < 0, num_items, seen), True)
    domains = seen.new_zeros(len(scores)) if domains is None else domains
    is_none = is_seen[:, :-1] | ~trie.holds(domains)
    wrong = (scores.isnan() | (scores == torch.inf)) & ~is_none
    if bool(wrong.any()):
        row, item = wrong.nonzero()[0].tolist()
        raise RecastError(
            f"the guide gives item {item} the score {float(scores[row, item])} in row {row}: "
            "give every item a number"
        )
    known = scores.double().masked_fill(is_none, -torch.inf)
    best = known.amax(1, keepdim=True).clamp(min=torch.finfo(known.dtype).min)
    mass = (known - best).clamp(min=_FLOOR).exp().masked_fill(is_none, 0.0)
    below = mass.new_zeros(len(mass), trie.num_leaves + 1).index_add_(1, trie.leaves, mass)
    below = below[:, :-1]  # what writes nothing
    levels = [below]
    for offsets in reversed(trie.children[1:-1]):
        parents = torch.arange(len(offsets) - 1, device=mass.device)
        parents = parents.repeat_interleave(offsets.diff())
        below = mass.new_zeros(len(mass), len(offsets) - 1).index_add_(1, parents, below)
        levels.append(below)
    whole = mass.sum(1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny).log()
    return [below.log() - whole for below in reversed(levels)]
