from __future__ import annotations

import math

import pytest
import torch

from recast.items import rq_vae as module
from recast.items.quantize import nearest_codes
from recast.items.rq_vae import RQVAE, encode, rq_vae
from recast.types import RecastError


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HIDDEN", (64,))


def blobs(count: int = 120) -> torch.Tensor:
    """Items around the corners of a square, each corner with two neighbours of its own."""
    draw = torch.Generator().manual_seed(0)
    item = torch.arange(count)
    corner = torch.stack([item % 2, item // 2 % 2], dim=1) * 8.0
    side = torch.stack([item // 4 % 2, item // 4 % 2], dim=1) * 2.0
    return corner + side + 0.1 * torch.randn(count, 2, generator=draw)


def train(vectors: torch.Tensor, size: int = 4, **changes: float) -> tuple[RQVAE, list[str]]:
    said: list[str] = []
    settings = {"steps": 200, "lr": 2e-3, **changes}
    made = rq_vae(vectors, 2, size, 0, say=said.append, **settings)  # type: ignore[arg-type]
    return made, said


def test_codes_say_what_the_vectors_are() -> None:
    """Each corner has a first code of its own; and the encoder gives the codes again."""
    vectors = blobs()
    state = torch.random.get_rng_state()
    made, said = train(vectors)
    corner = torch.arange(120) % 4
    for code in range(4):
        assert len(corner[made.codes[:, 0] == code].unique()) == 1
    assert [line.partition(":")[0] for line in said] == [
        f"RQ-VAE {n}/200" for n in (50, 100, 150, 200)
    ]
    assert said[-1] < "RQ-VAE 200/200: 30% of"
    assert torch.equal(encode(made.encoder, vectors), made.latents)
    assert torch.equal(nearest_codes(made.latents, made.codebooks), made.codes)
    assert torch.equal(torch.random.get_rng_state(), state)
    again, _ = train(vectors)
    assert torch.equal(again.codes, made.codes)


def test_a_dead_code_comes_to_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """k-means is made to start every code but one far away: resets bring them back."""

    def far(
        latents: torch.Tensor, levels: int, size: int, seed: int
    ) -> tuple[None, list[torch.Tensor]]:
        books = [torch.full((size, latents.shape[1]), 1e3) for _ in range(levels)]
        for book in books:
            book[0] = 0
        return None, books

    monkeypatch.setattr(module, "rq_kmeans", far)
    made, _ = train(blobs())
    assert [len(column.unique()) for column in made.codes.T] == [4, 4]
    monkeypatch.setattr(module, "_reset_dead", lambda *_: None)
    with pytest.raises(RecastError, match=r"^level 1 of the RQ-VAE uses 1 of 4 codes, its"):
        train(blobs())


def test_what_cannot_be_trained_is_said_in_a_line() -> None:
    with pytest.raises(RecastError, match=r"RQ-VAE uses 1 of 4 codes.*lower codebook"):
        train(torch.ones(50, 3))
    with pytest.raises(RecastError, match=r"not finite at step \d+: lower rq_vae_lr 1e\+30$"):
        train(blobs(), lr=1e30)
    with pytest.raises(RecastError, match="embeddings: row 1 is not finite"):
        train(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(RecastError, match="codebook_size is 4 for 2 items"):
        train(torch.zeros(2, 3))


def test_half_a_codebook_in_use_is_an_alarm() -> None:
    """40 copies of 4 different items: of 10 codes 4 can be used."""
    vectors = 8.0 * torch.eye(4).repeat(40, 1)
    said: list[str] = []
    rq_vae(vectors, 1, 10, 0, steps=100, lr=1e-3, say=said.append)
    assert said[-1].startswith("warning: level 1 of the RQ-VAE uses 4 of 10 codes: lower")
