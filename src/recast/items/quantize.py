"""Residual k-means: one vector per item in, one code per item and level out (RQ-KMeans, faiss).

Level 1 clusters the vectors; each further level clusters what the levels above left over, the
vector minus the centroids of its codes so far.
"""

from __future__ import annotations

import math

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.types import RecastError

_ITERATIONS = 25
_BALANCED_ITERATIONS = 10
_POINTS_PER_CENTROID = 256  # faiss' own default: k-means trains on at most so many vectors
_ROWS = 2**13  # vectors worked on at a time; a multiple of faiss' own blocks (4096)


def choose_shape(num_items: int, num_levels: int | None = None) -> tuple[int, int]:
    """Levels (3 unless given) and codebook size for a catalogue.

    The size is the smallest power of two with size ** levels >= 8 * items (so that a collision
    finds a free code nearby), at most 8192 and at most the items. No larger than that: every
    code then has more events to be learnt from (docs/log.md).

    >>> [choose_shape(n) for n in (3, 64, 1_682, 100_000, 1_000_000)]
    [(3, 2), (3, 8), (3, 32), (3, 128), (3, 256)]
    """
    levels = 3 if num_levels is None else num_levels
    wanted = (8 * num_items) ** (1 / levels)
    # 1e-9: the cube root of 512 is 8, not 8.000000000000002.
    size = 2 ** math.ceil(math.log2(wanted) - 1e-9)
    return levels, min(size, 8192, 2 ** int(math.log2(num_items)))


def choose_clusters(num_items: int) -> int:
    """Clusters for a catalogue in which the item itself is the last token: the smallest power of
    two that is at least twice the square root of the items, 256 for Amazon Beauty's 12,101, and at
    most the items.

    >>> [choose_clusters(n) for n in (1, 3, 1_682, 12_101, 100_000)]
    [1, 2, 128, 256, 1024]
    """
    size = 2 ** math.ceil(math.log2(2 * math.sqrt(num_items)) - 1e-9)
    return int(min(size, 2 ** int(math.log2(num_items))))


def rq_kmeans(
    embeddings: Float[Tensor, "I D"],
    num_levels: int,
    codebook_size: int,
    seed: int,
    balance: bool = False,
) -> tuple[Int[Tensor, "I L"], list[Float[Tensor, "_K D"]]]:
    """Codes, each the centroid nearest to the residual, and the centroids of every level.

    The same seed gives the same codes, whatever the number of threads. With `balance` no code has
    more than ceil(items / codes) items. Raises `RecastError` when an embedding is not finite or
    there are fewer items than codes.
    """
    require_finite(embeddings, "embeddings")
    require_enough(len(embeddings), codebook_size)
    faiss.omp_set_num_threads(torch.get_num_threads())
    codes = torch.empty(len(embeddings), num_levels, dtype=torch.long)
    codebooks: list[np.ndarray] = []

    def residual(rows: Tensor | slice) -> np.ndarray:
        return _residual(embeddings[rows], codes[rows], codebooks)

    for level in range(num_levels):
        level_seed = (seed + level) % 2**31  # faiss: int32
        chosen = _training_rows(len(embeddings), codebook_size, level_seed)
        centroids = _kmeans(residual(chosen), codebook_size, level_seed)
        if balance:
            centroids, assigned = _balanced(residual(slice(None)), centroids)
            codes[:, level] = torch.from_numpy(assigned)
        else:
            for rows in _chunks(len(embeddings)):
                codes[rows, level] = _nearest(residual(rows), centroids)
        codebooks.append(centroids)
    return codes, [torch.from_numpy(centroids) for centroids in codebooks]


def nearest_codes(
    points: Float[Tensor, "N D"], centroids: list[Float[Tensor, "_K D"]]
) -> Int[Tensor, "N L"]:
    """Level by level the centroid nearest to what the levels above leave over.

    >>> nearest_codes(torch.tensor([[9.0], [1.0]]), [torch.tensor([[0.0], [10.0]])] * 2).tolist()
    [[1, 0], [0, 0]]
    """
    codes = torch.empty(len(points), len(centroids), dtype=torch.long)
    books = [book.float().numpy() for book in centroids]
    for rows in _chunks(len(points)):
        for level, book in enumerate(books):
            residual = _residual(points[rows], codes[rows], books[:level])
            codes[rows, level] = _nearest(residual, book)
    return codes


def random_codes(num_items: int, sizes: tuple[int, ...], seed: int) -> Int[Tensor, "I L"]:
    """Each code of each level as likely as any other: items of one SID are alike in nothing."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(n, (num_items,), generator=draw) for n in sizes], dim=1)


def require_enough(num_items: int, codebook_size: int) -> None:
    """Raise `RecastError` when there are fewer items than codes."""
    if codebook_size > num_items:
        raise RecastError(
            f"codebook_size is {codebook_size} for {num_items} items: give at most as many codes "
            "as items"
        )


def require_finite(embeddings: Float[Tensor, "I D"], name: str) -> None:
    """Raise `RecastError` naming the first row that holds NaN or infinity."""
    chunks = (embeddings[rows] for rows in _chunks(len(embeddings)))
    bad = ~torch.cat([chunk.abs().amax(1).isfinite() for chunk in chunks])
    if bad.any():
        raise RecastError(
            f"{name}: row {int(bad.nonzero()[0])} is not finite ({int(bad.sum())} such rows): "
            "check the encoder's weights or the embeddings you gave"
        )


def _nearest(points: np.ndarray, centroids: np.ndarray) -> Int[Tensor, " N"]:
    return torch.from_numpy(faiss.knn(points, centroids, 1)[1][:, 0])


def _chunks(num_rows: int) -> list[slice]:
    """All rows in turn; the last chunk takes a short rest along: faiss rounds a tiny one
    otherwise than a long one."""
    starts = range(0, max(num_rows - _ROWS // 2, 1), _ROWS)
    return [slice(i, j) for i, j in zip(starts, [*starts[1:], num_rows], strict=True)]


def _residual(
    embeddings: Float[Tensor, "N D"], codes: Int[Tensor, "N L"], codebooks: list[np.ndarray]
) -> np.ndarray:
    """What the levels so far leave over: made again for every chunk, never held as a whole unless
    k-means trains on all of it."""
    left = embeddings.float().numpy().copy()
    for rows in _chunks(len(left)):
        for level, centroids in enumerate(codebooks):
            left[rows] -= centroids[codes[rows, level].numpy()]
    return left


def _training_rows(num_rows: int, size: int, seed: int) -> Int[Tensor, " N"] | slice:
    """The rows that faiss would draw for a k-means of this seed, in its order."""
    count = size * _POINTS_PER_CENTROID
    if num_rows <= count:
        return slice(None)
    order = np.empty(num_rows, dtype=np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), num_rows, seed)  # type: ignore[attr-defined]
    return torch.from_numpy(order[:count]).long()


def _kmeans(points: np.ndarray, size: int, seed: int) -> np.ndarray:
    kmeans = faiss.Kmeans(
        points.shape[1],
        size,
        niter=_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,  # no warning about small catalogues
        max_points_per_centroid=_POINTS_PER_CENTROID,
    )
    kmeans.train(points)
    return np.asarray(kmeans.centroids)


def _balanced(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's iterations with `_assign_capped`; an empty cluster keeps its centroid."""
    capacity = math.ceil(len(points) / len(centroids))
    for _ in range(_BALANCED_ITERATIONS):
        assigned = _assign_capped(points, centroids, capacity)
        sums = np.zeros(centroids.shape, dtype=np.float64)
        np.add.at(sums, assigned, points)
        counts = np.bincount(assigned, minlength=len(centroids))[:, None]
        means = (sums / np.maximum(counts, 1)).astype(np.float32)
        centroids = np.where(counts > 0, means, centroids)
    return centroids, assigned


def _assign_capped(points: np.ndarray, centroids: np.ndarray, capacity: int) -> np.ndarray:
    """Cluster of every point, none above `capacity`.

    In rounds: every waiting point asks for the nearest cluster that has room, and the cluster takes
    the nearest of those who ask. No points x clusters matrix is built, and a round with refusals
    fills a cluster, so there are at most as many rounds as clusters.
    """
    assigned = np.full(len(points), -1)
    room = np.full(len(centroids), capacity)
    waiting = np.arange(len(points))
    while len(waiting):
        open_clusters = np.flatnonzero(room)
        distance, nearest = faiss.knn(points[waiting], centroids[open_clusters], 1)
        order = np.lexsort((distance[:, 0], nearest[:, 0]))
        asked = open_clusters[nearest[order, 0]]
        place = np.arange(len(asked)) - np.searchsorted(asked, asked)
        taken = place < room[asked]
        assigned[waiting[order[taken]]] = asked[taken]
        room -= np.bincount(asked[taken], minlength=len(room))
        waiting = np.sort(waiting[order[~taken]])
    return assigned
