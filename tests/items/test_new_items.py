"""From 24 items to 30: the first keep their codes, a trained policy writes the others too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from recast.config import EvaluateConfig, ModelConfig, PrepareConfig, TokenizeConfig
from recast.data.prepare import prepare
from recast.evaluation.evaluate import evaluate_policy
from recast.items.card import describe
from recast.items.catalog import load_catalog
from recast.items.collisions import resolve_nearest_free
from recast.items.embed import load_vectors
from recast.items.quantize import nearest_codes
from recast.items.tokenize import tokenize
from recast.policy.create import create_policy
from recast.policy.load import load_policy, save_policy
from recast.policy.tasks import load_task
from recast.rollout.beam import beam_search
from recast.types import RecastError

COLOURS = ("red", "blue", "green", "old", "new")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`old`: 20 users, 24 items; `new`: 30 items, six of them new, two of these without events.
    Item ids are such that the new ones stand between the others."""
    folder = tmp_path_factory.mktemp("walk")
    for name, count in (("old", 24), ("new", 30)):
        last = 24 if name == "old" else 28
        events = [
            f"{u},{(u * 7 + t * (u % 3 + 1)) % last},{t * 20 + u}"
            for u in range(20)
            for t in range(12)
        ]
        ids = {i: (f"{i}" if i < 24 else f"1{i}") for i in range(count)}
        events = [f"{u},{ids[int(i)]},{t}" for u, i, t in (e.split(",") for e in events)]
        (folder / f"{name}.csv").write_text("\n".join(["user,item,time", *events]))
        items = [f"{ids[i]},{COLOURS[i % 5]} {COLOURS[i // 5 % 5]}" for i in range(count)]
        (folder / f"{name}-items.csv").write_text("\n".join(["item,title", *items]))
        prepare(
            PrepareConfig(
                interactions=str(folder / f"{name}.csv"),
                items=str(folder / f"{name}-items.csv"),
                text=["title"],
                output=str(folder / name),
            )
        )
    return folder


def make(walk: Path, encoder: Path, name: str, **given: Any) -> None:
    settings = {"items_as": "codes", "collaborative_dim": 4, "encoder": str(encoder), **given}
    if not (walk / name).exists():
        tokenize(TokenizeConfig(data=str(walk / "old"), output=str(walk / name), **settings))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"quantizer": "rq_vae", "rq_vae_steps": 100, "collaborative_weight": 1.0},
        {"resolve": "extra_level", "num_levels": 2, "codebook_size": 4},
    ],
)
def test_old_items_keep_their_codes(
    walk: Path, encoder: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    name = f"catalog-{len(given)}"
    make(walk, encoder, name, **given)
    old = load_catalog(walk / name)
    out = tmp_path / "out"
    extend = {"data": str(walk / "new"), "extend": str(walk / name)}
    new = tokenize(TokenizeConfig(**extend, output=str(out)))
    place = [new.item_ids.index(item) for item in old.item_ids]
    assert torch.equal(new.codes[place], old.codes)
    assert (new.num_items, new.trie.num_leaves, new.codebook_sizes) == (30, 30, old.codebook_sizes)
    before, after = load_vectors(str(walk / name), old), load_vectors(str(out), new)
    torch.testing.assert_close(after[place], before)
    assert "6 of them are new to" in describe(out)
    # Extended again, by nothing: the same.
    again = tokenize(
        TokenizeConfig(data=extend["data"], extend=str(out), output=str(tmp_path / "again"))
    )
    assert torch.equal(again.codes, new.codes)
    if not given:
        books = [load_file(out / "embeddings.safetensors")[f"centroids.{n}"] for n in range(3)]
        fresh = [item for item in range(30) if item not in place]
        wanted = resolve_nearest_free(
            nearest_codes(after[fresh], books), after[fresh], books, taken=old.codes.long()
        )
        assert torch.equal(new.codes[fresh].long(), wanted)


def test_a_policy_writes_new_items_with_its_old_weights(
    walk: Path, encoder: Path, tmp_path: Path
) -> None:
    make(walk, encoder, "catalog-0")
    extend = {"data": str(walk / "new"), "extend": str(walk / "catalog-0")}
    tokenize(TokenizeConfig(**extend, output=str(tmp_path / "longer")))
    shape = ModelConfig(hidden_size=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16)
    save_policy(create_policy(shape, load_catalog(walk / "catalog-0"), 4, 0), tmp_path / "policy")
    with pytest.raises(RecastError, match="the data has 30 items, the catalogue 24"):
        load_task(walk / "new", load_policy(tmp_path / "policy"))
    policy = load_policy(tmp_path / "policy", tmp_path / "longer")
    task = load_task(walk / "new", policy)
    prompts = task.prompts(task.rows("test")[:1])
    written = beam_search(policy, prompts, 30).items[0].tolist()
    assert set(written) - {-1} == set(range(30)) - set(prompts.seen[0].tolist())
    save_policy(policy, tmp_path / "saved")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("policy", "saved")]
    assert weights[0] == weights[1]
    assert torch.equal(load_policy(tmp_path / "saved").catalog.codes, policy.catalog.codes)
    given = {"data": str(walk / "new"), "policy": str(tmp_path / "policy"), "beam_width": 10}
    means = evaluate_policy(
        EvaluateConfig(
            **given, catalog=str(tmp_path / "longer"), output=str(tmp_path / "eval"), exact_rows=0
        )
    )
    assert means["rows"] > 0
    model = ModelConfig(path=str(tmp_path / "policy"))
    started = create_policy(model, load_catalog(tmp_path / "longer"), 4, 0)
    assert started.catalog.num_items == 30
    make(walk, encoder, "other", seed=1, codebook_size=4)
    with pytest.raises(RecastError, match=r"codebooks of the sizes \[8, 8, 8\], not \[4, 4, 4\]"):
        load_policy(tmp_path / "policy", walk / "other")
    make(walk, encoder, "moved", seed=2)
    with pytest.raises(RecastError, match=r"writes other semantic IDs .*\(item '\d+' has others\)"):
        load_policy(tmp_path / "policy", walk / "moved")


def test_items_of_rows_are_extended_by_their_texts(encoder: Path, tmp_path: Path) -> None:
    for name, count in (("old", 12), ("new", 15)):
        lines = [json.dumps({"prompt": "Next?", "targets": ["i1"], "user": u}) for u in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        items = [f"i{i},{COLOURS[i % 5]} {COLOURS[i // 5]}" for i in range(count)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["item,title", *items]))
        settings = {"items": str(tmp_path / f"{name}.csv"), "text": ["title"]}
        out, rows = str(tmp_path / name), str(tmp_path / f"{name}.jsonl")
        prepare(PrepareConfig(rows=rows, output=out, **settings))
    settings = {"items_as": "codes", "encoder": str(encoder), "collaborative_weight": 0.0}
    made = str(tmp_path / "made")
    old = tokenize(TokenizeConfig(data=str(tmp_path / "old"), output=made, **settings))
    data, longer = str(tmp_path / "new"), str(tmp_path / "longer")
    new = tokenize(TokenizeConfig(data=data, extend=made, output=longer))
    assert new.num_items == 15
    assert torch.equal(new.codes[[new.item_ids.index(i) for i in old.item_ids]], old.codes)


def test_what_cannot_be_extended(walk: Path, encoder: Path, tmp_path: Path) -> None:
    make(walk, encoder, "item", items_as="item", collaborative_weight=1.0)
    make(walk, encoder, "random", quantizer="random")
    make(walk, encoder, "catalog-0")

    def refused(line: str, **given: Any) -> None:
        with pytest.raises(RecastError, match=line):
            tokenize(TokenizeConfig(data=str(walk / "new"), output=str(tmp_path / "out"), **given))
        assert not (tmp_path / "out").exists()

    refused("every item has a token of its own: a policy has no", extend=str(walk / "item"))
    refused("were given or drawn, so it kept nothing", extend=str(walk / "random"))
    refused("seed is 1: with extend it is that of", extend=str(walk / "catalog-0"), seed=1)
    refused("nowhere holds no catalogue", extend="nowhere")
    copy = tmp_path / "copy"
    load_catalog(walk / "catalog-0").save(copy)
    config = yaml.safe_load((walk / "catalog-0" / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (copy / "card.json").write_text((walk / "catalog-0" / "card.json").read_text())
    vectors = load_file(walk / "catalog-0" / "embeddings.safetensors")
    save_file(vectors | {"text": -vectors["text"]}, copy / "embeddings.safetensors")
    refused("gives item '.*' another vector than .*: put the encoder back", extend=str(copy))
    save_file(vectors | {"centroids.1": vectors["text"].clone()}, copy / "embeddings.safetensors")
    refused(r"embeddings.safetensors is damaged \(it has centroids of the sh", extend=str(copy))
