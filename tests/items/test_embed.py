from __future__ import annotations

import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import BertModel, T5Config, T5Model

from recast.items.embed import MINILM, collaborative_embeddings, embed_texts, mix
from recast.policy.load import save_policy
from recast.types import Interactions, RecastError

Make = Callable[..., Interactions]


def test_mean_pooling_equals_one_text_at_a_time(encoder: Path) -> None:
    # [CLS] words [SEP] as token ids, unpadded; the last text is cut at the 6 positions there are.
    texts = ["red", "blue newer", "  ", "old", "green red blue old new"]
    ids = [[2, 4, 3], [2, 5, 8, 9, 3], None, [2, 7, 3], [2, 6, 4, 5, 7, 3]]
    found = embed_texts(texts, str(encoder))
    model = BertModel.from_pretrained(encoder).eval()
    assert found.dtype == torch.float32
    assert found.shape == (5, 8)
    for row, tokens in zip(found, ids, strict=True):
        if tokens is None:
            assert not row.any()
            continue
        with torch.inference_mode():
            states = model(torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(row, F.normalize(states.mean(0), dim=0))


def test_many_texts_keep_their_order(encoder: Path) -> None:
    texts = ["red " * (i % 4 + 1) + "blue" * (i % 3) for i in range(150)]
    found = embed_texts(texts, str(encoder))
    for i in (0, 63, 64, 149):
        torch.testing.assert_close(found[i : i + 1], embed_texts([texts[i]], str(encoder)))


def test_bad_texts_and_encoders_are_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecastError, match="all 2 item texts are empty: give `recast prepare`"):
        embed_texts(["", " "], str(encoder))
    with pytest.raises(
        RecastError, match=r"no-such-name holds no config.json: give a Hugging Face"
    ):
        embed_texts(["red"], "no-such-name")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RecastError, match=r"does not load .*: give a folder with a tokenizer and"):
        embed_texts(["red"], str(tmp_path))


def test_an_encoder_that_returns_nan_is_refused(encoder: Path, tmp_path: Path) -> None:
    for file in encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][5] = math.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RecastError, match=r"row 1 is not finite \(1 such rows\): check the encoder"
    ):
        embed_texts(["red", "blue"], str(tmp_path))


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


def test_what_is_no_encoder_is_refused(encoder: Path, tmp_path: Path) -> None:
    for name in ("policy", "t5"):
        shutil.copytree(encoder, tmp_path / name)
    shape = {"vocab_size": 10, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(**shape)).save_pretrained(tmp_path / "t5")
    with pytest.raises(
        RecastError, match=r"is no encoder \(T5Model has a decoder\): give a folder"
    ):
        embed_texts(["red"], str(tmp_path / "t5"))
    save_policy(tiny.tiny_policy("qwen3", tiny.tiny_catalog()), tmp_path / "p")
    with pytest.raises(RecastError, match=r"is no encoder \(.*\): give a folder with a tokenizer"):
        embed_texts(["red"], str(tmp_path / "p"))
    (tmp_path / "policy" / "tokenizer.json").write_text("{}")
    with pytest.raises(RecastError, match=r"policy does not load \(.*\): give a folder"):
        embed_texts(["red"], str(tmp_path / "policy"))


def test_a_damaged_cache_names_the_folder_to_delete(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECAST_CACHE", str(tmp_path))
    name, sha256, member = MINILM
    cached = tmp_path / f"{name.replace('==', '-')}-{sha256[:16]}" / member.replace("/", "+")
    shutil.copytree(encoder, cached)
    (cached / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(
        RecastError, match=rf"minilm does not load \(.*\): delete {re.escape(str(cached))}, it"
    ):
        embed_texts(["red"], "minilm")
