from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import items.conftest
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from small_events import small_events
from transformers import BertModel

from recast.config import GroundConfig, PrepareConfig, TokenizeConfig
from recast.data.folder import load_data
from recast.data.prepare import prepare
from recast.evaluation.disk import read_ranks
from recast.evaluation.grounding import ground, ground_texts, grounding_scorer, read_texts
from recast.evaluation.metrics import row_metrics
from recast.evaluation.rank import rank_scores
from recast.items.catalog import build_catalog, load_catalog
from recast.items.encoder import embed_texts
from recast.items.tokenize import tokenize
from recast.types import RecastError

encoder = items.conftest.encoder
"""A BERT of 8 dimensions with random weights that knows the words below."""

WORDS = ("red", "blue", "green", "old", "new")


def test_the_worked_value() -> None:
    vectors = torch.tensor([[1.0], [4.0], [11.0]])  # distances 0, 3, 10: Dh 0, .3, 1
    weights = torch.tensor([0.0, 0.5, 1.0])
    found = ground(torch.tensor([[1.0]]), vectors, weights, 2.0)
    assert found[0].tolist() == pytest.approx([0, 0.133333, 0.25], abs=1e-6)
    plain = ground(torch.tensor([[1.0]]), vectors, None, 2.0)
    assert plain[0].tolist() == pytest.approx([0, 0.3, 1])
    assert torch.equal(plain, ground(torch.tensor([[1.0]]), vectors, weights, 0.0))


def slow_ground(text: list[float], vectors: list[list[float]], weights: list[float], gamma: float):
    distances = [math.dist(text, vector) for vector in vectors]
    low, high = min(distances), max(distances)
    scaled = [(d - low) / (high - low) if high > low else 0.0 for d in distances]
    return [d * (1 + w) ** -gamma for d, w in zip(scaled, weights, strict=True)]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 100.0])
def test_ground_equals_the_formula(gamma: float) -> None:
    draw = torch.Generator().manual_seed(0)
    texts, vectors = torch.randn(5, 4, generator=draw), torch.randn(9, 4, generator=draw)
    texts[2] = vectors[7]
    weights = torch.rand(9, generator=draw)
    found = ground(texts, vectors, weights, gamma)
    for row, text in zip(found.tolist(), texts.tolist(), strict=True):
        wanted = slow_ground(text, vectors.tolist(), weights.tolist(), gamma)
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-40)
    assert found[2, 7] == 0


def test_rows_that_say_nothing_are_constant() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    weights = torch.tensor([0.0, 0.5, 1.0])
    # An empty text, whose distances to vectors of length 1 differ by rounding.
    unit = F.normalize(torch.randn(9, 50, generator=torch.Generator().manual_seed(0)), dim=1)
    assert len(unit.norm(dim=1).unique()) > 1
    assert not ground(torch.zeros(1, 50), unit, None, 0.0).any()
    assert ground(vectors[:1], vectors[1:], weights[1:], 2.0).tolist() == [[0, 0]]
    assert ground(vectors[:1], vectors[:1], None, 0.0).tolist() == [[0]]


def test_near_items_are_told_apart() -> None:
    """|a|^2 + |b|^2 - 2ab in float32 knows nothing of distances below some 1e-4."""
    draw = torch.Generator().manual_seed(0)
    text, off = F.normalize(torch.randn(2, 384, generator=draw), dim=1)
    steps = 2e-6 * torch.randperm(40, generator=draw)[:, None]
    found = ground(text[None], text + steps * off, None, 0.0)
    assert torch.equal(found[0].argsort(), steps[:, 0].argsort())


def test_items_without_text_come_last_and_are_out_of_the_scale() -> None:
    data = small_events([[0, 1, 2, 3]], exclude_seen=False)
    rows = torch.tensor([2, 3])
    vectors = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    texts = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    scorer = grounding_scorer(rows, texts, vectors, torch.tensor([0.0, 1.0, 0.0, 0.0]), 100.0)
    found = scorer(data, torch.tensor([3, 2]))
    far, near = math.sqrt(2), math.sqrt(0.4)
    assert found[0].tolist() == pytest.approx(
        [-1, -math.inf, -(math.sqrt(3.2) - far) / (2 - far), 0], abs=1e-6
    )
    assert found[1].tolist() == pytest.approx([-1, -math.inf, -near / far, 0], abs=1e-6)
    catalog = build_catalog(torch.arange(4)[:, None], (4,))
    assert rank_scores(scorer, data, catalog, rows).sid_rank[:, 0].tolist() == [2, 1]


@pytest.fixture(scope="module")
def run(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> GroundConfig:
    """16 users and 20 items, each with a title of its own but the last, which has none."""
    folder = tmp_path_factory.mktemp("ground")
    draw = torch.Generator().manual_seed(0)
    events = [
        (user, int(item), 100 * place + user)
        for user in range(16)
        for place, item in enumerate((torch.rand(20, generator=draw) ** 3).argsort()[:10])
    ]
    table = pl.DataFrame(events, schema=["user", "item", "time"], orient="row")
    table.write_csv(folder / "events.csv")
    titles = [f"{WORDS[i % 5]} {WORDS[i // 5]}" for i in range(19)] + [""]
    pl.DataFrame({"item": range(20), "title": titles}).write_csv(folder / "items.csv")
    prepare(
        PrepareConfig(
            interactions=str(folder / "events.csv"),
            items=str(folder / "items.csv"),
            text=["title"],
            output=str(folder / "data"),
        )
    )
    tokenize(
        TokenizeConfig(
            data=str(folder / "data"),
            output=str(folder / "catalog"),
            encoder=str(encoder),
            collaborative_dim=4,
        )
    )
    return GroundConfig(
        data=str(folder / "data"),
        catalog=str(folder / "catalog"),
        texts=str(folder / "texts.csv"),
        output=str(folder / "out"),
    )


def write(run: GroundConfig, folder: Path, texts: list[str | None], **changes: object):
    """A run on these texts, one for each row of the split; the lines are in no order."""
    rows = load_data(run.data).rows("test")
    table = pl.DataFrame({"row_id": rows.numpy(), "text": texts}, strict=False)
    table.sample(fraction=1, shuffle=True, seed=1).write_csv(folder / "texts.csv")
    settings = {"texts": str(folder / "texts.csv"), "output": str(folder / "out")}
    return replace(run, **(settings | changes))  # type: ignore[arg-type]


def target_texts(run: GroundConfig, shift: int = 0) -> list[str]:
    data, catalog = load_data(run.data), load_catalog(run.catalog)
    return [
        catalog.texts[(target + shift) % catalog.num_items]
        for target in data.items[data.rows("test")].tolist()
    ]


def test_a_title_is_grounded_to_its_own_item(run: GroundConfig, tmp_path: Path) -> None:
    data, catalog = load_data(run.data), load_catalog(run.catalog)
    rows = data.rows("test")
    has_title = torch.tensor([bool(text) for text in target_texts(run)])
    assert 5 < int(has_title.sum()) < len(rows)
    means = ground_texts(write(run, tmp_path, target_texts(run)))
    ranks = read_ranks(tmp_path / "out")
    assert torch.equal(ranks.row_ids, rows)
    assert bool((ranks.sid_rank[has_title] == 1).all())
    metrics = row_metrics(ranks)
    assert means["item/hr@1"] == pytest.approx(float(metrics["item/hr@1"].mean()))
    assert means["rows"] == len(rows)
    # The title of another item is grounded to that one, and the target is not first.
    (tmp_path / "other").mkdir()
    ground_texts(write(run, tmp_path / "other", target_texts(run, shift=1)))
    others = read_ranks(tmp_path / "other" / "out").sid_rank
    unseen = [
        (int(data.items[row]) + 1) % catalog.num_items
        not in data.items[data.starts[row] : row].tolist()
        for row in rows
    ]
    candidate = has_title & torch.tensor(unseen) & (data.items[rows] + 1 < catalog.num_items)
    written = torch.tensor([bool(text) for text in target_texts(run, shift=1)])
    assert int((candidate & written).sum()) > 3
    assert bool((others[candidate & written] > 1).all())


def test_the_files_are_those_of_evaluate(run: GroundConfig, encoder: Path, tmp_path: Path) -> None:
    texts: list[str | None] = [*target_texts(run)[:-1], None]
    config = write(run, tmp_path, texts)
    means = ground_texts(config)
    folder = tmp_path / "out"
    assert sorted(file.name for file in folder.iterdir()) == ["eval.json", "rows.parquet"]
    facts = json.loads((folder / "eval.json").read_text())
    assert {key: facts[key] for key in asdict(config)} == asdict(config) | {"encoder": str(encoder)}
    assert facts["empty_texts"] == sum(not text for text in texts)
    assert facts["split_name"] == load_data(run.data).split_name
    assert {name: v["value"] for name, v in facts["metrics"].items()} == {
        name: value for name, value in means.items() if "/" in name
    }
    with pytest.raises(RecastError, match="already holds something"):
        ground_texts(config)


@pytest.mark.parametrize("gamma", [0.0, 3.0])
def test_ranks_equal_the_formula_by_hand(
    run: GroundConfig, encoder: Path, tmp_path: Path, gamma: float
) -> None:
    data, catalog = load_data(run.data), load_catalog(run.catalog)
    rows = data.rows("test")
    texts = [f"{WORDS[i % 5]} {WORDS[i % 3]} {WORDS[i % 4]}" for i in range(len(rows))]
    ground_texts(write(run, tmp_path, texts, gamma=gamma))  # type: ignore[arg-type]
    found = read_ranks(tmp_path / "out").sid_rank[:, 0].tolist()
    past = [int(i) for i, split in zip(data.items, data.splits, strict=True) if split < 2]
    counts = [past.count(item) for item in range(20)]
    popularity = [(c - min(counts)) / (max(counts) - min(counts)) for c in counts]
    titled = [i for i in range(20) if catalog.texts[i]]
    vectors = embed_texts([catalog.texts[i] for i in titled], str(encoder)).vectors.tolist()
    generated = embed_texts(texts, str(encoder)).vectors.tolist()
    for row, text, rank in zip(rows.tolist(), generated, found, strict=True):
        target, seen = int(data.items[row]), data.items[data.starts[row] : row].tolist()
        if target not in titled:
            assert rank >= len(set(titled) - set(seen)) + 1
            continue
        values = slow_ground(text, vectors, [popularity[i] for i in titled], gamma)
        distance = dict(zip(titled, values, strict=True))
        better = [i for i in titled if i not in seen and distance[i] < distance[target]]
        assert rank == len(better) + 1


def test_parquet_and_texts_as_ids(tmp_path: Path) -> None:
    rows = torch.tensor([12, 3])
    pl.DataFrame({"text": ["a", None], "x": [1, 2], "row_id": [3, 12]}).write_parquet(
        tmp_path / "t.parquet"
    )
    assert read_texts(str(tmp_path / "t.parquet"), rows) == ["", "a"]
    (tmp_path / "t.csv").write_text('row_id,text\n 12 ,"one, two"\n3,\n')
    assert read_texts(str(tmp_path / "t.csv"), rows) == ["one, two", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("row_id,text\n3,a\n", r"t.csv has no text for row_id 12 \(1 such of 2 rows\): give one"),
        ("row_id,text\n3,a\n12,b\n7,c\n", r"t.csv has a text for row_id 7 \(1 such\), which is no"),
        ("row_id,text\n3,a\n12,b\n3,c\n", r"t.csv, row 3: row_id 3 appears more than once: keep"),
        ("row_id,text\n3,a\n1.5,b\n", r"t.csv, row 2: row_id '1.5' is no whole number: give the"),
        ("row_id,text\n3,a\n,b\n", r"t.csv, row 2: row_id None is no whole number"),
        (
            "row,text\n3,a\n12,b\n",
            r"t.csv has no column 'row_id': rename one of row, text to row_id",
        ),
        ("row_id,title\n3,a\n", r"t.csv has no column 'text': rename one of row_id, title to text"),
        ("row_id,text\n3, \n12,\n", r"t.csv: all 2 texts are empty: give what the LLM wrote"),
        ("", r"t.csv is empty: give a file with a header and rows"),
        ('row_id,text\n3,"a\n12,b\n', r"t.csv, row 1 \(line 2\): a quote is opened here and never"),
        ('row_id,text\n3,"a\n12,b"\n', r"row 1 holds another row in quotes \('12,b'\): cl"),
        ("row_id,text\n3,a,b\n12,c\n", r"t.csv, row 1 \(line 2\) has 3 fields, the header 2"),
        ("row_id,text,text\n3,a,b\n12,c,d\n", r"has the column 'text' more than once: rename"),
    ],
)
def test_texts_that_do_not_fit_the_rows(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(RecastError, match=message):
        read_texts(str(tmp_path / "t.csv"), torch.tensor([3, 12]))


def test_files_that_hold_no_texts(tmp_path: Path) -> None:
    rows = torch.tensor([3])
    for name, message in (
        ("nowhere.csv", "nowhere.csv: no such file: check the path"),
        (str(tmp_path), "is a folder: give a .csv or .parquet file"),
        (str(Path(__file__)), "ends in '.py': give a .csv or .parquet file"),
    ):
        with pytest.raises(RecastError, match=message):
            read_texts(name, rows)
    for row_id, text, message in (
        (3, [1], r"column text holds List\(Int64\): give text"),
        ([3], "a", r"column row_id holds List\(Int64\): give whole numbers"),
        (3.0, "a", "column row_id holds Float64: give whole numbers"),
    ):
        pl.DataFrame({"row_id": [row_id], "text": [text]}).write_parquet(tmp_path / "t.parquet")
        with pytest.raises(RecastError, match=message):
            read_texts(str(tmp_path / "t.parquet"), rows)
    (tmp_path / "t.parquet").write_bytes(b"cut")
    with pytest.raises(RecastError, match=r"t.parquet cannot be read \("):
        read_texts(str(tmp_path / "t.parquet"), rows)


def test_catalogues_and_encoders_that_do_not_fit(
    run: GroundConfig, encoder: Path, tmp_path: Path
) -> None:
    config = write(run, tmp_path, target_texts(run))  # type: ignore[arg-type]
    no_text = TokenizeConfig(
        data=run.data, output=str(tmp_path / "cf"), collaborative_weight=1, collaborative_dim=4
    )
    tokenize(no_text)
    with pytest.raises(RecastError, match="holds no text embeddings: run `recast tokenize` with a"):
        ground_texts(replace(config, catalog=str(tmp_path / "cf")))
    other = tmp_path / "encoder"
    other.mkdir()
    for file in encoder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        BertModel(BertModel.from_pretrained(encoder).config).save_pretrained(other)
    with pytest.raises(RecastError, match="does not give the item embeddings of the catalogue: gi"):
        ground_texts(replace(config, encoder=str(other)))
    (tmp_path / "copy").mkdir()
    for file in Path(run.catalog).iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    for content in ("a: [", "encoder: 3", "seed: 0"):
        (tmp_path / "copy" / "config.yaml").write_text(content)
        with pytest.raises(RecastError, match=r"config.yaml is damaged \(.*\): give --encoder the"):
            ground_texts(replace(config, catalog=str(tmp_path / "copy")))
    assert not (tmp_path / "out").exists()
    ground_texts(replace(config, catalog=str(tmp_path / "copy"), encoder=str(encoder)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gamma": -1.0}, r"gamma is -1.0: give a power from 0 to 100"),
        ({"gamma": math.nan}, "gamma is nan: give a power from 0 to 100"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range(run: GroundConfig, setting: dict, message: str) -> None:
    with pytest.raises(RecastError, match=message):
        replace(run, **setting)
