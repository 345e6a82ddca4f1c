"""Items that write their titles: what they write, which are the same, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_chat
import tiny
import torch
from small_walk import failure

from recast import cli
from recast.config import ModelConfig, PromptConfig
from recast.items.catalog import Catalog, load_catalog
from recast.items.embed import load_embeddings
from recast.items.new_items import in_place_of
from recast.items.titles import Written, check_writer, title_card, title_catalog
from recast.policy.create import create_policy
from recast.policy.load import load_policy, save_policy
from recast.types import RecastError

END = 302  # <|im_end|>


def written(*titles: str, tokenizer: Any = None, **settings: Any) -> Written:
    ids = [f"i{number}" for number in range(len(titles))]
    return title_catalog(tokenizer or small_chat.chat_tokenizer(), titles, ids, **settings)


def test_what_items_write_by_hand() -> None:
    """Bytes are tokens but for pairs of the training text; 300 is a pad that no title holds."""
    tokenizer = small_chat.chat_tokenizer()
    catalog = written("Red pen", "Red ink", form='"{title}"\n').catalog
    body = [tokenizer(f'"{title}"\n')["input_ids"] for title in ("Red pen", "Red ink")]
    assert [
        row[:length]
        for row, length in zip(catalog.tokens.tolist(), catalog.lengths.tolist(), strict=True)
    ] == [[*row, END] for row in body]
    assert (catalog.end_token, catalog.pad_token, catalog.bos_token) == (END, 300, END)
    assert tokenizer.decode(body[1]) == '"Red ink"\n'
    # One decision: a space or "in", behind what both begin with.
    names = catalog.sids_of(catalog.tokens.long())
    assert tokenizer.convert_ids_to_tokens(names.flatten().tolist()) == ["\u0120", "\u0120in"]


def test_what_ends_a_title() -> None:
    assert written("Pen", end_token="<|endoftext|>").catalog.end_token == 300
    # GPT-2, SmolLM2 and others: the end of text is the token of what is not known, too.
    both = small_chat.chat_tokenizer()
    both.unk_token = "<|endoftext|>"
    made = written("Pen", tokenizer=both, end_token="<|endoftext|>")
    assert made.catalog.end_token == 300
    assert title_card(made, both)["unknown_titles"] == 0
    with pytest.raises(RecastError, match=r"with the special token <.endoftext.> which ends"):
        written("P<|endoftext|>", tokenizer=both, end_token="<|endoftext|>")
    plain = small_chat.chat_tokenizer(None)
    plain.eos_token = None
    with pytest.raises(RecastError, match="end_token is None: the tokenizer has no end of text"):
        written("Pen", tokenizer=plain)
    with pytest.raises(RecastError, match=r"end_token is 'stop': the tokenizer reads it as \["):
        written("Pen", end_token="stop")


def test_titles_that_look_alike_are_numbered() -> None:
    """Spaces, composed characters and compatible ones are the same to a reader, capitals not."""
    titles = ["Pen", "caf\u00e9", " cafe\u0301 ", "Pen ", "pen", "\uff30en", "Pen (2)", "a\u00a0 b"]
    titles += ["a\u200b b"]  # a space without width
    titles += ["Heart \u2764", "Heart \u2764\ufe0f", "P\x00en"]  # the form of an emoji, a control
    made = written(*titles)
    expected = ["Pen", "caf\u00e9", "caf\u00e9 (2)", "Pen (3)", "pen"]
    expected += ["\uff30en (4)", "Pen (2)", "a b", "a\u200b b (2)"]
    expected += ["Heart \u2764", "Heart \u2764\ufe0f (2)", "P\x00en (5)"]
    assert made.catalog.texts == expected
    assert made.num_numbered == 6
    assert made.catalog.trie.num_leaves == 12
    # A tokenizer without capitals reads W3 as w3, which gets a number that it does not know.
    small = tiny.tiny_tokenizer(6, eos_token="</s>", bos_token="<s>")
    with pytest.raises(
        RecastError, match=r"'i3' has the title 'w3 w9', which the tokenizer reads li"
    ):
        written("w3", "w4", "W3", "w3 w9", tokenizer=small)
    few = written("w3", "w3 w4", "w9 w3", tokenizer=small)
    assert few.catalog.lengths.tolist() == [2, 3, 3]
    card = title_card(few, small)
    assert (few.catalog.pad_token, card["unknown_titles"], card["most_decisions"]) == (5, 1, 2)


@pytest.mark.parametrize(
    ("title", "message"),
    [
        ("\u200b", "item 'i1' has no text, and its title is what it writes"),
        (" \u00a0", "item 'i1' has no text, and its title is what it writes"),
        ("\x00\u3164", "item 'i1' has no text, and its title is what it writes"),
        ("long " * 5000, r"item 'i1' has the title 'long long .* of [\d,]+ tokens: give it 1 to"),
        (
            "a<|im_end|>b",
            r"item 'i1' has the title 'a<\|im_end\|>b' with the special token <\|im_end\|> which "
            "ends every item: leave it out",
        ),
        ("a<|im_start|>", r"with the special token <\|im_start\|>: leave it out"),
    ],
)
def test_titles_that_no_item_can_write(title: str, message: str) -> None:
    with pytest.raises(RecastError, match=message):
        written("Pen", title)


def test_the_form_of_a_title() -> None:
    with pytest.raises(RecastError, match=r"form is '{title}<\|im_end\|>' with the special token"):
        written("Pen", form="{title}<|im_end|>")


def test_only_the_tokenizer_that_wrote_them_reads_them() -> None:
    catalog, other = written("Red pen", "Red ink").catalog, small_chat.chat_tokenizer()
    check_writer(other, catalog, "M")
    other.add_tokens(["Red"])
    with pytest.raises(RecastError, match="the tokenizer of M reads 'Red pen', the title of item"):
        check_writer(other, catalog, "M")
    with pytest.raises(RecastError, match="M has no tokenizer, and the items"):
        check_writer(None, catalog, "M")


def test_a_saved_catalogue_is_the_same(tmp_path: Path) -> None:
    catalog = written("Red pen", "Red pen", form='"{title}"\n').catalog
    catalog.save(tmp_path / "c")
    loaded = load_catalog(tmp_path / "c")
    for name in ("form", "end_token", "pad_token", "bos_token", "texts", "item_ids"):
        assert getattr(loaded, name) == getattr(catalog, name)
    assert torch.equal(loaded.tokens, catalog.tokens)
    sid = json.loads((tmp_path / "c" / "sid.json").read_text())
    del sid["digest"]
    (tmp_path / "c" / "sid.json").write_text(json.dumps(sid | {"form": "no title"}))
    with pytest.raises(RecastError, match="form 'no title'"):
        load_catalog(tmp_path / "c")


def test_new_items_bring_their_titles() -> None:
    old = written("Red pen", "Red ink").catalog
    new = written("Red pen", "Red ink", "Blue ink").catalog
    assert in_place_of(old, new, "P").num_items == 3
    for other, message in (
        (written("Red pen", "Ink").catalog, "P writes item 'i1' as 'Red ink', this catalogue as"),
        (
            written("Red pen", end_token="<|endoftext|>").catalog,
            "end_token of the catalogue is 300",
        ),
        (small_chat.chat_catalog(), "P writes titles, and the items of this catalogue write sema"),
    ):
        with pytest.raises(RecastError, match=message):
            in_place_of(old, other, "P")
    with pytest.raises(RecastError, match="P writes semantic IDs, and the items of this"):
        in_place_of(small_chat.chat_catalog(), old, "P")


def test_a_longer_new_title_takes_room_from_the_prompts(tmp_path: Path) -> None:
    """A context of 640: 4 tokens of an answer leave 636, the 20 of the new item 620."""
    small_chat.save_model(tmp_path / "model")
    old, new = written("Pen", "Ink").catalog, written("Pen", "Ink", "x" * 19).catalog
    prompt = PromptConfig(history="titles", max_tokens=636)
    made = create_policy(ModelConfig(path=f"{tmp_path}/model"), old, 4, 0, prompt=prompt)
    save_policy(made, tmp_path / "policy")
    new.save(tmp_path / "new")
    loaded = load_policy(tmp_path / "policy", tmp_path / "new")
    further = create_policy(ModelConfig(path=f"{tmp_path}/policy"), new, 4, 0)
    assert loaded.prompt.max_tokens == further.prompt.max_tokens == 620
    assert load_policy(tmp_path / "policy").prompt.max_tokens == 636


def _data(folder: Path, titles: list[str]) -> None:
    users = [(u, (u + s) % len(titles), s) for u in range(8) for s in range(5)]
    users = [(u, i, 10 * s + u) for u, i, s in users]
    pl.DataFrame(users, schema=["user", "item", "time"], orient="row").write_csv(folder / "e.csv")
    items = pl.DataFrame({"item": range(len(titles)), "title": titles})
    items.write_csv(folder / "i.csv")
    cli.run(
        f"prepare --interactions {folder}/e.csv --items {folder}/i.csv --text title "
        f"--output {folder}/data".split()
    )


def test_the_verb_says_what_it_made_and_refuses_what_means_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = ["Red pen", "Red ink", "Red pen ", "Blue ink", "Blue pen", "Pen"]
    _data(tmp_path, titles)
    small_chat.save_model(tmp_path / "model")
    line = f"tokenize --data {tmp_path}/data --output {tmp_path}/c --items_as titles"
    for more, message in (
        ("", "tokenizer is None: give the folder of the model that is to write the titles"),
        (f"--tokenizer {tmp_path}/data", "the folder holds none, give that of the model"),
        (f"--tokenizer {tmp_path}/none", "holds no tokenizer: give the folder of the model"),
        (f"--tokenizer {tmp_path}/model --num_levels 3", "num_levels is 3: with items_as titles"),
        (f"--tokenizer {tmp_path}/model --form pen", "form is 'pen': write {title} once"),
        (f"--tokenizer {tmp_path}/model --form {{title}}\\n", "write a line break"),
    ):
        found, code = failure(capsys, *line.split(), *more.split())
        assert message in found
        assert code == 2
    found, _ = failure(capsys, *line.replace("titles", "codes").split(), "--form", "{title}")
    assert "form is '{title}': it belongs to items_as titles" in found
    assert not (tmp_path / "c").exists()
    cli.run([*line.split(), "--tokenizer", f"{tmp_path}/model", "--encoder", f"{tmp_path}/model"])
    out = capsys.readouterr().out
    assert "6 items write their titles as '{title}', then <|im_end|>" in out
    assert "forms of characters: 1, written with a number behind them" in out
    catalog: Catalog = load_catalog(tmp_path / "c")
    assert catalog.texts[2] == "Red pen (2)"
    assert len(load_embeddings(str(tmp_path / "c"), catalog)) == 6
