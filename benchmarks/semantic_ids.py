"""Residual k-means into semantic IDs, against plain faiss on one array of residuals."""

from __future__ import annotations

import faiss
import numpy as np
import torch

from benchmarks.harness import Row, main, paired, peak_rss_bytes
from recast.items.quantize import rq_kmeans


def plain_faiss(points: np.ndarray, num_levels: int, size: int) -> np.ndarray:
    """Three k-means, each on what the ones before it left over; faiss' own subsample."""
    residual = points.copy()
    codes = []
    for level in range(num_levels):
        kmeans = faiss.Kmeans(
            points.shape[1], size, niter=25, seed=level, max_points_per_centroid=256
        )
        kmeans.train(residual)
        _, assigned = kmeans.assign(residual)
        assert kmeans.centroids is not None
        residual -= kmeans.centroids[assigned]
        codes.append(assigned)
    return np.stack(codes, axis=1)


def run(smoke: bool) -> list[Row]:
    """Two rows: seconds, and memory with the input counted."""
    num_items, width, size = (20_000, 16, 64) if smoke else (1_000_000, 384, 256)
    points = torch.randn(num_items, width, generator=torch.Generator().manual_seed(0))
    faiss.omp_set_num_threads(torch.get_num_threads())
    found: dict[str, torch.Tensor] = {}

    def recast() -> None:
        found["recast"] = rq_kmeans(points, 3, size, seed=0)[0]

    def plain() -> None:
        found["faiss"] = torch.from_numpy(plain_faiss(points.numpy(), 3, size))

    held, plain_held = (1 + peak_rss_bytes(work) / points.nbytes for work in (recast, plain))
    theirs, ours = paired(plain, recast, repeats=1 if smoke else 2)
    assert torch.equal(found["recast"], found["faiss"]), "the codes differ"
    what = f"RQ-KMeans, {num_items:,} x {width}, 3 x {size}"
    against = "three faiss k-means on the successive residuals, same iterations and subsample"
    return [
        Row(
            name="rq_kmeans_time",
            what=f"{what}: CPU seconds",
            against=against,
            value=ours / theirs,
            bar=1.2,
            at_least=False,
            details=f"Recast {ours:.1f} s with its input checks, faiss {theirs:.1f} s, equal codes",
        ),
        Row(
            name="rq_kmeans_memory",
            what=f"{what}: peak resident memory, input included",
            against="the input",
            value=held,
            bar=2,
            at_least=False,
            details=f"input {points.nbytes / 1e6:,.0f} MB, plain faiss {plain_held:.2f}x",
        ),
    ]


if __name__ == "__main__":
    main(run)
