"""Items that share a semantic ID: codes with repeats in, codes without repeats out."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.types import RecastError


def resolve_nearest_free(
    codes: Int[Tensor, "I L"],
    embeddings: Float[Tensor, "I D"],
    centroids: list[Float[Tensor, "_K D"]],
    taken: Int[Tensor, "N L"] | None = None,
) -> Int[Tensor, "I L"]:
    """Move all but one of the items that share a SID to the nearest free codes, and all that have
    one of those `taken` by others.

    The item nearest to its last centroid keeps the SID. The others, nearest first, take the nearest
    free last code under their own prefix. Where a prefix has no free code left, its remaining items
    are placed after all others: each steps back level by level until a shorter prefix has room, and
    from there takes, level by level, the nearest code that has room below it.
    Equal distances: the lower item, the lower code. Raises `RecastError` when there are more items
    than SIDs.

    >>> one = torch.tensor([[0.0], [10.0], [20.0]])
    >>> resolve_nearest_free(torch.tensor([[0], [0]]), torch.tensor([[1.0], [0.5]]), [one]).tolist()
    [[1], [0]]
    """
    table, points = codes.numpy().copy(), embeddings.numpy()
    books = [book.numpy() for book in centroids]
    num_levels = len(books)
    # room[depth]: SIDs below a prefix of `depth` codes.
    room = [math.prod(len(book) for book in books[depth:]) for depth in range(num_levels + 1)]
    others = set() if taken is None else {tuple(sid) for sid in taken.tolist()}
    require_room(len(table) + len(others), tuple(len(book) for book in books))
    residual = points - sum(book[table[:, level]] for level, book in enumerate(books))
    order, is_first = _by_sid(table, np.square(residual).sum(axis=1))
    is_first &= np.array([tuple(sid) not in others for sid in table[order].tolist()])
    waiting = order[~is_first].tolist()
    if not waiting:
        return codes
    below: Counter[tuple[int, ...]] = Counter()
    for sid in (*table[order[is_first]].tolist(), *others):
        below.update(tuple(sid[:depth]) for depth in range(num_levels + 1))
    for depth in range(num_levels - 1, -1, -1):
        refused = []
        for item in waiting:
            prefix = tuple(table[item, :depth].tolist())
            if below[prefix] == room[depth]:
                refused.append(item)
                continue
            sid = _descend(points[item], prefix, books, below, room)
            below.update(sid[:length] for length in range(num_levels + 1))
            table[item] = sid
        waiting = refused
    assert below[()] == len(table) + len(others)
    return torch.from_numpy(table)


def require_room(num_items: int, sizes: tuple[int, ...]) -> None:
    """Raise `RecastError` when there are more items than SIDs of these codebooks."""
    if num_items > math.prod(sizes):
        raise RecastError(
            f"{num_items} items do not fit into {math.prod(sizes)} semantic IDs "
            f"({len(sizes)} levels of {sizes[0]} codes): raise num_levels or codebook_size"
        )


def _descend(
    point: np.ndarray,
    prefix: tuple[int, ...],
    books: list[np.ndarray],
    below: Counter[tuple[int, ...]],
    room: list[int],
) -> tuple[int, ...]:
    """The SID below `prefix`, which has room, by the nearest code with room at every level."""
    residual = point - sum(book[code] for book, code in zip(books, prefix, strict=False))
    for level in range(len(prefix), len(books)):
        distance = np.square(books[level] - residual).sum(axis=1)
        nearest = np.argsort(distance, kind="stable").tolist()
        code = next(c for c in nearest if below[(*prefix, c)] < room[level + 1])
        prefix = (*prefix, code)
        residual = residual - books[level][code]
    return prefix


def resolve_extra_level(codes: Int[Tensor, "I L"]) -> Int[Tensor, "I L_plus_one"]:
    """One more level that counts the items of each SID from 0, in the order of the items.

    >>> resolve_extra_level(torch.tensor([[5, 1], [2, 0], [5, 1]])).tolist()
    [[5, 1, 0], [2, 0, 0], [5, 1, 1]]
    """
    order, is_first = _by_sid(codes.numpy(), np.arange(len(codes)))
    position = np.arange(len(order))
    count = np.empty(len(order), dtype=codes.numpy().dtype)
    count[order] = position - np.maximum.accumulate(np.where(is_first, position, 0))
    return torch.cat([codes, torch.from_numpy(count)[:, None]], dim=1)


def resolve_at_random(
    codes: Int[Tensor, "I L"], sizes: tuple[int, ...], seed: int
) -> Int[Tensor, "I L"]:
    """All but the first of the items that share a SID get free ones, each as likely as any other.

    Raises `RecastError` when there are more items than SIDs.

    >>> resolve_at_random(torch.tensor([[0], [0], [2]]), (3,), seed=0).tolist()
    [[0], [1], [2]]
    """
    require_room(len(codes), sizes)
    draw = torch.Generator().manual_seed(seed)
    table, total = codes.clone(), math.prod(sizes)
    while True:
        order, is_first = _by_sid(table.numpy(), np.arange(len(table)))
        repeats = torch.from_numpy(np.sort(order[~is_first]))
        if not len(repeats):
            return table
        if total <= 2 * len(table):  # few are free: chance would take long to meet them
            is_free = torch.ones(sizes, dtype=torch.bool)
            is_free[table.unbind(1)] = False
            free = is_free.nonzero()
            table[repeats] = free[torch.randperm(len(free), generator=draw)[: len(repeats)]]
            continue
        for level, size in enumerate(sizes):
            table[repeats, level] = torch.randint(size, (len(repeats),), generator=draw)


def _by_sid(table: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items sorted by SID, then by `within`, then by index; and which of them open a new SID."""
    order = np.lexsort((within, *table.T[::-1]))
    ordered = table[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order, is_first
