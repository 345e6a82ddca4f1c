"""Ranks and what follows from them: places of the targets in, metrics out.

Item level comes first: an item is what a person is shown. The semantic-ID (SID) level, which a
policy decodes, stands beside it; the two are equal where every item has its own SID. A third
reading, `popular_item`, shows of every listed SID its most popular candidate alone.

Letters: T targets of the row with the most of them | A cuts k of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.config import METRICS, Level
from recast.evaluation.ranks import (
    Ranks,
    as_cuts,
    as_levels,
    as_metrics,
    check_ranks,
)
from recast.types import RecastError

HR_AT = (1, 5, 10, 50)
NDCG_AT = (5, 10)
"""Cuts of the lists unless a caller gives its own: the first are those of all hits."""
PRIMARY = "item/ndcg@10"
LEVELS: tuple[Level, ...] = ("item", "sid")

ONE_TARGET = ("hr", "ndcg")
SEVERAL_TARGETS = METRICS
"""With one target per row HR, Pass, first-target Pass and Recall are one number, given once."""


def table_cuts(name: str, beam_width: int | None) -> tuple[int, ...]:
    """Those of a metric that lists of so many reach.

    >>> table_cuts("ndcg", 7)
    (5,)
    """
    table = NDCG_AT if name == "ndcg" else HR_AT
    return tuple(k for k in table if beam_width is None or k <= beam_width)


def row_metrics(
    ranks: Ranks,
    at: Sequence[int] = (),
    levels: Sequence[Level] = LEVELS,
    names: Sequence[str] = (),
) -> dict[str, Float[Tensor, " N"]]:
    """`names` of every row at every k of `at` and every level, such as `item/ndcg@10`.

    With GT the distinct targets of a row (distinct SIDs at SID level):

        pass@k        1 if any of GT is among the first k; hr@k is another name for it
        first_pass@k  1 if the first of GT is
        recall@k      |first k and GT| / |GT|
        ndcg@k        sum of 1 / log2(place + 1) over these / the same of GT in the first places

    At item level a target that ties with m - 1 others, b items before them, gets the expectation
    over their random order: with c = clip(k - b, 0, m) it is among the first k with probability
    c / m, and one of g targets of the same tie with 1 - C(m - g, c) / C(m, c); the gain is the mean
    of [p <= k] / log2(p + 1) over the places p = b + 1 .. b + m. A target that is not listed gets
    0, so a list shorter than k is scored as it is; so does a row without a target (2512.24762).

    `at` is empty for the table's cuts, those of `HR_AT` and `NDCG_AT` that the lists reach; `names`
    for those of `SEVERAL_TARGETS` if a row has several, of `ONE_TARGET` if not. Raises
    `RecastError` for level `popular_item` of ranks without popularity, for a k beyond the
    `beam_width` that was listed, for names that there are not and for ranks that cannot be.

    >>> one, yes = torch.tensor([[1]]), torch.tensor([[True]])
    >>> third = dict(sid_rank=3 * one, items_before=2 * one, num_sharing=one)
    >>> ranks = Ranks(row_ids=one[0], users=one[0], item_mask=yes, sid_mask=yes, **third)
    >>> metrics = row_metrics(ranks)
    >>> round(metrics["item/ndcg@5"].item(), 6), metrics["item/hr@1"].item()
    (0.5, 0.0)
    """
    check_ranks(ranks)
    width = ranks.facts.beam_width
    at, levels, names = as_cuts(at, width), as_levels(levels), as_metrics(names)
    several = bool((ranks.item_mask.sum(1) > 1).any())
    chosen = names or (SEVERAL_TARGETS if several else ONE_TARGET)
    metrics: dict[str, Float[Tensor, " N"]] = {}
    for level in levels:
        places = _places(ranks, level)
        for name in chosen:
            cuts = at or table_cuts(name, width)
            values = _METRICS[name](places, torch.tensor(cuts, dtype=torch.long))
            metrics |= {f"{level}/{name}@{k}": values[:, i] for i, k in enumerate(cuts)}
    return metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class _Places:
    """The targets of one level: m = `sharing` places from b = `before` on, if `listed`."""

    before: Int[Tensor, "N T"]
    sharing: Int[Tensor, "N T"]
    listed: Bool[Tensor, "N T"]
    count: Int[Tensor, " N"]
    """Targets of the row, listed or not, at least 1."""

    def inside(self, cuts: Int[Tensor, " A"]) -> Int[Tensor, "N T A"]:
        """c: how many of the target's possible places are among the first k."""
        left = cuts - self.before[..., None]
        return left.clamp(min=0).minimum(self.sharing[..., None]) * self.listed[..., None]


def _places(ranks: Ranks, level: Level) -> _Places:
    before, sharing, mask = ranks.items_before, ranks.num_sharing.clamp(min=1), ranks.item_mask
    listed = mask & (ranks.sid_rank > 0)
    if level == "sid":
        before, mask = (ranks.sid_rank - 1).clamp(min=0), ranks.sid_mask
        sharing, listed = torch.ones_like(before), mask & (ranks.sid_rank > 0)
    if level == "popular_item":
        if ranks.popular_rank is None:
            raise RecastError(
                "levels has popular_item, and these ranks hold no popularity: evaluate again"
            )
        before = (ranks.popular_rank - 1).clamp(min=0)
        sharing, listed = torch.ones_like(before), mask & (ranks.popular_rank > 0)
    return _Places(before=before, sharing=sharing, listed=listed, count=mask.sum(1).clamp(min=1))


def _pass(places: _Places, cuts: Int[Tensor, " A"]) -> Float[Tensor, "N A"]:
    """One target after the other: the j-th of a tie, those before it outside the first k, is inside
    with probability c / (m - j). Ties of different SIDs are independent."""
    before, listed = places.before, places.listed
    same = (before[:, :, None] == before[:, None, :]) & listed[:, :, None] & listed[:, None, :]
    left = (places.sharing - same.tril(-1).sum(2)).clamp(min=1)
    chance = (places.inside(cuts) / left[..., None].double()).clamp(max=1)
    hit = torch.zeros(len(before), len(cuts), dtype=torch.float64)
    for target in chance.unbind(1):
        hit = hit + (1 - hit) * target
    return hit


def _first_pass(places: _Places, cuts: Int[Tensor, " A"]) -> Float[Tensor, "N A"]:
    return (places.inside(cuts) / places.sharing[..., None].double())[:, 0]


def _recall(places: _Places, cuts: Int[Tensor, " A"]) -> Float[Tensor, "N A"]:
    expected = (places.inside(cuts) / places.sharing[..., None].double()).sum(1)
    return expected / places.count[:, None]


def _ndcg(places: _Places, cuts: Int[Tensor, " A"]) -> Float[Tensor, "N A"]:
    positions = torch.arange(1, max(cuts.tolist(), default=0) + 1, dtype=torch.float64)
    gain = torch.nn.functional.pad((1 / torch.log2(positions + 1)).cumsum(0), (1, 0))
    start = places.before[..., None].minimum(cuts)
    sums = gain[start + places.inside(cuts)] - gain[start]
    mean = sums / places.sharing[..., None] * places.listed[..., None]
    return mean.sum(1) / gain[places.count[:, None].minimum(cuts)]


_METRICS = {
    "hr": _pass,
    "pass": _pass,
    "first_pass": _first_pass,
    "recall": _recall,
    "ndcg": _ndcg,
}
