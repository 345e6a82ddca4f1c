from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from recast.items.embed import (
    collaborative_embeddings,
    has_vectors,
    load_embeddings,
    load_vectors,
    mix,
)
from recast.types import Interactions, RecastError

Make = Callable[..., Interactions]


def slow_ppmi(users: list[int], items: list[int], size: int) -> torch.Tensor:
    counts: dict[tuple[int, int], float] = defaultdict(float)
    for i, (user, left) in enumerate(zip(users, items, strict=True)):
        for j in range(i + 1, min(i + 11, len(items))):
            if users[j] == user:
                counts[left, items[j]] += 0.9 ** (j - i - 1)
                counts[items[j], left] += 0.9 ** (j - i - 1)
    own = [sum(v for (a, _), v in counts.items() if a == i) for i in range(size)]
    table = torch.zeros(size, size, dtype=torch.float64)
    for (a, b), value in counts.items():
        total = sum(n**0.75 for n in own)
        table[a, b] = max(0.0, math.log(value * total / (own[a] * own[b] ** 0.75)))
    return table


def test_collaborative_embeddings_equal_a_dense_svd(make_interactions: Make) -> None:
    generator = torch.Generator().manual_seed(0)
    users = sorted(torch.randint(0, 6, (80,), generator=generator).tolist())
    items = torch.randint(0, 9, (80,), generator=generator).tolist()
    data = make_interactions(users, items, ["train"] * 80, 10)
    found = collaborative_embeddings(data, 4, seed=0)
    left, strength, _ = torch.linalg.svd(slow_ppmi(users, items, 10))
    wanted = F.normalize((left * strength.sqrt())[:, :4], dim=1)
    wanted[9] = 0  # item 9 has no event
    assert found.dtype == torch.float32
    assert not found[9].any()
    # Singular vectors are known up to their sign: compare inner products.
    torch.testing.assert_close(found @ found.T, (wanted @ wanted.T).float())


def test_items_bought_together_are_near(make_interactions: Make) -> None:
    users = [u for u in range(8) for _ in range(3)]
    items = [i for u in range(8) for i in ((0, 1, 2) if u % 2 else (3, 4, 5))]
    data = make_interactions(users, items, ["train"] * 24, 7)
    near = collaborative_embeddings(data, 2, seed=0)
    wanted = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3), torch.zeros(1, 1))
    torch.testing.assert_close(near @ near.T, wanted, atol=1e-5, rtol=0)


def test_only_events_of_sft_are_read(make_interactions: Make) -> None:
    users = [0] * 6 + [1] * 6
    splits = ["train", "train", "train", "rl", "valid", "test"] * 2
    first = make_interactions(users, [0, 1, 2, 3, 4, 5, 2, 1, 3, 0, 0, 0], splits, 6)
    other = make_interactions(users, [0, 1, 2, 0, 1, 1, 2, 1, 3, 5, 4, 4], splits, 6)
    found = collaborative_embeddings(first, 3, seed=0)
    assert torch.equal(found, collaborative_embeddings(other, 3, seed=0))
    assert found.any(1).tolist() == [True, True, True, True, False, False]


def test_the_slice_of_rl_is_read_where_it_is_named(make_interactions: Make) -> None:
    splits = ["train", "train", "rl", "valid", "test"]
    data = make_interactions([0] * 5, [0, 1, 2, 3, 4], splits, 5)
    found = collaborative_embeddings(data, 3, seed=0, splits=("train", "rl"))
    assert found.any(1).tolist() == [True, True, True, False, False]
    moved = make_interactions([0] * 5, [0, 1, 2, 3, 4], ["train"] * 3 + splits[3:], 5)
    assert torch.equal(found, collaborative_embeddings(moved, 3, seed=0))


def test_the_seed_decides_and_the_global_generator_is_left_alone(make_interactions: Make) -> None:
    data = make_interactions([0] * 40, list(range(40)), ["train"] * 40, 40)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = collaborative_embeddings(data, 4, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(collaborative_embeddings(data, 4, seed=3), found)


def test_without_neighbours_all_is_zero(make_interactions: Make) -> None:
    data = make_interactions([0, 1], [0, 1], ["train", "train"], 3)
    assert torch.equal(collaborative_embeddings(data, 2, seed=0), torch.zeros(3, 2))
    data = make_interactions([0, 1], [0, 1], ["test", "test"], 3)
    assert torch.equal(collaborative_embeddings(data, 2, seed=0), torch.zeros(3, 2))


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_mix_shares_the_variance(weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    text, other = torch.randn(50, 6, generator=generator), torch.rand(50, 3, generator=generator)
    variance = mix(text, other, weight).var(0, correction=0)
    assert float(variance.sum()) == pytest.approx(1)
    assert float(variance[6:].sum()) == pytest.approx(weight)


def test_mix_leaves_a_constant_block_as_it_is() -> None:
    mixed = mix(torch.tensor([[0.0], [2.0]]), torch.full((2, 1), 7.0), 0.75)
    torch.testing.assert_close(mixed, torch.tensor([[0.0, 7.0], [1.0, 7.0]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"damaged \(Error while deserializing header"),
        (torch.ones(8), r"damaged \('text' has the shape \[8\]\): make it again with"),
        (torch.ones(7, 2), "embeds 7 items, which are not the 8 of the catalogue"),
        (torch.ones(8, 70_000), r"damaged \('text' has the shape \[8, 70000\]\)"),
        (torch.full((8, 2), math.inf), r"damaged \(it holds no finite table of vectors\)"),
        (torch.zeros(8, 2), r"damaged \(it holds no finite table of vectors\)"),
        (torch.ones(8, 2, dtype=torch.int8), r"damaged \(it holds no finite table of vectors\)"),
    ],
)
def test_stored_embeddings_of_another_shape(
    tmp_path: Path, text: torch.Tensor | None, message: str
) -> None:
    catalog = tiny.tiny_catalog()
    catalog.write(tmp_path)
    file = tmp_path / "embeddings.safetensors"
    save_file({"text": torch.ones(8, 2, dtype=torch.float16)}, file)
    assert load_embeddings(str(tmp_path), catalog)[0].tolist() == pytest.approx([0.5**0.5] * 2)
    if text is None:
        file.write_bytes(b"\xff" * 99)
    else:
        save_file({"text": text}, file)
    with pytest.raises(RecastError, match=message):
        load_embeddings(str(tmp_path), catalog)


def test_the_vectors_of_a_catalogue(tmp_path: Path) -> None:
    """Either block as it was kept, both as they were mixed."""
    catalog, folder = tiny.tiny_catalog(), str(tmp_path)
    catalog.write(tmp_path)
    file, card = tmp_path / "embeddings.safetensors", tmp_path / "card.json"
    assert not has_vectors(folder)
    with pytest.raises(RecastError, match=r"holds no vectors \(embeddings.safetensors\): give the"):
        load_vectors(folder, catalog)
    text, graph = torch.rand(8, 3), torch.zeros(8, 2)
    for name, table in (("text", text), ("collaborative", graph)):
        save_file({name: table, "centroids.0": text[:2] + 1}, file)
        assert has_vectors(folder)
        assert load_vectors(folder, catalog).equal(table)  # zeros too: nobody bought anything
    save_file({"text": text, "collaborative": graph + text[:, :2]}, file)
    card.write_text('{"collaborative_weight": 0.25}')
    assert load_vectors(folder, catalog).equal(mix(text, text[:, :2], 0.25))
    for broken in ("{}", '{"collaborative_weight": 1.0}', "{"):
        card.write_text(broken)
        with pytest.raises(RecastError, match=r"card.json is damaged .*make it again with `recast"):
            load_vectors(folder, catalog)
    for tables, message in (
        ({"centroids.0": text}, "it holds neither 'text' nor 'collaborative'"),
        ({"collaborative": text[:7]}, "embeds 7 items, which are not the 8 of the catalogue"),
        ({"collaborative": text * math.nan}, "it holds no finite table of vectors"),
    ):
        save_file(tables, file)
        with pytest.raises(RecastError, match=message):
            load_vectors(folder, catalog)
