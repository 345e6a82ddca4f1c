"""Semantic IDs of a team's own: read from its file or from the data, or told what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from data_folder import forget_hashes

from recast.config import PrepareConfig, SFTConfig, TokenizeConfig
from recast.config.model import ModelConfig
from recast.data.folder import load_data
from recast.data.prepare import prepare
from recast.items.card import describe
from recast.items.catalog import load_catalog
from recast.items.tokenize import tokenize
from recast.policy.tasks import HistoryTask
from recast.sft import train_sft
from recast.types import RecastError

IDS = ["p", "q", "r", "s"]
INDEX = {
    "p": ["<a_1>", "<b_0>"],
    "q": ["<a_0>", "<b_5>"],
    "s": ["<a_1>", "<b_0>"],
    "z": ["<a_2>", "<b_1>"],
}
CODES = [[1, 0], [0, 5], [-1, -1], [1, 0]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six users who take turns on the items p, q, r and s, 8 events each."""
    events = [f"{u},{IDS[(u + t) % 4]},{t * 6 + u}" for u in range(6) for t in range(8)]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,time", *events]))
    out = tmp_path / "data"
    prepare(PrepareConfig(interactions=str(tmp_path / "events.csv"), output=str(out)))
    return out


def give(data: Path, **columns: pl.Series) -> None:
    """Semantic IDs and domains that the data folder holds."""
    items = pl.read_parquet(data / "items.parquet").with_columns(**columns)
    items.write_parquet(data / "items.parquet")
    forget_hashes(data, "data.json")


def made(data: Path, **settings: object) -> TokenizeConfig:
    return TokenizeConfig(data=str(data), output=str(data.parent / "out"), **settings)


def test_an_index_is_taken_as_it_is(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "index.json"
    file.write_text(json.dumps(INDEX))
    catalog = tokenize(made(data, items_as=str(file)))
    assert load_catalog(tmp_path / "out").codes.tolist() == catalog.codes.tolist() == CODES
    assert catalog.codebook_sizes == (3, 6)  # the largest of the file: <a_2>, <b_5>
    assert describe(tmp_path / "out").splitlines() == [
        "4 items as semantic IDs of 2 levels: 3 x 6 codes",
        f"taken as they are from {file}, in text <a_0><b_0>",
        "warning: 1 items have no semantic ID, no candidates: r",
        "semantic IDs of items that the data does not hold: 1",
        "collisions, kept: 33.3% (2 items share a SID, at most 2 the same)",
        "level 1: 2 of 3 codes used, entropy 0.92 of 1.58 bits, at most 2 items on one code",
        "level 2: 2 of 6 codes used, entropy 0.92 of 2.58 bits, at most 2 items on one code",
        "warning: 4 of 4 items have no text",
    ]
    # Events of an item without a semantic ID are no rows.
    task = HistoryTask(interactions=load_data(data), catalog=catalog, window=5)
    targets = {
        item
        for split in ("train", "rl", "valid", "test")
        for item in task.prompts(task.rows(split)).target_items.flatten().tolist()
    }
    assert targets == {0, 1, 3}
    lengths = task.lengths(task.rows("test"))
    assert lengths.tolist() == task.prompts(task.rows("test")).lengths.tolist()
    model = ModelConfig(
        hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, intermediate_size=8
    )
    run = {"data": str(data), "catalog": str(tmp_path / "out"), "output": str(tmp_path / "run")}
    assert train_sft(SFTConfig(**run, model=model, epochs=1, window=5, threads=1))


@pytest.mark.parametrize("pattern", ["<s_{}_{}>", "[{}{}]"])
def test_names_are_the_files(data: Path, tmp_path: Path, pattern: str) -> None:
    index = {"q": [pattern.format("a", 7), pattern.format("b", 0)]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    catalog = tokenize(made(data, items_as=str(tmp_path / "index.json"), codebook_size=8))
    assert catalog.spell(torch.tensor([1])) == [pattern.format("a", 7) + pattern.format("b", 0)]
    assert catalog.codebook_sizes == (8, 8)


def test_a_parquet_file_and_an_array_say_the_same(data: Path, tmp_path: Path) -> None:
    table = {"pid": ["q", "p", "s", "q"], "sid": [[0, 5], [1, 0], [1, 0], [0, 5]]}
    pl.DataFrame(table).write_parquet(tmp_path / "own_pid2sid.parquet")
    np.save(tmp_path / "own.npy", np.array(CODES, dtype=np.int16))
    for file in ("own_pid2sid.parquet", "own.npy"):
        out = str(tmp_path / Path(file).stem)
        config = TokenizeConfig(data=str(data), output=out, items_as=str(tmp_path / file))
        assert tokenize(config).codes.tolist() == CODES


def test_what_the_data_holds_is_the_default(data: Path) -> None:
    sid = pl.Series([[1, 0], [1, 0], None, [1, 0]], dtype=pl.List(pl.Int64))
    give(data, sid=sid, domain=pl.Series(["ad", "video", "ad", "video"]))
    facts = json.loads((data / "data.json").read_text())
    names = {"pattern": "<s_{level}_{code}>", "begin": "<|sid_begin|>", "end": "<|sid_end|>"}
    facts |= {"domains": ["video", "ad"], "sid_names": names}
    (data / "data.json").write_text(json.dumps(facts))
    catalog = tokenize(made(data))
    assert (catalog.domains, catalog.domain_of.tolist()) == (("video", "ad"), [1, 0, 1, 0])
    assert catalog.spell(torch.tensor([0])) == ["<|sid_begin|><s_a_1><s_b_0><|sid_end|>"]
    text = describe(data.parent / "out")
    assert "domains, whose items may write the same: 2 of video, 2 of ad" in text
    # Item 0 is an ad: only the two videos share theirs.
    assert "collisions, kept: 33.3% (2 items share a SID, at most 2 the same)" in text
    with pytest.raises(RecastError, match=r"num_levels is 3: .*holds semantic IDs, give items_as"):
        tokenize(TokenizeConfig(data=str(data), output=str(data.parent / "no"), num_levels=3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.json", {}, "number of semantic IDs in .* is 0: give an index"),
        ("i.json", "{", r"i.json is damaged \("),
        ("i.json", '{"p": ["<a_1>"], "p": ["<a_2>"]}', "the key 'p' is there twice"),
        ("i.json", {"p": [1, 2]}, r"item 'p' is \[1, 2\]: give an index.json of names"),
        (
            "i.json",
            INDEX | {"r": ["<a_1>", "<b_x>"]},
            "item 'r' is .* where '<b_x>' is no name of l",
        ),
        (
            "i.json",
            INDEX | {"r": ["<a_01>", "<b_1>"]},
            "where '<a_01>' is no name of level 1 such as <a_0>",
        ),
        ("i.json", INDEX | {"r": "<a_1>"}, "item 'r' is '<a_1>'"),
        (
            "i.json",
            INDEX | {"r": ["<a_1>"]},
            r"item 'r' has the codes \[1\], the first one \[1, 0\]",
        ),
        (
            "i.json",
            {"y": ["<a_1>"]},
            "no semantic ID of any item of .*: its ids are like 'y', those",
        ),
        (
            "i.parquet",
            {"pid": ["p", "p"], "sid": [[1], [2]]},
            r"pid p has the semantic IDs \[1\] and \[2\]",
        ),
        ("i.parquet", {"pid": ["p"], "sid": [[0.5]]}, r"sid of .* is 'List\(Float64\)'"),
        ("i.parquet", {"pid": ["p"], "sid": [[-1, 0]]}, r"item 'p' has the codes \[-1, 0\]"),
        (
            "i.parquet",
            {"pid": ["p"], "sid": [[9]]},
            "whole numbers from 0 on, below codebook_size 9",
        ),
        ("i.parquet", {"pid": ["p", None], "sid": [[1], [1]]}, "row 2 has no pid"),
        ("i.parquet", {"pid": [0.5], "sid": [[1]]}, "pid of .* is 'Float64': give an index.json"),
        (
            "i.parquet",
            {"item": ["p"], "sid": [[1]]},
            "no column 'pid': rename one of item, sid to pid",
        ),
        (
            "i.parquet",
            {"pid": ["p"], "sid": pl.Series([[2**64 - 1]], dtype=pl.List(pl.UInt64))},
            r"item 'p' has the codes \[None\]",
        ),
        ("i.json", {"\ud83d": ["<a_1>"]}, "holds half a character"),
        ("i.npy", np.array([[1.0]] * 4), r"is 'float64 \[4, 1\]': give whole numbers, \[4, L\]"),
        (
            "i.npy",
            np.array([[1]] * 3),
            r"is 'int64 \[3, 1\]': give whole numbers, \[4, L\], a row per",
        ),
        ("i.npy", np.array([[{}]] * 4), r"i.npy is damaged \("),
        ("i.npy", "", r"i.npy is damaged \("),
        ("i.txt", "", "items_as is .*i.txt': name codes, item or a file: give an"),
        ("i.npy", None, "items_as is .*: there is no such file"),
    ],
)
def test_what_is_wrong_is_one_line(
    data: Path, tmp_path: Path, name: str, content: object, message: str
) -> None:
    file = tmp_path / name
    if isinstance(content, str):
        file.write_text(content)
    elif name.endswith("json"):
        file.write_text(json.dumps(content))
    elif name.endswith("parquet"):
        pl.DataFrame(content).write_parquet(file)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(RecastError, match=message):
        tokenize(made(data, items_as=str(file), codebook_size=9 if name == "i.parquet" else None))
    assert not (tmp_path / "out").exists()


def test_settings_that_make_semantic_ids_are_refused() -> None:
    for name, value in (
        ("num_levels", 3),
        ("seed", 1),
        ("balance", True),
        ("splits", ["train", "rl"]),
    ):
        with pytest.raises(
            RecastError, match=f"{name} is .*: with items_as i.json the semantic IDs"
        ):
            TokenizeConfig(data="d", output="o", items_as="i.json", **{name: value})
