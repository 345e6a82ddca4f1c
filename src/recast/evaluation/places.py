"""Where targets stand in one list per row, and what stands first: beams or scores in, six whole
numbers per target and the items that are shown out.

Letter: F the fields of `FIELDS`, names of `recast.evaluation.metrics.Ranks`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.groups import is_first
from recast.items.catalog import Catalog
from recast.types import RecastError

FIELDS = ("sid_rank", "items_before", "num_sharing", "popular_rank", "item_mask", "sid_mask")

SHOWN = 10
"""Items at the top of a list that a person is shown; coverage counts them."""


def distinct(targets: Int[Tensor, "N T"]) -> Int[Tensor, "N _targets"]:
    """The items of each row without repetitions, in their order, right-padded with -1.

    >>> distinct(torch.tensor([[7, 5, 7, 2], [3, 3, -1, -1]])).tolist()
    [[7, 5, 2], [3, -1, -1]]
    """
    keep = (targets >= 0) & is_first(targets[..., None])
    width = max(int(keep.sum(1).max()), 1) if targets.numel() else 1
    targets = torch.nn.functional.pad(targets.masked_fill(~keep, -1), (0, 1), value=-1)
    order = (targets < 0).int().argsort(dim=1, stable=True)
    return targets.gather(1, order)[:, :width]


def check_targets(
    targets: Int[Tensor, "N T"], seen: Int[Tensor, "N S"], row_ids: Int[Tensor, " N"]
) -> None:
    """Raise `RecastError` for a row without a target and for a target that is no candidate."""
    if bool((empty := targets[:, 0] < 0).any()):
        row = int(row_ids[empty][0])
        raise RecastError(f"row {row} has no target: leave it out of the rows that are ranked")
    lost = (targets >= 0) & (targets[:, :, None] == seen[:, None, :]).any(2)
    if bool(lost.any()):
        row, item = int(row_ids[lost.any(1)][0]), int(targets[lost][0])
        raise RecastError(
            f"target item {item} of row {row} is among the row's seen items, which are no "
            "candidates: leave it out of the targets or prepare with --exclude_seen false"
        )


def places_within_sids(
    catalog: Catalog, popularity: Float[Tensor, " I"], seed: int
) -> Int[Tensor, " I"]:
    """How many items of the same SID are more popular than each item; equally popular ones stand in
    a random order drawn from `seed`.

    >>> from recast.items.catalog import build_catalog
    >>> catalog = build_catalog(torch.tensor([[0], [0], [1], [0]]), (2,))
    >>> places_within_sids(catalog, torch.tensor([3.0, 9.0, 1.0, 4.0]), seed=0).tolist()
    [2, 0, 0, 1]
    """
    order = torch.randperm(catalog.num_items, generator=torch.Generator().manual_seed(seed))
    leaves = catalog.trie.leaves.long().cpu()
    order = order[popularity.cpu()[order].argsort(descending=True, stable=True)]
    order = order[leaves[order].argsort(stable=True)]
    place = torch.empty_like(order)
    place[order] = torch.arange(catalog.num_items)
    return (place - catalog.trie.children[-1].cpu()[leaves].long()).to(catalog.device)


def places_in_beams(
    beams: Int[Tensor, "B G"],
    seen: Int[Tensor, "B S"],
    catalog: Catalog,
    targets: Int[Tensor, "B T"],
    within_sids: Int[Tensor, " I"] | None,
) -> Int[Tensor, "F B T"]:
    """Places in the distinct SIDs that a search listed, each as one of its items, best first.

    What is -1 keeps its place for nothing, and so does a SID of seen items alone. `targets` are
    `distinct`, `within_sids` comes from `places_within_sids`; without it nobody's `popular_rank` is
    known and all are 0.
    """
    trie = catalog.trie
    nowhere, missing = trie.num_leaves, beams.shape[1]

    def leaves(items: Int[Tensor, "B N"], padding: int) -> Int[Tensor, "B N"]:
        return _leaves(items, catalog, padding)

    # Padding sorts behind every leaf; what it says of missing targets is masked in the end.
    listed, target = leaves(beams, nowhere), leaves(targets, nowhere)
    gone_leaves = leaves(seen, nowhere + 1)
    taken = gone_leaves.sort(1).values

    def candidates(leaf: Int[Tensor, "B N"]) -> Int[Tensor, "B N"]:
        low, high = (torch.searchsorted(taken, leaf, right=right) for right in (False, True))
        return trie.sharing(leaf) - (high - low)

    hit = target[:, :, None] == listed[:, None, :]
    found, mask = hit.any(2), targets >= 0
    place = torch.where(found, hit.int().argmax(2), missing)
    sid_rank = torch.where(found, place + 1, 0)
    size = candidates(listed)
    is_followed = (listed < nowhere).flip(1).cummax(1).values.flip(1)  # by a SID of the list
    size = size.maximum(is_followed.long())
    before = torch.nn.functional.pad(size.cumsum(1), (1, 0)).gather(1, place)
    popular_rank = torch.zeros_like(sid_rank)
    if within_sids is not None:
        own, other = within_sids[targets.clamp(min=0)], within_sids[seen.clamp(min=0)]
        gone = (gone_leaves[:, None, :] == target[:, :, None]) & (
            other[:, None, :] < own[:, :, None]
        )
        popular_rank = sid_rank * (own == gone.sum(2))
    values = sid_rank, before, candidates(target), popular_rank
    masks = mask, mask & is_first(target[..., None])
    return torch.stack([*(value * mask for value in values), *(one.long() for one in masks)])


def _leaves(items: Int[Tensor, "B N"], catalog: Catalog, padding: int) -> Int[Tensor, "B N"]:
    """Leaves of items; `padding` of those that write nothing and of -1."""
    leaf = catalog.trie.leaves[items.clamp(min=0)].long()
    return leaf.masked_fill((items < 0) | (leaf == catalog.trie.num_leaves), padding)


def places_in_scores(
    scores: Float[Tensor, "B I"],
    candidate: Bool[Tensor, "B I"],
    priority: Int[Tensor, " I"],
    targets: Int[Tensor, "B T"],
    catalog: Catalog,
) -> Int[Tensor, "F B T"]:
    """Places among all candidates by score, equal scores by `priority`, the least first.

    A SID stands where its best candidate stands. A scorer knows the items of a SID apart, so at
    `popular_item` level it lists all of them as at item level.
    """
    leaves, mask = catalog.trie.leaves.long(), targets >= 0
    columns = []
    for target in targets.clamp(min=0).split(1, dim=1):
        earlier = _precedes(scores, priority, scores.gather(1, target), priority[target])
        before = candidate & earlier
        items_before = before.sum(1)
        if catalog.trie.has_collisions:
            shared = candidate & (leaves == leaves[target])
            best = scores.masked_fill(~shared, -torch.inf).amax(1, keepdim=True)
            first = priority.where(shared & (scores == best), catalog.num_items)
            before = candidate & _precedes(scores, priority, best, first.amin(1, keepdim=True))
            counts = torch.zeros(len(scores), catalog.trie.num_leaves + 1, dtype=torch.int32)
            before = counts.index_add_(1, leaves, before.int()) > 0
        sid_rank = before.sum(1) + 1
        columns.append(
            torch.stack([sid_rank, items_before, torch.ones_like(sid_rank), items_before + 1])
        )
    sids = torch.where(mask, leaves[targets.clamp(min=0)], -1)
    masks = torch.stack([mask, mask & is_first(sids[..., None])])
    return torch.cat([torch.stack(columns, 2) * mask, masks.long()])


def shown_in_beams(
    beams: Int[Tensor, "B G"], seen: Int[Tensor, "B S"], catalog: Catalog, most: int = SHOWN
) -> Int[Tensor, " C"]:
    """Distinct items that may be among the first `most` of a row: of SIDs that several items share
    all those that the row has not seen, in whatever order."""
    trie = catalog.trie
    leaves = _leaves(beams, catalog, trie.num_leaves)
    gone = _leaves(seen, catalog, trie.num_leaves + 1).sort(1).values
    low, high = (torch.searchsorted(gone, leaves, right=right) for right in (False, True))
    size = (trie.sharing(leaves) - (high - low)).clamp(min=1)
    row, place = ((size.cumsum(1) - size < most) & (beams >= 0)).nonzero(as_tuple=True)
    chosen = leaves[row, place]
    counts = trie.sharing(chosen)
    first = trie.children[-1][chosen].long()
    offset = torch.arange(int(counts.sum()), device=beams.device)
    offset = offset - (counts.cumsum(0) - counts).repeat_interleave(counts)
    items = trie.items[first.repeat_interleave(counts) + offset].long()
    fresh = (items[:, None] != seen[row.repeat_interleave(counts)]).all(1)
    shown: Tensor = items[fresh].unique()
    return shown


def shown_in_scores(
    scores: Float[Tensor, "B I"],
    candidate: Bool[Tensor, "B I"],
    priority: Int[Tensor, " I"],
    most: int = SHOWN,
) -> Int[Tensor, " C"]:
    """Distinct items among the first `most` candidates of a row, equal scores by `priority`."""
    scores = scores.masked_fill(~candidate, -torch.inf)
    least = scores.topk(min(most, scores.shape[1]), dim=1).values[:, -1:]
    above, tied = candidate & (scores > least), candidate & (scores == least)
    room = most - above.sum(1, keepdim=True)
    crowded = (tied.sum(1, keepdim=True) > room)[:, 0]
    ordered = tied[crowded][:, priority.argsort()]
    first = ordered & (ordered.cumsum(1, dtype=torch.int32) <= room[crowded])
    tied[crowded] = first[:, priority]
    return (above | tied).any(0).nonzero()[:, 0]


def pad_to(places: Int[Tensor, "F B T"], width: int) -> Int[Tensor, "F B _width"]:
    """The same with more targets, which no row has."""
    return torch.nn.functional.pad(places, (0, width - places.shape[2]))


def _precedes(
    scores: Float[Tensor, "N I"],
    priority: Int[Tensor, " I"],
    than_score: Float[Tensor, "N 1"],
    than_priority: Int[Tensor, "N 1"],
) -> Bool[Tensor, "N I"]:
    return (scores > than_score) | ((scores == than_score) & (priority < than_priority))
