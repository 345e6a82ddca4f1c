from __future__ import annotations

import math

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast.items.quantize import choose_shape, rq_kmeans
from recast.types import RecastError


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_residual_kmeans_by_hand() -> None:
    # Level 1: {0, 1} around 0.5 and {10, 11} around 10.5; left over: -0.5, 0.5, -0.5, 0.5.
    codes, centroids = rq_kmeans(column(0, 1, 10, 11), 2, 2, seed=0)
    assert sorted(centroids[0].flatten().tolist()) == [0.5, 10.5]
    assert sorted(centroids[1].flatten().tolist()) == [-0.5, 0.5]
    spelt = [[float(centroids[level][c]) for level, c in enumerate(row)] for row in codes.tolist()]
    assert spelt == [[0.5, -0.5], [0.5, 0.5], [10.5, -0.5], [10.5, 0.5]]


def test_codes_are_the_nearest_centroids_of_the_residuals() -> None:
    points = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    codes, centroids = rq_kmeans(points, 3, 8, seed=1)
    residual = points
    for level, book in enumerate(centroids):
        assert book.shape == (8, 5)
        distance = torch.cdist(residual, book)
        own = distance.gather(1, codes[:, level : level + 1])[:, 0]
        torch.testing.assert_close(own, distance.min(1).values)
        residual = residual - book[codes[:, level]]
    assert residual.square().sum() < 0.5 * points.square().sum()


def on_whole_residuals(
    points: torch.Tensor, num_levels: int, size: int, seed: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Slow reference: faiss chooses its own sample, one array holds all residuals."""
    residual, codes, books = points.numpy().copy(), [], []
    for level in range(num_levels):
        kmeans = faiss.Kmeans(
            residual.shape[1],
            size,
            niter=25,
            seed=seed + level,
            min_points_per_centroid=1,
            max_points_per_centroid=256,
        )
        kmeans.train(residual)
        assigned = faiss.knn(residual, kmeans.centroids, 1)[1][:, 0]
        residual -= kmeans.centroids[assigned]
        codes.append(torch.from_numpy(assigned))
        books.append(torch.from_numpy(kmeans.centroids))
    return torch.stack(codes, dim=1), books


@pytest.mark.parametrize(("num_items", "size"), [(300, 8), (16_391, 8), (20_487, 128), (24_576, 2)])
def test_chunks_and_our_own_sample_change_no_bit(num_items: int, size: int) -> None:
    """Fewer items than a chunk, 7 more than two, all items in the sample, whole chunks."""
    draw = torch.Generator().manual_seed(num_items)
    points = torch.randn(num_items, 24, generator=draw)
    codes, books = rq_kmeans(points, 3, size, seed=5)
    wanted, wanted_books = on_whole_residuals(points, 3, size, seed=5)
    assert torch.equal(codes, wanted)
    assert all(torch.equal(a, b) for a, b in zip(books, wanted_books, strict=True))


@pytest.mark.parametrize("balance", [False, True])
def test_same_seed_same_codes_for_any_number_of_threads(balance: bool) -> None:
    points = torch.randn(1000, 32, generator=torch.Generator().manual_seed(0))
    before = points.clone()
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 1, 2):
            torch.set_num_threads(count)
            runs.append(rq_kmeans(points, 1, 16, seed=0, balance=balance))
    finally:
        torch.set_num_threads(threads)
    for codes, centroids in runs[1:]:
        assert torch.equal(codes, runs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(centroids, runs[0][1], strict=True))
    assert torch.equal(points, before)
    assert not torch.equal(rq_kmeans(points, 1, 16, seed=1, balance=balance)[0], runs[0][0])


def test_balance_by_hand() -> None:
    # Plain: {0, 1, 2} and {10}. Capped at 2: the cluster around 1 keeps 1 and 0, and 2 joins 10.
    points = column(0, 1, 2, 10)
    plain, _ = rq_kmeans(points, 1, 2, seed=0)
    capped, centroids = rq_kmeans(points, 1, 2, seed=0, balance=True)
    assert plain[:3].unique().tolist() != plain.unique().tolist()
    assert [float(centroids[0][code]) for code in capped[:, 0]] == [0.5, 0.5, 6.0, 6.0]


@settings(deadline=None, max_examples=30)
@given(num_items=st.integers(1, 60), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_balance_caps_every_code(num_items: int, size: int, seed: int) -> None:
    size = min(size, num_items)
    # Few distinct points: ties and empty clusters included.
    points = torch.randint(0, 4, (num_items, 2), generator=torch.Generator().manual_seed(seed))
    codes, centroids = rq_kmeans(points.float(), 2, size, seed, balance=True)
    for level in range(2):
        assert torch.bincount(codes[:, level]).max() <= math.ceil(num_items / size)
        assert centroids[level].isfinite().all()


def test_fewer_distinct_points_than_codes_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    codes, centroids = rq_kmeans(column(3, 3, 3, 8), 2, 3, seed=0)
    assert codes.shape == (4, 2)
    assert len({tuple(row) for row in codes.tolist()}) == 2
    assert all(book.isfinite().all() for book in centroids)
    assert capfd.readouterr() == ("", "")


def test_one_item_one_code() -> None:
    assert rq_kmeans(column(3), *choose_shape(1), seed=0)[0].tolist() == [[0, 0, 0]]


def test_shape_follows_the_catalogue() -> None:
    # 8 * 1,682 = 13,456: cube root 23.8 -> 32, square root 116 -> 128.
    assert choose_shape(1682) == (3, 32)
    assert choose_shape(1682, num_levels=2) == (2, 128)
    assert choose_shape(64) == (3, 8)
    assert choose_shape(65) == (3, 16)
    assert choose_shape(10**9) == (3, 2048)
    assert choose_shape(10**11) == (3, 8192)


@given(st.integers(1, 5000), st.one_of(st.none(), st.integers(2, 5)))
def test_every_catalogue_fits_its_shape(num_items: int, num_levels: int | None) -> None:
    levels, size = choose_shape(num_items, num_levels)
    assert size & (size - 1) == 0
    assert size <= num_items
    assert size**levels >= num_items * (8 if num_items >= 16 else 1)


def test_bad_embeddings_are_refused() -> None:
    with pytest.raises(RecastError, match=r"embeddings: row 1 is not finite \(2 such rows\)"):
        rq_kmeans(column(0, math.nan, math.inf), 1, 2, seed=0)
    late = torch.zeros(30_000, 2)
    late[29_999, 1] = -math.inf
    with pytest.raises(RecastError, match=r"embeddings: row 29999 is not finite \(1 such rows\)"):
        rq_kmeans(late, 1, 2, seed=0)
    with pytest.raises(RecastError, match="codebook_size is 5 for 4 items: give at most as many"):
        rq_kmeans(column(0, 1, 2, 3), 1, 5, seed=0)


def test_the_largest_seed_is_taken() -> None:
    codes = rq_kmeans(column(*range(600)), 2, 2, seed=2**31 - 1)[0]
    assert codes.shape == (600, 2)
