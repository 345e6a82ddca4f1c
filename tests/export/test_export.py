"""Six items, four users of five events; what each format writes of them, and what it refuses."""

from __future__ import annotations

import ast
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from recast.config import ExportConfig, PrepareConfig
from recast.data.folder import load_data, load_items
from recast.data.prepare import prepare
from recast.data.rows import Rows
from recast.export import export_data, source
from recast.items.catalog import build_catalog, build_token_catalog
from recast.types import SPLITS, RecastError

TITLES = ["Pen", 'The "Ink", 2', "Cup", '"Quoted"', "Map", "Hat"]
CODES = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [2, 0]])
NAMES = [f"<a_{a}><b_{b}>" for a, b in CODES.tolist()]
WALKS = [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [3, 1, 0, 5, 2]]
TEMPLATE = "After {history}:"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, catalog: the id of item 0 is x0."""
    home = tmp_path_factory.mktemp("export")
    walks = [(u, place, i) for u, walk in enumerate(WALKS) for place, i in enumerate(walk)]
    rows = [(f"u{u}", f"x{i}", 10 * place + u) for u, place, i in walks]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(home / "my ev.csv")
    items = pl.DataFrame({"item": [f"x{i}" for i in range(6)], "title": TITLES})
    items.write_csv(home / "items.csv")
    prepare(
        PrepareConfig(
            interactions=str(home / "my ev.csv"),
            items=str(home / "items.csv"),
            text=["title"],
            split="leave_one_out",
            output=str(home / "data"),
        )
    )
    ids = [f"x{i}" for i in range(6)]
    build_catalog(CODES, (3, 2), item_ids=ids, texts=TITLES).save(home / "catalog")
    return home


def write(home: Path, output: Path, format: str, **changes: Any) -> Path:
    needs = format in ("minionerec", "recsys_examples", "flashrec")
    settings = {"catalog": str(home / "catalog") if needs else None, "template": TEMPLATE}
    settings |= {"data": str(home / "data"), "format": format, "output": str(output)} | changes
    lines = export_data(ExportConfig(**settings)).splitlines()
    files = sorted(str(f.relative_to(output)) for f in output.rglob("*") if f.is_file())
    assert [line.split("  ")[0] for line in lines] == files
    return output


def test_verl(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CHUNK", 3)  # several parts
    folder = write(home, tmp_path / "verl", "verl", window=2)
    test = pl.read_parquet(folder / "test.parquet")
    assert test.row(0, named=True) == {
        "data_source": "my_ev",
        "prompt": [{"role": "user", "content": 'After Cup, "Quoted":'}],
        "ability": "recommendation",
        "reward_model": {"style": "rule", "ground_truth": "Map"},
        "extra_info": {"split": "test", "index": 4, "user_id": "u0", "item_ids": ["x4"]},
    }
    sizes = {file.name: len(pl.read_parquet(file)) for file in folder.iterdir()}
    assert sizes == {"train.parquet": 4, "rl.parquet": 4, "valid.parquet": 4, "test.parquet": 4}
    folder = write(home, tmp_path / "sids", "verl", catalog=str(home / "catalog"), window=2)
    first = pl.read_parquet(folder / "test.parquet").row(0, named=True)
    assert first["prompt"][0]["content"] == f"After {NAMES[2]}, {NAMES[3]}:"
    assert first["reward_model"]["ground_truth"] == NAMES[4]


def test_trl(home: Path, tmp_path: Path) -> None:
    folder = write(home, tmp_path / "trl", "trl")
    lines = (folder / "rl.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "prompt": [{"role": "user", "content": 'After Pen, The "Ink", 2:'}],
        "completion": [{"role": "assistant", "content": "Cup"}],
        "target": [2],
        "user_id": "u0",
        "item_ids": ["x2"],
    }
    assert len(lines) == 4


def test_minionerec(home: Path, tmp_path: Path) -> None:
    folder = write(home, tmp_path / "mini", "minionerec")
    with (folder / "train" / "my_ev.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["user_id"] for row in rows] == ["u0", "u1", "u2", "u3"] * 2  # train, then rl
    last = rows[4]
    assert ast.literal_eval(last["history_item_title"]) == TITLES[:2]
    assert ast.literal_eval(last["history_item_id"]) == [0, 1]
    assert ast.literal_eval(last["history_item_sid"]) == NAMES[:2]
    assert (last["item_title"], last["item_id"], last["item_sid"]) == ("Cup", "2", NAMES[2])
    info = (folder / "info" / "my_ev.txt").read_text().splitlines()
    assert info[1] == f'{NAMES[1]}\tThe "Ink", 2\t1'
    index = json.loads((folder / "index" / "my_ev.index.json").read_text())
    assert index["5"] == ["<a_2>", "<b_0>"]
    item = json.loads((folder / "index" / "my_ev.item.json").read_text())
    assert item["5"] == {"title": "Hat", "description": "", "item_id": "x5"}


@pytest.mark.parametrize(
    ("format", "user", "item"),
    [("verl", "extra_info.user_id", "extra_info.item_ids"), ("trl", "user_id", "item_ids")],
)
def test_rows_are_read_back(home: Path, tmp_path: Path, format: str, user: str, item: str) -> None:
    folder = str(write(home, tmp_path / format, format))
    out = str(tmp_path / "again")
    rows = prepare(PrepareConfig(rows=folder, user=user, targets=item, output=out))
    assert isinstance(rows, Rows)
    data, ids = load_data(home / "data"), load_items(out)["item_id"]
    for split in SPLITS:
        own, there = data.rows(split), rows.rows(split)
        targets = rows.targets.take(there)[:, 0].tolist()
        assert [ids[i] for i in targets] == [f"x{i}" for i in data.items[own].tolist()]
    chat = json.loads(rows.prompts[int(rows.rows("test")[0])])
    words = 'Pen, The "Ink", 2, Cup, "Quoted"'
    assert chat == [{"role": "user", "content": f"After {words}:"}]
    # And rows are written as the rows that they are.
    build_catalog(CODES, (3, 2), item_ids=ids.to_list()).save(tmp_path / "catalog")
    twice = write(home, tmp_path / "twice", "trl", data=out, catalog=str(tmp_path / "catalog"))
    turn = json.loads((twice / "test.jsonl").read_text().splitlines()[0])
    assert turn["prompt"] == chat
    assert turn["completion"][0]["content"] == NAMES[turn["target"][0]]
    with pytest.raises(RecastError, match="format is 'recbole', which is made of events, and"):
        write(home, tmp_path / "none", "recbole", data=out)
    catalog = str(tmp_path / "catalog")
    with pytest.raises(RecastError, match=r"row 0 of .*again is text: this format has a history"):
        write(home, tmp_path / "none", "minionerec", data=out, catalog=catalog)


def test_rows_of_histories_are_written_as_events_are(home: Path, tmp_path: Path) -> None:
    """There and back is `tests/test_guides.py`: MiniOneRec's folder."""
    lines = ["user,prompt,targets,split", '1,"[0, 2, 1]",[1],train', '2,"[2]",[0],valid']
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    out, catalog = str(tmp_path / "given"), str(tmp_path / "catalog")
    prepare(PrepareConfig(rows=str(tmp_path / "rows.csv"), output=out))
    ids = load_items(out)["item_id"].to_list()
    build_catalog(CODES[:3], (2, 2), item_ids=ids, texts=[""] * 3).save(catalog)
    given = {"data": out, "catalog": catalog, "window": 2}
    folder = write(home, tmp_path / "nv", "recsys_examples", **given)
    row = pl.read_parquet(folder / "train.parquet").row(0, named=True)
    assert [ids[i] for i in row["sequence_data"]] == ["2", "1", "1"]
    (tmp_path / "rows.csv").write_text("\n".join(lines).replace(",[0],valid", ',"[0, 1]",valid'))
    other = str(tmp_path / "several")
    prepare(PrepareConfig(rows=str(tmp_path / "rows.csv"), output=other))
    with pytest.raises(RecastError, match=r"row 1 of .*several has 2 targets: this format has"):
        write(home, tmp_path / "none", "recsys_examples", **(given | {"data": other}))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("format", ["verl", "trl"])
def test_a_split_without_rows_has_no_file(home: Path, tmp_path: Path, format: str) -> None:
    """`prepare` refuses a file without a row."""
    (tmp_path / "rows.csv").write_text("user,prompt,targets,split\n1,A?,7,train\n2,B?,8,valid\n")
    (tmp_path / "items.csv").write_text("item,title\n7,Pen\n8,Hat\n")
    files = {"rows": str(tmp_path / "rows.csv"), "items": str(tmp_path / "items.csv")}
    out = str(tmp_path / "given")
    prepare(PrepareConfig(**files, items_id="item", text=["title"], output=out))
    folder = write(home, tmp_path / format, format, data=out)
    assert {file.stem for file in folder.iterdir()} == {"train", "valid"}


def test_minionerec_is_read_back(home: Path, tmp_path: Path) -> None:
    folder = str(write(home, tmp_path / "mini", "minionerec"))
    rows = prepare(PrepareConfig(rows=folder, output=str(tmp_path / "again")))
    assert isinstance(rows, Rows)
    data, ids = load_data(home / "data"), load_items(tmp_path / "again")["item_id"].to_list()
    test = rows.rows("test")
    targets, past = rows.targets.take(test)[:, 0], rows.history.take(test)
    assert [int(ids[i]) for i in targets] == data.items[data.rows("test")].tolist()
    assert [[int(ids[i]) for i in row] for row in past.tolist()] == [walk[:4] for walk in WALKS]


def test_recbole_is_read_back(home: Path, tmp_path: Path) -> None:
    folder = write(home, tmp_path / "rb", "recbole")
    inter = (folder / "my_ev" / "my_ev.inter").read_text().splitlines()
    assert inter[:2] == ["user_id:token\titem_id:token\ttimestamp:float", "u0\tx0\t0"]
    again = tmp_path / "again"
    source = str(folder / "my_ev")
    prepare(PrepareConfig(interactions=source, split="leave_one_out", output=str(again)))
    for name in ("interactions", "users", "items"):
        tables = [pl.read_parquet(home / f / f"{name}.parquet") for f in ("data", again)]
        assert tables[0].equals(tables[1])
    assert load_items(again)["text"].to_list() == TITLES
    assert torch.equal(load_data(again).items, load_data(home / "data").items)


def test_recsys_examples(home: Path, tmp_path: Path) -> None:
    folder = write(home, tmp_path / "nv", "recsys_examples", window=3)
    test = pl.read_parquet(folder / "test.parquet")
    assert test.row(0) == (0, [1, 2, 3, 4], 4)
    codes = torch.load(folder / "item-sid-mapping.pt", weights_only=True)
    assert torch.equal(codes, CODES.T)
    lines = (folder / "dataset.gin").read_text().splitlines()
    assert "DatasetArgs.codebook_sizes = [3, 2]" in lines
    assert "DatasetArgs.item_to_sid_mapping_path = 'item-sid-mapping.pt'" in lines


def test_flashrec(home: Path, tmp_path: Path) -> None:
    folder = write(home, tmp_path / "fr", "flashrec")
    keys = ["0,0", "0,1", "1,0", "1,1", "2,0"]
    assert json.loads((folder / "sid_vocab.json").read_text()) == dict.fromkeys(keys, 1)
    assert json.loads((folder / "sid2items.json").read_text())["1,1"] == ["x3", "x4"]


def test_what_is_refused(home: Path, tmp_path: Path) -> None:
    def refused(error: str, format: str = "verl", **changes: Any) -> None:
        output = tmp_path / changes.pop("output", "out")
        with pytest.raises(RecastError, match=error):
            write(home, output, format, **changes)
        assert sorted(f.name for f in tmp_path.iterdir()) == before

    other = build_catalog(CODES, (3, 2), item_ids=list("yzabcd"), texts=TITLES)
    other.save(tmp_path / "other")
    ids, words = [f"x{i}" for i in range(6)], torch.arange(2, 14).view(6, 2)
    build_token_catalog(words, [2] * 6, item_ids=ids, texts=TITLES).save(tmp_path / "texts")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(f.name for f in tmp_path.iterdir())
    refused("catalog is None: these are files of semantic IDs", "flashrec", catalog=None)
    refused("recbole has no place for semantic IDs", "recbole", catalog=str(home / "catalog"))
    refused("item 0 is 'x0' in the data, 'y' in the catalogue", catalog=str(tmp_path / "other"))
    refused("its items write texts, no semantic IDs", catalog=str(tmp_path / "texts"))
    refused("full already holds something", output="full")
    refused(r"template is 'Next\?': write \{history\} in it, once", template="Next?")
    refused("is no data folder", data=str(home / "catalog"))
    refused("window is 0", window=0)


def test_a_catalogue_that_names_not_every_item() -> None:
    catalog = build_catalog(CODES, (3, 2))
    catalog = replace(catalog, lengths=torch.tensor([2, 0, 2, 2, 2, 2]))
    named = source.Source(
        **{"folder": Path("d"), "name": "d", "interactions": None, "given": None},
        **{"user_ids": [], "item_ids": list("abcdef"), "texts": TITLES, "catalog": catalog},
        **{"window": 1, "template": TEMPLATE},
    )
    with pytest.raises(RecastError, match=r"d holds 1 items without semantic ID \(such as 'b'\)"):
        named.words()


def test_items_without_words(tmp_path: Path) -> None:
    rows = [(f'u"\t{u}', f"x{i}", 9 * i + u) for u in range(5) for i in range(5)]
    events = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    events.write_parquet(tmp_path / "e.parquet")
    data = str(tmp_path / "data")
    source = str(tmp_path / "e.parquet")
    prepare(PrepareConfig(interactions=source, split="leave_one_out", output=data))
    config = ExportConfig(data=data, format="trl", output=str(tmp_path / "out"))
    with pytest.raises(RecastError, match=r"5 items without text \(such as 'x0'\): give a catalog"):
        export_data(config)
    config = ExportConfig(data=data, format="recbole", output=str(tmp_path / "out"))
    with pytest.raises(RecastError, match=r"the user id .*: RecBole's fields hold no tab"):
        export_data(config)
    assert not (tmp_path / "out").exists()
