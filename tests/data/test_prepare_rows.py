"""A team's own rows, from files to the folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from recast.baselines import fit_baselines
from recast.config import BaselinesConfig, PrepareConfig, TokenizeConfig
from recast.data.folder import (
    data_hash,
    describe,
    load_categories,
    load_data,
    load_facts,
    load_items,
)
from recast.data.prepare import prepare
from recast.data.rows import Rows, has_rows, load_rows
from recast.items.tokenize import tokenize
from recast.types import RecastError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What next?"}]


def prepared(folder: Path, rows: str | Path, **more: Any) -> Rows:
    out = prepare(PrepareConfig(output=str(folder / "out"), rows=str(rows), **more))
    assert isinstance(out, Rows)
    return out


def write(file: Path, **columns: Any) -> Path:
    frame = pl.DataFrame(columns)
    frame.write_csv(file) if file.suffix == ".csv" else frame.write_parquet(file)
    return file


def ids(folder: Path, lists: torch.Tensor) -> list[list[str]]:
    names = load_items(folder / "out")["item_id"].to_list()
    return [[names[item] for item in row if item >= 0] for row in lists.tolist()]


def test_histories_keep_their_order_their_splits_and_their_targets(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.csv",
        user=["u2", "u1", "u2", "u3"],
        hist=["[9, 10]", "['10']", "[]", "[7]"],
        targets=["[7, 9, 7]", "[9]", "[9]", "[10]"],
        split=["test", "validation", "test", "train"],
        time=[30, 10, 20, 5],
    )
    rows = prepared(tmp_path, file, prompt="hist")
    # The row without a history is left out; the others stand as in the file, users as met.
    assert rows.users.tolist() == [0, 1, 2]
    assert rows.num_users == 3
    every = torch.arange(3)
    assert ids(tmp_path, rows.history.take(every)) == [["9", "10"], ["10"], ["7"]]
    assert ids(tmp_path, rows.targets.take(every)) == [["7", "9"], ["9"], ["10"]]
    assert rows.rows("test").tolist() == [0]
    assert rows.rows("valid").tolist() == [1]
    assert rows.times is not None
    assert rows.times.tolist() == [30, 10, 5]
    assert rows.prompts.null_count() == 3
    assert not rows.is_chat.any()
    assert rows.task_names == ("rows",)
    assert rows.domains == ("items",)
    assert not rows.exclude_seen
    assert rows.seen.values.tolist() == []
    assert load_items(tmp_path / "out")["item_id"].to_list() == ["7", "9", "10"]
    facts = load_facts(tmp_path / "out")
    assert facts["dropped"] == {
        "targets that their row names twice": 1,
        "rows without a history": 1,
    }
    assert facts["parts"]["rows"]["test"] == {"rows": 1, "users": 1, "targets": [2, 2.0, 2]}
    assert "rows, test: 1 rows, 1 users, targets a row: 2\n" in describe(tmp_path / "out")
    assert data_hash(tmp_path / "out") == facts["files"]["rows.parquet"]["sha256"]
    assert not (tmp_path / "out" / "parts").exists()


def test_a_file_per_split_of_messages_tasks_and_seen_items(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    structs = [CHAT, CHAT[1:]]
    write(
        folder / "train.parquet",
        user=[1, 2],
        prompt=structs,
        targets=[["a"], ["b", "a"]],
        seen=[["b"], ["a"]],
        task=["buy", "watch"],
    )
    texts = [json.dumps(CHAT), str(CHAT[1:])]  # the second as Python writes it
    write(
        folder / "val.parquet",
        user=[3, 4],
        prompt=texts,
        targets=[["c"], ["c"]],
        seen=[[], ["c"]],
        task=["buy", "watch"],
    )
    items = write(
        tmp_path / "items.csv",
        id=["a", "b", "c", "d"],
        title=["A", "B", "C", "D"],
        kind=["k", "l", None, "k"],
    )
    settings = {"items": str(items), "items_id": "id", "text": ["title"], "category": "kind"}
    rows = prepared(tmp_path, folder, **settings)
    assert rows.task_names == ("buy", "watch")
    assert rows.tasks.tolist() == [0, 1, 0]
    assert rows.splits.tolist() == [0, 0, 2]
    assert rows.is_chat.all()
    assert rows.times is None
    assert [json.loads(text) for text in rows.prompts] == [CHAT, CHAT[1:], CHAT]
    # Seen items are no candidates: of row 1 one target is left, row 3 is left out.
    assert rows.exclude_seen
    assert ids(tmp_path, rows.targets.take(torch.arange(3))) == [*(["a"], ["b"], ["c"])]
    assert ids(tmp_path, rows.seen.take(torch.arange(3))) == [["b"], ["a"], []]
    assert load_items(tmp_path / "out")["text"].to_list() == ["A", "B", "C", "D"]
    assert load_categories(tmp_path / "out") == ["k", "l", "", "k"]
    dropped = load_facts(tmp_path / "out")["dropped"]
    assert dropped == {
        "targets that their row has seen (exclude_seen)": 2,
        "rows without a target": 1,
    }
    folder = tmp_path / "out"
    with pytest.raises(RecastError, match="holds rows, no events"):
        load_data(folder)
    with pytest.raises(RecastError, match="holds rows, no events"):
        fit_baselines(BaselinesConfig(data=str(folder), output=str(tmp_path / "b")))
    with pytest.raises(RecastError, match=r"collaborative_weight is 0\.8: .*holds rows, no events"):
        tokenize(TokenizeConfig(data=str(folder), output=str(tmp_path / "c")))
    assert has_rows(folder)
    assert not (tmp_path / "b").exists()
    (folder / "rows.parquet").write_bytes((folder / "rows.parquet").read_bytes()[:-9])
    with pytest.raises(RecastError, match=r"rows.parquet was changed.*recast prepare"):
        load_rows(folder)


def test_train_rows_are_divided_by_user_and_only_if_asked(tmp_path: Path) -> None:
    users = [f"u{n % 40}" for n in range(120)]
    file = write(
        tmp_path / "rows.csv",
        user=users,
        prompt=[f"Question, number {n}" for n in range(120)],
        targets=[f"i{n % 7}" for n in range(120)],
    )
    rows = prepared(tmp_path, file, rl_frac=0.3, valid_frac=0.2)
    by_user = [set(rows.splits[rows.users == user].tolist()) for user in range(40)]
    assert all(len(splits) == 1 for splits in by_user)
    counts = [sum(splits == {split} for splits in by_user) for split in range(4)]
    assert 12 <= counts[0] <= 28
    assert counts[1]
    assert counts[2]
    assert counts[3] == 0
    assert rows.split_name == "as published, of the train users valid 20%, rl 30%"
    assert rows.prompts[5] == "Question, number 5"
    assert not rows.is_chat.any()
    whole = prepare(
        PrepareConfig(output=str(tmp_path / "o2"), rows=str(file), valid_frac=0.0, seed=1)
    )
    assert whole.splits.tolist() == [0] * 120  # type: ignore[union-attr]
    assert whole.split_name == "as published"  # type: ignore[union-attr]


ROW = {"user": ["u", "v"], "prompt": ["[1, 2]", "[2]"], "targets": ["[1]", "[2]"]}
"""Rows that are taken; each case below spoils one thing."""


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({"targets": ["[1]", "[__import__('os')]"]}, {}, "row 2, column 'targets' is .*no list"),
        ({"targets": ["[1]", "[" * 5000]}, {}, "row 2, column 'targets' is .*no list"),
        ({"targets": ["[1]", "[1.5]"]}, {}, "row 2, column 'targets' is .*no list"),
        ({"targets": ["[1]", "[' ']"]}, {}, "row 2, column 'targets' has no id"),
        ({"prompt": ["[1]", None]}, {"valid_frac": 0.0}, "holds rows of one user: give"),
        ({"prompt": ["Hi", " "]}, {}, "row 2, column 'prompt' is empty: fill or drop"),
        ({"prompt": ["Hi", '[{"role": "user"}]']}, {}, "row 2.*messages, the first row a text"),
        ({"prompt": ['[{"role": "user", "content": "a"}]', "x"]}, {}, "row 2.*neither JSON nor"),
        ({"prompt": [json.dumps([*CHAT, {"role": "assistant", "content": "a"}])] * 2}, {},
         "row 1.*ends with the assistant's answer: leave it out"),
        ({"split": ["train", "later"]}, {}, "row 2, column 'split' is 'later': give train, rl"),
        ({"task": ["a/b", "c"]}, {}, "row 1, column 'task' is 'a/b': give a name of letters"),
        ({"task": ["a", "b"], "targets": ["[1]", "[]"]}, {}, "the task 'b' has no row .dropped: "),
        ({"time": ["3", "soon"]}, {}, "row 2, column 'time' is 'soon': give whole numbers"),
        ({"user": ["u", None]}, {}, "row 2, column 'user' has no id"),
        ({}, {"prompt": "text"}, "no column 'text': set prompt to one it has"),
        ({}, {"seen": "hidden"}, "no column 'hidden': add it to the file"),
        ({}, {"targets": "prompt"}, "are not all different"),
        ({}, {"k_core": 2}, "k_core is 2: it belongs to events, and rows is"),
        ({}, {"rl_frac": 0.5, "valid_frac": 0.5}, "with rl_frac it leaves no train rows"),
        ({}, {"text": ["title"]}, "without a file: set items as well"),
        ({"prompt": ["Hi", "Ho"]}, {"exclude_seen": True}, "does not say which items a row has"),
        ({}, {"exclude_seen": True}, "no row .dropped: targets that their row has seen"),
        ({}, {"valid_frac": 0.9}, "valid_frac is 0.9: it leaves no train rows"),
        ({"targets": ["[1 2]", "[3]"]}, {}, "row 1, column 'targets' is '.1 2.', no list of"),
        ({"targets": ["1", "[2]"]}, {}, "row 2.*where the first row holds one id"),
        ({"targets": ["[true]", "[3]"]}, {}, "row 1.*no list of numbers or texts"),
        ({"targets": ['["\\ud83d"]', "[3]"]}, {}, "row 1.*no list of numbers or texts"),
        ({"prompt": ["Hi", "[1, 2]"]}, {}, "row 2.*a list or messages, the first row a text"),
        ({"prompt": ['{"messages": []}', "a"]}, {}, "row 1.*a list or messages"),
        ({"prompt": [json.dumps([{"role": "gpt", "content": "x"}])] * 2}, {}, "role 'gpt' is none"),
        ({}, {"valid_frac": 1e-9}, "the split 'valid' gets none of the users"),
        ({"user": ["u", "u"]}, {"valid_frac": 0.0}, "holds rows of one user"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_one_line(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    file = write(tmp_path / "rows.csv", **(ROW | columns))
    with pytest.raises(RecastError, match=said) as raised:
        prepared(tmp_path, file, **settings)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


def test_a_target_outside_the_items_is_one_line(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", **ROW)
    items = write(tmp_path / "items.csv", item=[1, 3], title=["A", "C"])
    with pytest.raises(
        RecastError, match=r"row 1, column 'prompt': the item '2' is not in .*items"
    ):
        prepared(tmp_path, file, items=str(items), text=["title"])
    with pytest.raises(RecastError, match=r"valid_frac is 0\.1: it belongs to rows"):
        PrepareConfig(output="o", valid_frac=0.1)


def test_a_folder_that_nothing_fits_says_what_is_there_and_what_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    with pytest.raises(
        RecastError, match=r"is empty, no rows that are known: give a file for each"
    ):
        prepared(tmp_path, folder)
    (folder / "notes.md").write_text("x")
    with pytest.raises(RecastError, match=r"holds 1 files \('notes.md'\).*MiniOneRec.*OpenOneRec"):
        prepared(tmp_path, folder)
    with pytest.raises(RecastError, match="no such file, folder or data set: check the path"):
        prepared(tmp_path, tmp_path / "nowhere")
    write(folder / "train.csv", **ROW)
    write(folder / "test.csv", **(ROW | {"prompt": ["Hi", "Ho"]}))
    with pytest.raises(RecastError, match=r"test.csv holds .*'text'.*train.csv .*write both alike"):
        prepared(tmp_path, folder)
    write(folder / "validation.csv", **ROW)
    write(folder / "dev.csv", **ROW)
    with pytest.raises(RecastError, match="are both valid: remove one of them"):
        prepared(tmp_path, folder)
    assert not (tmp_path / "out").exists()


def test_rows_as_json_lines_and_fields_of_structs(tmp_path: Path) -> None:
    lines = [
        {"uid": 7, "prompt": CHAT, "targets": [3, "b"], "time": 5},
        {"uid": 8, "prompt": CHAT, "targets": ["3"], "time": 6},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    rows = prepared(tmp_path, file, user="uid", valid_frac=0)
    assert ids(tmp_path, rows.targets.take(torch.arange(2))) == [["3", "b"], ["3"]]
    assert rows.times is not None
    assert rows.times.tolist() == [5, 6]
    assert json.loads(rows.prompts[0]) == CHAT

    def refused(content: str | list[Any], error: str, **more: Any) -> None:
        text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        file.write_text(text)
        with pytest.raises(RecastError, match=error):
            prepare(PrepareConfig(output=str(tmp_path / "no"), rows=str(file), **more))
        assert not (tmp_path / "no").exists()

    refused(
        [lines[0] | {"targets": {"a": 1}}],
        r"line 1, 'targets' is \{'a': 1\}: give a te",
        user="uid",
    )
    refused([*lines, lines[0] | {"uid": None}], "row 3, column 'uid' has no id", user="uid")
    refused(lines, "has no column 'user': set user to one it has, the nearest is 'uid'")
    refused(json.dumps(lines[0]) + "\n{", r"line 2 is no object", user="uid")

    info = [{"id": "u1", "t": ["a"]}, {"id": "u2", "t": ["b"]}]
    table = write(tmp_path / "rows.parquet", prompt=[CHAT] * 2, extra=info)
    rows = prepared(tmp_path / "p", table, user="extra.id", targets="extra.t", valid_frac=0)
    assert ids(tmp_path / "p", rows.targets.take(torch.arange(2))) == [["a"], ["b"]]
    with pytest.raises(RecastError, match=r"has no column 'extra.x': .*nearest is 'extra\.t'"):
        prepared(tmp_path / "q", table, user="extra.id", targets="extra.x")


def test_a_few_users_keep_one_for_valid(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", user=list("abc"), prompt=["x"] * 3, targets=["1"] * 3)
    rows = prepared(tmp_path, file)
    assert [len(rows.rows(split)) for split in ("train", "valid")] == [2, 1]


def test_json_lines_are_as_csv(tmp_path: Path) -> None:
    def read(**later: Any) -> Rows:
        first = {"user": 1, "prompt": "a", "targets": ["x\u00e9", 7]}
        lines = [first, {"user": 2, "prompt": "b", "targets": [7]} | later]
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        return prepared(tmp_path / str(len(later)), file, valid_frac=0)

    rows = read(targets=[7, 8], seen=[8])  # a key that the first line lacks
    assert rows.targets.take(torch.arange(2)).tolist() == [[2, 0], [0, -1]]
    for later, said in (
        ({"prompt": [7]}, "row 2.*a list or messages, the first row a text"),
        ({"prompt": "\ud83d"}, "line 2, 'prompt' holds half a character"),
        ({"user": [2]}, r"line 2, 'user' is \[2\]"),
        ({"prompt": [{"role": "user", "content": [{"type": []}]}]}, "row 2.*a list or messages"),
    ):
        with pytest.raises(RecastError, match=said):
            read(**later)


def test_other_types_of_columns(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    columns = {"user": ["a", "b"], "prompt": ["x", "y"], "targets": [[1, 2], [2, 1]]}
    kinds = {"prompt": pl.Categorical(), "targets": pl.Array(pl.Int64, 2)}
    pl.DataFrame(columns, schema_overrides=kinds).write_parquet(file)
    rows = prepared(tmp_path, file, valid_frac=0)
    assert rows.targets.take(torch.arange(2)).tolist() == [[0, 1], [1, 0]]
    pl.DataFrame(columns | {"split": [["train"]] * 2}).write_parquet(file)
    with pytest.raises(RecastError, match=r"column 'split' holds List\(String\): give texts"):
        prepared(tmp_path / "other", file)


def test_a_split_that_contradicts_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    columns = {"user": ["a", "b"], "prompt": ["x", "y"], "targets": ["1", "2"]}
    write(folder / "train.csv", **columns, split=["train", "test"])
    write(folder / "eval.csv", **columns)
    with pytest.raises(RecastError, match="row 2, column 'split' is 'test', and the file's name"):
        prepared(tmp_path, folder)
    prepared(tmp_path, folder, split_column="split", valid_frac=0)
    assert "called by no split: 1 files ('eval.csv')" in str(load_facts(tmp_path / "out")["notes"])
