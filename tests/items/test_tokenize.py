from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killed import check_goes_on
from safetensors.torch import load_file

from recast.config import PrepareConfig, TokenizeConfig
from recast.data.prepare import prepare
from recast.items import tokenize as tokenizing
from recast.items.card import describe
from recast.items.catalog import load_catalog
from recast.items.quantize import nearest_codes, random_codes
from recast.items.rq_vae import LR, encode
from recast.items.tokenize import tokenize
from recast.types import RecastError

COLOURS = ("red", "blue", "green", "old", "new")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """20 users with 12 events each on 30 items, the first of them without text."""
    folder = tmp_path_factory.mktemp("data")
    events = [
        f"{u},{(u * 7 + t * (u % 3 + 1)) % 30},{t * 20 + u}" for u in range(20) for t in range(12)
    ]
    (folder / "events.csv").write_text("\n".join(["user,item,time", *events]))
    items = [f"{i},{COLOURS[i % 5]} {COLOURS[i // 5 % 5]}" for i in range(1, 30)]
    (folder / "items.csv").write_text("\n".join(["item,title", "0,", *items]))
    prepare(
        PrepareConfig(
            interactions=str(folder / "events.csv"),
            items=str(folder / "items.csv"),
            text=["title"],
            output=str(folder / "out"),
        )
    )
    return str(folder / "out")


def test_folder_holds_everything_the_card_speaks_of(
    data: str, encoder: Path, tmp_path: Path
) -> None:
    config = TokenizeConfig(
        data=data,
        encoder=str(encoder),
        output=str(tmp_path / "out"),
        items_as="codes",
        collaborative_dim=4,
    )
    catalog = tokenize(config)
    folder = tmp_path / "out"
    assert sorted(p.name for p in folder.iterdir()) == [
        "card.json",
        "catalog.parquet",
        "config.yaml",
        "embeddings.safetensors",
        "sid.json",
    ]
    loaded = load_catalog(folder)
    assert torch.equal(loaded.codes, catalog.codes)
    assert loaded.texts[loaded.item_ids.index("0")] == ""
    assert catalog.codebook_sizes == (8, 8, 8)  # root of 30 is 5.5
    assert catalog.trie.num_leaves == 30
    card = json.loads((folder / "card.json").read_text())
    assert (card["num_items"], card["empty_texts"]) == (30, 1)
    assert card["after"]["collision_frac"] == 0
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert (written["num_levels"], written["codebook_size"]) == (3, 8)
    vectors = load_file(folder / "embeddings.safetensors")
    assert {name: tuple(v.shape) for name, v in vectors.items()} == {
        "text": (30, 8),
        "collaborative": (30, 4),
        "centroids.0": (8, 12),
        "centroids.1": (8, 12),
        "centroids.2": (8, 12),
    }
    again = tokenize(
        TokenizeConfig(
            data=data,
            encoder=str(encoder),
            output=str(tmp_path / "again"),
            items_as="codes",
            collaborative_dim=4,
        )
    )
    assert torch.equal(again.codes, catalog.codes)


def test_an_extra_level_counts_the_items_of_each_sid(data: str, tmp_path: Path) -> None:
    catalog = tokenize(
        TokenizeConfig(
            data=data,
            output=str(tmp_path / "out"),
            collaborative_weight=1,
            num_levels=1,
            codebook_size=4,
            resolve="extra_level",
            balance=True,
        )
    )
    # Balanced: at most ceil(30 / 4) = 8 items on a code, and 30 items do not fit 4 codes of 7.
    assert catalog.codebook_sizes == (4, 8)
    assert catalog.trie.num_leaves == 30
    assert list(load_file(tmp_path / "out" / "embeddings.safetensors")) == [
        "centroids.0",
        "collaborative",
    ]


def test_text_alone(data: str, encoder: Path, tmp_path: Path) -> None:
    tokenize(
        TokenizeConfig(
            data=data, encoder=str(encoder), output=str(tmp_path / "out"), collaborative_weight=0
        )
    )
    assert "collaborative" not in load_file(tmp_path / "out" / "embeddings.safetensors")
    card = json.loads((tmp_path / "out" / "card.json").read_text())["encoder"]
    assert (card["modes"], card["longest"], card["cut_texts"]) == (["mean"], 6, 0)


def test_bad_input_leaves_nothing_behind(data: str, encoder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(RecastError, match="nowhere"):
        tokenize(TokenizeConfig(data="nowhere", output=out))
    with pytest.raises(RecastError, match="codebook_size is 64 for 30 items"):
        tokenize(TokenizeConfig(data=data, output=out, collaborative_weight=1, codebook_size=64))
    with pytest.raises(RecastError, match="30 items do not fit into 16 semantic IDs"):
        tokenize(
            TokenizeConfig(
                data=data, output=out, collaborative_weight=1, num_levels=2, codebook_size=4
            )
        )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run").write_text("mine")
    with pytest.raises(RecastError, match="already holds something"):
        tokenize(TokenizeConfig(data=data, encoder=str(encoder), output=out))
    with pytest.raises(RecastError, match=r"run/below cannot be written .*: choose another output"):
        tokenize(TokenizeConfig(data=data, output=out + "/run/below", collaborative_weight=1))


def test_a_catalogue_without_any_text_needs_a_weight_of_one(tmp_path: Path) -> None:
    rows = [f"{u},{(u + t) % 6},{t * 9 + u}" for u in range(9) for t in range(5)]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,time", *rows]))
    prepare(PrepareConfig(interactions=str(tmp_path / "events.csv"), output=str(tmp_path / "data")))
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    with pytest.raises(
        RecastError, match=r"all 6 item texts are empty: .*collaborative_weight to 1"
    ):
        tokenize(TokenizeConfig(data=data, output=out))
    catalog = tokenize(TokenizeConfig(data=data, output=out, collaborative_weight=1))
    assert catalog.codebook_sizes == (4, 6)


def test_one_level_makes_every_item_its_own_token(data: str, tmp_path: Path) -> None:
    """For a ranker: no encoder is fetched, nothing is quantized, no vectors are kept."""
    out = tmp_path / "out"
    config = TokenizeConfig(data=data, output=str(out), num_levels=1)
    catalog = tokenize(config)
    assert catalog.codes.tolist() == [[item] for item in range(30)]
    assert catalog.codebook_sizes == (30,)
    assert sorted(p.name for p in out.iterdir()) == [
        "card.json",
        "catalog.parquet",
        "config.yaml",
        "sid.json",
    ]
    assert torch.equal(load_catalog(out).codes, catalog.codes)
    assert yaml.safe_load((out / "config.yaml").read_text())["codebook_size"] == 30
    card = json.loads((out / "card.json").read_text())
    assert (card["codebook_sizes"], card["after"]["distinct_sids"]) == ([30], 30)
    assert card["moved_items"] == 0
    assert describe(out).startswith("30 items as semantic IDs of 1 levels: 30 codes")
    told = TokenizeConfig(data=data, output=str(tmp_path / "told"), num_levels=1, codebook_size=30)
    assert torch.equal(tokenize(told).codes, catalog.codes)


def test_one_level_refuses_what_it_cannot_use(data: str, tmp_path: Path) -> None:
    for size in (16, 64):
        line = f"codebook_size is {size}: with num_levels 1 each of the 30 items is a code"
        with pytest.raises(RecastError, match=line):
            tokenize(
                TokenizeConfig(
                    data=data, output=str(tmp_path / "out"), num_levels=1, codebook_size=size
                )
            )
    with pytest.raises(RecastError, match="balance is True: with num_levels 1 every item has"):
        TokenizeConfig(data=data, output=str(tmp_path / "out"), num_levels=1, balance=True)
    assert list(tmp_path.iterdir()) == []


def test_the_item_is_the_last_token(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 items, 2 * 5.5 -> 16 clusters of at most 2, or 4 of at most 8, or of any size."""
    for name, changes, sizes, most in (
        ("own", {}, (16, 30), 2),
        ("few", {"codebook_size": 4}, (4, 30), 8),
        ("free", {"codebook_size": 4, "balance": False}, (4, 30), 30),
    ):
        out = tmp_path / name
        settings = {"data": data, "output": str(out), "collaborative_weight": 1.0, **changes}
        catalog = tokenize(TokenizeConfig(items_as="item", **settings))
        assert catalog.codebook_sizes == sizes
        assert catalog.codes[:, 1].tolist() == list(range(30))
        assert catalog.codes[:, 0].bincount().max() <= most
        assert (catalog.trie.num_leaves, catalog.trie.widths[1] <= most) == (30, True)
        loaded = load_catalog(out)
        assert loaded.codes.equal(catalog.codes)
        written = yaml.safe_load((out / "config.yaml").read_text())
        assert written["balance"] is (name != "free")
        assert written["codebook_size"] == sizes[0]
        assert sorted(load_file(out / "embeddings.safetensors")) == ["centroids.0", "collaborative"]
        first, level = describe(out).splitlines()[:2]
        assert first == f"30 items, each a token of its own behind one of {sizes[0]} clusters"
        assert level.startswith(f"level 1: {catalog.codes[:, 0].unique().numel()} of {sizes[0]} ")
    # The clusters are those of a first level of codes.
    codes = tokenize(TokenizeConfig(**settings | {"output": str(tmp_path / "codes")}, num_levels=3))
    assert not any(codes.codes[:, 0] != catalog.codes[:, 0])
    monkeypatch.setattr(tokenizing, "MOST_ITEMS", 29)
    again = {"data": data, "output": str(tmp_path / "no"), "items_as": "item"}
    with pytest.raises(RecastError, match="number of items is 30: each is a row of the po"):
        tokenize(TokenizeConfig(**again))
    for wrong, line in (
        ({"num_levels": 2}, "num_levels is 2: with items_as item it is"),
        ({"resolve": "extra_level"}, "resolve is 'extra_level': with items_as item no two"),
    ):
        with pytest.raises(RecastError, match=line):
            TokenizeConfig(**again | wrong)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("most", "given", "sizes"),
    [
        (30, {}, (16, 30)),
        (29, {}, (8, 8, 8)),
        (30, {"num_levels": 2, "codebook_size": 8}, (8, 8)),
        (30, {"codebook_size": 4}, (4, 4, 4)),
        (30, {"resolve": "nearest_free"}, (8, 8, 8)),
        (29, {"items_as": "item"}, (16, 30)),
    ],
)
def test_what_items_write_where_it_is_left_open(
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    given: dict[str, Any],
    sizes: tuple[int, ...],
) -> None:
    monkeypatch.setattr(tokenizing, "ITEMS_AS_ITEM", most)
    settings = {"data": data, "output": str(tmp_path / "out"), "collaborative_weight": 1.0}
    assert tokenize(TokenizeConfig(**settings, **given)).codebook_sizes == sizes
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    is_item = sizes[-1] == 30
    assert written["items_as"] == ("item" if is_item else "codes")
    assert written["resolve"] == (None if is_item else "nearest_free")
    again = TokenizeConfig(**written | {"output": str(tmp_path / "again")})
    assert tokenize(again).codes.equal(load_catalog(tmp_path / "out").codes)


def test_goes_on_after_a_kill(
    data: str,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the third part of four texts; 29 of 30 items have one."""
    args = ["tokenize", "--data", data, "--encoder", encoder, "--collaborative_dim", 4]
    line = "goes on behind 8 of 29 texts"
    check_goes_on(args, tmp_path, monkeypatch, capsys, "within", line)


def test_an_rq_vae_leaves_its_encoder(data: str, tmp_path: Path) -> None:
    """Its codes are the nearest of what the kept encoder makes of the kept vectors."""
    given = {"data": data, "collaborative_weight": 1.0, "quantizer": "rq_vae"}
    out = tmp_path / "out"
    catalog = tokenize(TokenizeConfig(**given, output=str(out), rq_vae_steps=100))
    assert catalog.codebook_sizes == (8, 8, 8)
    kept = load_file(out / "embeddings.safetensors")
    encoder = {k.removeprefix("encoder."): v for k, v in kept.items() if k.startswith("encoder.")}
    books = [kept[f"centroids.{level}"] for level in range(3)]
    codes = nearest_codes(encode(encoder, kept["collaborative"]), books)
    card = json.loads((out / "card.json").read_text())
    assert int((codes != catalog.codes).any(1).sum()) == card["moved_items"]
    assert (card["quantizer"], len(card["random"]["codes_used"])) == ("rq_vae", 3)
    written = yaml.safe_load((out / "config.yaml").read_text())
    assert (written["items_as"], written["rq_vae_steps"], written["rq_vae_lr"]) == (
        "codes",
        100,
        LR,
    )


def test_random_codes_need_no_vectors_and_do_not_collide(data: str, tmp_path: Path) -> None:
    """6 x 6 is 36 SIDs for 30 items: six are left free."""
    given = {"data": data, "quantizer": "random", "codebook_size": 6, "num_levels": 2}
    catalog = tokenize(TokenizeConfig(**given, output=str(tmp_path / "out")))
    assert (catalog.codebook_sizes, catalog.trie.num_leaves) == ((6, 6), 30)
    assert not (tmp_path / "out" / "embeddings.safetensors").exists()
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    drawn = random_codes(30, (6, 6), 0)
    assert card["before"]["distinct_sids"] == len(drawn.unique(dim=0)) < 30
    assert card["moved_items"] >= 30 - len(drawn.unique(dim=0))
    with pytest.raises(RecastError, match="30 items do not fit into 16 semantic IDs"):
        tokenize(TokenizeConfig(**given | {"codebook_size": 4}, output=str(tmp_path / "no")))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"quantizer": "rq_vae", "items_as": "item"}, "quantizer is 'rq_vae': with items_as item"),
        ({"quantizer": "random", "num_levels": 1}, "quantizer is 'random': with num_levels 1 ev"),
        ({"quantizer": "rq_vae", "balance": True}, "balance is True: it belongs to quantizer rq_"),
        ({"quantizer": "random", "resolve": "extra_level"}, "resolve is 'extra_level': quantize"),
        ({"rq_vae_steps": 500}, "rq_vae_steps is 500: it belongs to quantizer rq_vae, give that"),
        ({"quantizer": "rq_vae", "rq_vae_lr": 2.0}, "rq_vae_lr is 2.0: give 1 or less"),
        ({"quantizer": "rq_vae", "rq_vae_steps": 1}, "rq_vae_steps is 1: give 100 or more"),
    ],
)
def test_settings_of_another_quantizer_are_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(RecastError, match=f"^{line}"):
        TokenizeConfig(data="d", output="o", **wrong)
