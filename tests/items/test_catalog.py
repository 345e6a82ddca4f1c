from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from data_folder import forget_hashes
from hypothesis import given
from hypothesis import strategies as st

from recast.items.catalog import Catalog, build_catalog, build_token_catalog, load_catalog
from recast.types import RecastError


@pytest.fixture
def catalog() -> Catalog:
    return build_catalog(
        torch.tensor([[0, 5], [3, 0], [0, 1], [0, 5]]),
        (4, 8),
        item_ids=["a", "b", "c", "d"],
        texts=["Alien (1979)", "", "caf\u00e9", "x"],
    )


def test_tokens_are_offset_codes(catalog: Catalog) -> None:
    assert catalog.tokens_of(torch.tensor([0, 1])).tolist() == [[2, 11], [5, 6]]
    assert catalog.tokens_of(torch.tensor([[2], [-1]])).tolist() == [[[2, 7]], [[0, 0]]]
    assert [catalog.level_tokens(level) for level in (0, 1)] == [(2, 6), (6, 14)]
    assert (catalog.vocab_size, catalog.num_items, catalog.num_levels) == (14, 4, 2)


def test_items_of_tokens_that_spell_none_is_minus_one(catalog: Catalog) -> None:
    tokens = torch.tensor([[2, 7], [2, 8], [3, 7], [0, 0], [7, 2], [13, 13], [5, 6], [1, 99]])
    assert catalog.items_of(tokens).tolist() == [2, -1, -1, -1, -1, -1, 1, -1]


def test_of_a_shared_sid_the_lowest_item_answers(catalog: Catalog) -> None:
    assert catalog.items_of(catalog.tokens_of(torch.tensor([3]))).tolist() == [0]


@given(st.data())
def test_items_survive_tokens_and_back(data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    table = data.draw(st.lists(row, min_size=1, max_size=15))
    first = data.draw(st.integers(2, 50))
    catalog = build_catalog(torch.tensor(table), sizes, first_token=first)
    tokens = catalog.tokens_of(torch.arange(len(table)))
    firsts = [table.index(codes) for codes in table]
    assert catalog.items_of(tokens).tolist() == firsts
    prefixes = [sorted({codes[:n] for codes in table}) for n in range(len(sizes) + 1)]
    wrong = data.draw(row)
    spelt = torch.tensor(wrong) + torch.tensor(
        [catalog.level_tokens(i)[0] for i in range(len(sizes))]
    )
    assert int(catalog.items_of(spelt)) == (table.index(wrong) if wrong in table else -1)
    for codes, found in [(wrong, catalog.path_of(spelt)), (table[0], catalog.path_of(tokens[0]))]:
        begun = [codes[:n] for n in range(len(sizes) + 1)]
        places = zip(begun, prefixes, strict=True)
        assert found.tolist() == [nodes.index(c) if c in nodes else -1 for c, nodes in places]


def test_path_by_hand(catalog: Catalog) -> None:
    # Sorted: (0, 1), (0, 5) twice, (3, 0). Tokens of another level or of none lead nowhere.
    tokens = torch.tensor(
        [[[2, 11], [2, 7]], [[5, 6], [5, 7]], [[3, 6], [11, 2]], [[2, 0], [0, 11]]]
    )
    assert catalog.path_of(tokens).tolist() == [
        [[0, 0, 1], [0, 0, 0]],
        [[0, 1, 2], [0, 1, -1]],
        [[0, -1, -1], [0, -1, -1]],
        [[0, 0, -1], [0, -1, -1]],
    ]
    assert catalog.leaf_of(tokens).tolist() == [[1, 0], [2, -1], [-1, -1], [-1, -1]]
    assert catalog.path_of(tokens[:, :0]).shape == (4, 0, 3)


def test_save_and_load_round_trip(catalog: Catalog, tmp_path: Path) -> None:
    catalog.save(tmp_path / "out")
    loaded = load_catalog(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["catalog.parquet", "sid.json"]
    assert torch.equal(loaded.codes, catalog.codes)
    for name in ("codebook_sizes", "item_ids", "texts", "first_token", "pad_token", "bos_token"):
        assert getattr(loaded, name) == getattr(catalog, name)
    with pytest.raises(RecastError, match="already holds something"):
        catalog.save(tmp_path / "out")


def test_write_joins_other_files_in_a_folder(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    catalog.write(tmp_path)
    assert load_catalog(tmp_path).item_ids == catalog.item_ids
    assert (tmp_path / "other").read_text() == "kept"


def test_one_item() -> None:
    catalog = build_catalog(torch.tensor([[0, 0]]), (1, 1))
    assert catalog.item_ids == ["0"]
    assert catalog.items_of(torch.tensor([[2, 3], [3, 2]])).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("codes", "sizes", "ids", "message"),
    [
        ([[0], [1]], (2,), ["a"], "2 codes, 1 item ids and 2 texts: give as many of each"),
        ([[0], [1]], (2,), ["a", "a"], "item id 'a' appears more than once: keep one row per item"),
        ([[0], [1]], (2, 2), None, "codes have 1 levels, codebook_sizes 2: make them equal"),
        (
            [[0], [2]],
            (2,),
            ["a", "b"],
            r"item 'b' has the code \[2\], outside the codebooks \[2\]: codes run from 0 to size",
        ),
        ([[0], [-2]], (2,), None, r"item 1 has the code \[-2\]: codes start at 0"),
    ],
)
def test_bad_catalogs_are_refused(
    codes: list[list[int]], sizes: tuple[int, ...], ids: list[str] | None, message: str
) -> None:
    with pytest.raises(RecastError, match=message):
        build_catalog(torch.tensor(codes), sizes, item_ids=ids)


def test_bad_folders_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(RecastError, match=r"holds no catalogue \(sid.json\): make one with"):
        load_catalog(tmp_path)
    catalog.write(tmp_path)
    table = pl.DataFrame({"item_id": ["a", "b"], "codes": [[0, 1, 2], [0]], "text": ["", ""]})
    table.write_parquet(tmp_path / "catalog.parquet")
    with pytest.raises(RecastError, match=r"damaged \(catalog.parquet was changed since it was w"):
        load_catalog(tmp_path)
    forget_hashes(tmp_path, "sid.json")
    with pytest.raises(RecastError, match=r"row 0 has the codes \[0, 1, 2\]: sid.json names 2"):
        load_catalog(tmp_path)
    assert json.loads((tmp_path / "sid.json").read_text())["codebook_sizes"] == [4, 8]
    (tmp_path / "catalog.parquet").unlink()
    for make in (os.mkfifo, os.mkdir):
        make(tmp_path / "catalog.parquet")
        with pytest.raises(RecastError, match=r"is damaged \(catalog.parquet is no plain file\)"):
            load_catalog(tmp_path)
        (tmp_path / "catalog.parquet").rename(tmp_path / make.__name__)


@pytest.mark.parametrize(
    ("sid", "message"),
    [
        ("{", "catalog is damaged (Expecting property name"),
        ("[]", "catalog is damaged (it holds a list, no dict"),
        ('{"first_token": 2}', "catalog is damaged (no 'codebook_sizes')"),
        ({"codebook_sizes": "48"}, "sid.json has codebook_sizes '48': no list of whole numbers"),
        ({"first_token": 2.0}, "sid.json has first_token 2.0 and first_token 2.0"),
        ({"bos_token": 2}, "sid.json has bos_token 2 and first_token 2"),
        ({"pad_token": -1}, "sid.json has pad_token -1 and first_token 2"),
        ({"names": {"numbers": [[0, 0]]}}, "has numbers [[0, 0]]: no lists of different ones"),
        ({"names": {"numbers": [[0, 1]]}}, "numbers of the names is [2]: codebooks ["),
        ({"other": 1}, "unexpected keyword argument 'other'"),
    ],
)
def test_a_damaged_sid_json(catalog: Catalog, tmp_path: Path, sid: object, message: str) -> None:
    catalog.save(tmp_path / "catalog")
    file = tmp_path / "catalog" / "sid.json"
    if isinstance(sid, str):
        file.write_text(sid)
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | sid))
        with pytest.raises(RecastError, match=r"damaged \(it was changed since it was written\)"):
            load_catalog(tmp_path / "catalog")
        forget_hashes(tmp_path / "catalog", "sid.json")
    with pytest.raises(RecastError) as caught:
        load_catalog(tmp_path / "catalog")
    assert message in str(caught.value)
    assert str(caught.value).endswith(
        "use it as it was saved, or make it again with `recast tokenize`"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.lit(None, dtype=pl.String).alias("text"), "catalog.parquet has empty cells"),
        (pl.lit(1).alias("codes"), r"is damaged \("),
        (pl.lit([0, None], dtype=pl.List(pl.Int32)).alias("codes"), "parquet has empty cells"),
        (pl.lit([0.5, 1.0]).alias("codes"), "has 4 rows of"),
        (pl.col("text").alias("item_id").cast(pl.Binary), "has 4 rows of"),
    ],
)
def test_an_edited_catalog(catalog: Catalog, tmp_path: Path, change: pl.Expr, message: str) -> None:
    catalog.write(tmp_path)
    file = tmp_path / "catalog.parquet"
    pl.read_parquet(file).with_columns(change).write_parquet(file)
    forget_hashes(tmp_path, "sid.json")
    with pytest.raises(RecastError, match=message):
        load_catalog(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "first_token", "message"),
    [
        (
            [2 * 10**9, 8],
            2,
            r"codebook_sizes is \[2000000000, 8\]: give at most 1048576 codes a",
        ),
        ([10**30, 8], 2, r"codebook_sizes are no table of whole numbers \(Overflow"),
        ([-4, 8], 2, r"outside the codebooks \[-4, 8\]: codes run"),
        ([4, 8], 2**31 - 3, "first_token is 2147483645: codebooks"),
    ],
)
def test_codebooks_edited_by_hand(
    catalog: Catalog, tmp_path: Path, sizes: list[int], first_token: int, message: str
) -> None:
    catalog.write(tmp_path)
    edited = {"codebook_sizes": sizes, "first_token": first_token, "pad_token": 0, "bos_token": 1}
    (tmp_path / "sid.json").write_text(json.dumps(edited))
    with pytest.raises(RecastError, match=rf"{tmp_path} is damaged \(.*{message}"):
        load_catalog(tmp_path)


def test_what_python_callers_give(tmp_path: Path) -> None:
    """Arrays of any whole numbers, lists, numbers of numpy."""
    made = build_catalog(
        np.array([[0, 1], [1, 0]], dtype=np.uint8),
        np.array([200, 2]),
        item_ids=np.array(["a", "b"]),
        first_token=np.int64(5),
    )
    assert (made.tokens.tolist(), made.codebook_sizes) == ([[5, 206], [6, 205]], (200, 2))
    made.save(tmp_path / "out")
    assert load_catalog(str(tmp_path / "out")).item_ids == made.item_ids == ["a", "b"]
    assert build_catalog([[0, 1]], [1, 2]).codes.tolist() == [[0, 1]]
    assert build_token_catalog([[3, 2, 0], [3, 4, 2]], [2, 3]).lengths.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("codes", "sizes", "more", "message"),
    [
        ([[0.5]], [2], {}, "codes have 2 dimensions of torch.float32: give 2 of whole numbers"),
        ([[True]], [2], {}, "codes have 2 dimensions of torch.bool: give 2 of whole numbers"),
        ([0, 1], [2], {}, "codes have 1 dimensions of torch.int64: give 2"),
        ([["a"]], [2], {}, r"codes are no table of whole numbers \(.*\): give a tensor"),
        ([[0]], 2, {}, "codebook_sizes have 0 dimensions of torch.int64: give 1"),
        ([[0]], [2], {"item_ids": "a"}, "item_ids is the text 'a': give a list of texts, one an"),
        ([[0]], [2], {"item_ids": [5]}, r"item_ids\[0\] is 5: give a text"),
        ([[0]], [2], {"texts": [None]}, r"texts\[0\] is None: give a text"),
        ([[0]], [2], {"pad_token": 3}, "pad_token is 3: semantic IDs are the tokens 2 to 3, give"),
        ([[0]], [2], {"bos_token": -1}, "bos_token is -1: semantic IDs are the tokens 2 to 3"),
        ([[0]], [2], {"first_token": -1}, "first_token is -1: codebooks"),
    ],
)
def test_what_python_callers_must_not_give(
    codes: object, sizes: object, more: dict[str, object], message: str
) -> None:
    with pytest.raises(RecastError, match=message):
        build_catalog(codes, sizes, **more)


def test_a_sequence_with_a_token_of_another_level_names_nothing(catalog: Catalog) -> None:
    """Levels 2 to 5 and 6 to 13; `<a_0><b_2>` is no item's, a SID all the same."""
    tokens = torch.tensor([[2, 11], [2, 8], [2, 5], [6, 11], [0, 0], [1, 7], [5, 14], [-1, -1]])
    wanted = [[2, 11], [2, 8], *[[-1, -1]] * 6]
    assert catalog.sids_of(tokens).tolist() == wanted
    assert catalog.sids_of(tokens[None])[0].tolist() == wanted


def test_of_a_shared_sid_one_that_is_not_seen_answers(catalog: Catalog) -> None:
    """Items 0 and 3 share theirs; of row 1 both are seen."""
    tokens = catalog.tokens_of(torch.tensor([[0, 1], [3, 2], [3, 1], [0, 3]]))
    seen = torch.tensor([[0, 1, -1], [0, 3, -1], [3, -1, -1], [-1, -1, -1]])
    assert catalog.items_of(tokens, seen)[[0, 2, 3]].tolist() == [[3, 1], [0, 1], [0, 0]]
    assert catalog.items_of(tokens).tolist() == [[0, 1], [0, 2], [0, 1], [0, 0]]
