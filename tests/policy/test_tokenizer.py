"""Names of semantic IDs in a tokenizer of one's own, and tokenizers that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer

from recast.items.catalog import Catalog, build_catalog
from recast.items.names import PLAIN, SidNames
from recast.policy.tokenizer import add_names, find_sids, load_tokenizer
from recast.types import RecastError


def test_names_are_tokens_of_their_own_behind_the_last_one(tmp_path: Path) -> None:
    made = tiny.tiny_tokenizer(10, chat_template="{{ messages }}")
    assert add_names(made, PLAIN.of((3, 3, 12)), rows=64, name="m") == 10
    made.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert len(tokenizer) == 10 + 3 + 3 + 12
    # Neither spaces nor the words around them change what a name is; <c_1> is not <c_11>.
    assert tokenizer("W4 <a_1><b_2><c_3> w5")["input_ids"] == [4, 11, 15, 19, 5]
    assert tokenizer("w4<c_11><c_1>w5")["input_ids"] == [4, 27, 17, 5]
    assert tokenizer("<A_1>")["input_ids"] == [0]
    assert tokenizer.decode([4, 27]) == "w4 <c_11>"
    assert tokenizer.chat_template == "{{ messages }}"
    assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<b_0>") == 13


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    tiny.tiny_policy("qwen3", tiny.tiny_catalog()).model.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path) is None


def test_a_tokenizer_that_is_broken_is_told_in_one_line(tmp_path: Path) -> None:
    tiny.tiny_policy("qwen3", tiny.tiny_catalog()).model.save_pretrained(tmp_path)
    # Without its vocabulary transformers makes an empty one, which reads every word as nothing.
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(RecastError, match="its tokenizer has no vocabulary: give its folder"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(RecastError, match=r"its tokenizer does not load \(.{1,200}\): give its f"):
        load_tokenizer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"hidden_size": "wide"}
    for text in ("{", json.dumps(config)):  # it is read with the tokenizer
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RecastError, match=r"config.json does not load \(.*use the folder as"):
            load_tokenizer(tmp_path)


def test_the_code_of_a_folder_is_not_run(tmp_path: Path) -> None:
    made = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(made))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(RecastError, match=r"does not load \(it needs code of its own"):
        load_tokenizer(tmp_path)


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs_more(*args: object, **settings: object) -> None:
        raise ModuleNotFoundError("You need to install fugashi")

    (tmp_path / "vocab.txt").write_text("a\n")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", needs_more)
    with pytest.raises(RecastError, match=r"does not load \(You need to install fugashi\)"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_is_not_the_models_is_refused() -> None:
    with pytest.raises(RecastError, match="m: its tokenizer knows token 9, its model 9 tokens"):
        add_names(tiny.tiny_tokenizer(10), PLAIN.of((3,)), rows=9, name="m")


def known(words: list[str], names: SidNames = PLAIN, **settings: Any) -> tuple[int, Catalog] | None:
    """What a tokenizer of 10 tokens and these words has for `tiny.CODES`."""
    made = tiny.tiny_tokenizer(10)
    made.add_tokens([AddedToken(word, normalized=False) for word in words])
    return find_sids(made, build_catalog(tiny.CODES, tiny.SIZES, names=names, **settings), "m")


def test_names_that_are_known_are_taken_as_they_are() -> None:
    names = SidNames(pattern="<s_{level}_{code}>", begin="<b>")
    assert known([]) is None
    found = known(names.of(tiny.SIZES), names)
    assert found is not None
    assert (found[0], found[1].names.numbers) == (10, ())


def test_names_in_another_order_and_number_keep_their_places() -> None:
    """As MiniOneRec adds them: sorted as text, none for a code that no item has (c_11 is spare)."""
    codes = torch.tensor([[0, 2], [2, 10], [10, 2]])
    words = ["<a_0>", "<a_10>", "<a_2>", "<b_10>", "<b_11>", "<b_2>"]
    made = tiny.tiny_tokenizer(10)
    made.add_tokens([AddedToken(word, normalized=False) for word in words])
    found = find_sids(made, build_catalog(codes, (11, 11)), "m")
    assert found is not None
    first, catalog = found
    assert (first, catalog.codebook_sizes) == (10, (3, 3))
    assert catalog.codes.tolist() == [[0, 2], [2, 0], [1, 2]]
    spelled = catalog.spell(torch.arange(3))
    assert spelled == ["<a_0><b_2>", "<a_2><b_10>", "<a_10><b_2>"]
    assert [made.encode(text) for text in spelled] == (catalog.tokens + 8).tolist()
    # A catalogue that counts like it is not counted anew.
    again = find_sids(made, catalog, "m")
    assert again is not None
    assert again[1] is catalog


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["<b_1>"], "knows <b_1> already, as token 10, and no name such as <a_0>: start from"),
        (PLAIN.of((3, 3, 3)), "m knows no <c_3>, which item '7' writes, but other names of that"),
        (PLAIN.of((3, 3, 4))[::-1], "knows <a_2> already, as token 17, and <b_2> as 14, where"),
        (["<c_4>", *PLAIN.of((3, 3, 4))], "as token 11, and <c_4> as 10, where names stand one"),
        ([*PLAIN.of((3, 3)), "x", *PLAIN.of((3, 3, 4))[6:]], r"and <c_0> as 17, .* this one is 16"),
        (["<a_2><b_0>", *PLAIN.of((3, 3, 4))], "as token 11, and does not read it as that one"),
    ],
)
def test_names_in_places_that_are_none_of_a_catalogues(words: list[str], line: str) -> None:
    with pytest.raises(RecastError, match=line):
        known(words)


def test_names_around_items_stand_behind_them() -> None:
    names = SidNames(begin="<b>")
    with pytest.raises(RecastError, match=r"knows <a_0> already, .* and <b> as none, where"):
        known(names.of(tiny.SIZES)[:-1], names)
    with pytest.raises(RecastError, match="knows <b> already, as token 10, and no name such as"):
        known(["<b>"], names)


def test_there_are_as_many_levels_as_letters() -> None:
    assert PLAIN.of((1,) * 26)[-1] == "<z_0>"
    with pytest.raises(RecastError, match="levels of semantic IDs is 27: a tokenizer names 26"):
        PLAIN.of((1,) * 27)
