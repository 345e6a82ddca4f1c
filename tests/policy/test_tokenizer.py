"""Names of semantic IDs in a tokenizer of one's own, and tokenizers that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from transformers import AutoTokenizer

from recast.items.names import PLAIN, SidNames
from recast.policy.tokenizer import add_names, find_names, load_tokenizer
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


def test_names_that_are_taken_are_refused() -> None:
    made = tiny.tiny_tokenizer(10)
    made.add_tokens(["<b_1>"])
    with pytest.raises(RecastError, match="m: its tokenizer knows <b_1> already, as token 10"):
        add_names(made, PLAIN.of((3, 3)), rows=64, name="m")


def test_names_that_are_all_known_are_taken_as_they_are() -> None:
    made, names = tiny.tiny_tokenizer(10), SidNames(pattern="<s_{level}_{code}>", begin="<b>")
    assert find_names(made, names.of((2, 2))) is None
    assert add_names(made, names.of((2, 2)), rows=64, name="m") == 10
    assert (find_names(made, names.of((2, 2))), len(made)) == (10, 15)
    # In another order, fewer of a level, and what stands around them elsewhere: not these.
    for other, sizes in ((names, (1, 2)), (names, (2, 3)), (SidNames(begin="<b>"), (2, 2))):
        assert find_names(made, other.of(sizes)) is None
    with pytest.raises(RecastError, match=r"knows <s_a_0> already, as token 10, and not all 4 na"):
        add_names(made, names.of((1, 2)), rows=64, name="m")


def test_there_are_as_many_levels_as_letters() -> None:
    assert PLAIN.of((1,) * 26)[-1] == "<z_0>"
    with pytest.raises(RecastError, match="levels of semantic IDs is 27: a tokenizer names 26"):
        PLAIN.of((1,) * 27)
