"""Samples made to the columns of OpenOneRec (1f4a99e) and RecIF-Bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recast.config import PrepareConfig
from recast.data.folder import describe, load_facts
from recast.data.pids import Domain, read_domains
from recast.data.prepare_rows import prepare_rows
from recast.data.rows import Rows
from recast.types import RecastError

# The same tokens mean different items; videos 20 and 21 share a SID.
PRODUCTS = {7: [0, 1, 2], 8: [0, 1, 3]}
VIDEOS = {10: [0, 1, 2], 20: [4, 0, 0], 21: [4, 0, 0], 30: [0, 0, 5]}
SYSTEM = {"role": "system", "content": "S"}


def sids(*codes: list[int]) -> str:
    return "".join(f"<|sid_begin|><s_a_{a}><s_b_{b}><s_c_{c}><|sid_end|>" for a, b, c in codes)


def messages(question: str, answer: str | None) -> list[dict[str, Any]]:
    texts = [("system", "S"), ("user", question), *([("assistant", answer)] if answer else [])]
    return [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in texts]


def rows_of(file: Path, *rows: tuple[str, Any, Any], dump: Any = json.dumps) -> None:
    """Rows of source (None: no such column), messages and metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "source": [row[0] for row in rows],
        "uuid": [f"uuid-{n}" for n in range(len(rows))],
        "messages": [dump(row[1]) for row in rows],
        "metadata": [dump(row[2]) for row in rows],
    }
    if rows[0][0] is None:
        del columns["source"], columns["uuid"]
    pl.DataFrame(columns).write_parquet(file)


def maps(folder: Path) -> Path:
    folder.mkdir()
    for name, items in (("product", PRODUCTS), ("video_ad", VIDEOS)):
        columns = {"pid": list(items), "sid": list(items.values())}
        pl.DataFrame(columns).write_parquet(folder / f"{name}_pid2sid.parquet")
    return folder


def prepared(folder: Path, rows: Path, **more: Any) -> Rows:
    return prepare_rows(PrepareConfig(output=str(folder / "out"), rows=str(rows), **more))


def test_a_release_of_messages_whole(tmp_path: Path) -> None:
    folder = maps(tmp_path / "release")
    captions = {"pid": [7, 10, 10], "dense_caption": ["A lamp", " A  cat ", "later"]}
    pl.DataFrame(captions).write_parquet(folder / "pid2caption.parquet")
    unknown, broken = [9, 9, 9], "<|sid_begin|><s_a_1><s_b_2><|sid_end|>"
    rows_of(
        folder / "sft_video_rec.parquet",
        ("RecIF_VideoRec", messages("Q0", sids([4, 0, 0], unknown, [0, 1, 2])), {"uid": 1}),
        ("RecIF_VideoRec", messages("Q1", broken), {"uid": 2}),
        ("RecIF_ProductRec", messages("Q2", sids([0, 1, 2])), {"uid": 1, "n": None}),
        dump=str,  # Python, no JSON
    )
    rows_of(
        folder / "benchmark_data" / "video" / "video_test.parquet",
        # Of the two items of this SID the pid says which.
        (None, messages("Q3", None), {"answer": sids([4, 0, 0]), "answer_pid": [21, 99]}),
        (None, messages("Q4", None), {"uid": 9, "answer": sids([0, 0, 5])}),
    )
    rows_of(
        folder / "benchmark_data" / "rec_reason" / "rec_reason_test.parquet",
        (None, messages("Q5", "Because."), {}),
    )
    rows = prepared(tmp_path, folder, valid_frac=0.0)
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.rows() == [
        ("product:7", "A lamp", "product", [0, 1, 2]),
        ("product:8", "", "product", [0, 1, 3]),
        ("video_ad:10", "A cat", "video_ad", [0, 1, 2]),
        ("video_ad:20", "", "video_ad", [4, 0, 0]),
        ("video_ad:21", "", "video_ad", [4, 0, 0]),
        ("video_ad:30", "", "video_ad", [0, 0, 5]),
    ]
    assert rows.task_names == ("video", "product")
    assert rows.domains == ("product", "video_ad")
    assert rows.task_domains.tolist() == [1, 0]
    found = {
        json.loads(prompt)[1]["content"]: (rows.task_names[task], split, [t for t in ts if t >= 0])
        for prompt, task, split, ts in zip(
            rows.prompts,
            rows.tasks.tolist(),
            rows.splits.tolist(),
            rows.targets.take(rows.tasks.new_tensor(range(4))).tolist(),
            strict=True,
        )
    }
    assert found == {
        "Q0": ("video", 0, [3, 2]),
        "Q2": ("product", 0, [0]),
        "Q3": ("video", 3, [4]),
        "Q4": ("video", 3, [5]),
    }
    assert json.loads(rows.prompts[0])[0] == SYSTEM
    assert rows.is_chat.all()
    users = pl.read_parquet(tmp_path / "out" / "users.parquet")["user_id"].to_list()
    assert users == ["video_test:0", "9", "1"]
    facts = load_facts(tmp_path / "out")
    assert facts["dropped"] == {
        "targets whose pid is not in the map": 1,
        "targets whose SID no pid has": 1,
        "targets whose SID is broken off": 1,
        "rows without a target": 1,
    }
    said = describe(tmp_path / "out")
    assert "Python, no JSON, read all the same: 6" in said
    assert "video_ad_pid2sid.parquet: 1 items share the SID of an earlier one" in said
    assert "left out, its answers are no items" in said
    assert "rec_reason_test" in said
    assert facts["sid_names"]["begin"] == "<|sid_begin|>"


def test_the_raw_release_makes_the_five_tasks(tmp_path: Path) -> None:
    folder = maps(tmp_path / "release")
    flags = {
        f"{part}_video_{name}": [[0] * 3, [0] * 3] if part == "hist" else [[0], [0]]
        for part in ("hist", "target")
        for name in ("longview", "like", "follow", "forward", "not_interested")
    }
    flags["hist_video_like"] = [[1, 0, 1], [0, 0]]  # the second is of another length
    flags["target_video_like"] = [[1], [1]]
    pl.DataFrame(
        {
            "uid": [1, 2],
            "split": [0, 1],
            "hist_video_pid": [[10, 99, 30], [21]],
            "target_video_pid": [[30], [20]],
            "hist_longview_video_list": [[10], None],
            "hist_ad_pid": [[20], None],
            "target_ad_pid": [[30] * 11, [30]],
            "hist_goods_pid": [None, [8]],
            "target_goods_pid": [[7], [7]],
            "inter_user_profile_with_sid": ["Likes " + sids([0, 0, 5]), ""],
            "inter_keyword_to_items": [json.dumps({"cats": [10], "": [10]}), "{}"],
            **flags,
        },
        strict=False,
    ).write_parquet(folder / "onerec_bench_release.parquet")
    rows = prepared(tmp_path, folder, valid_frac=0.0)
    asked = {
        (rows.task_names[task], split): json.loads(prompt)[1]["content"]
        for task, split, prompt in zip(
            rows.tasks.tolist(), rows.splits.tolist(), rows.prompts, strict=True
        )
    }
    assert asked == {
        ("video", 0): f"Videos the user watched: {sids([0, 1, 2], [0, 0, 5])}\n"
        "Which videos will the user watch next?",
        ("ad", 0): f"Videos the user watched to the end: {sids([0, 1, 2])}\n"
        f"Ads the user clicked: {sids([4, 0, 0])}\nWhich ads will the user click next?",
        ("product", 0): f"Videos the user watched to the end: {sids([0, 1, 2])}\n"
        "Which products will the user click next?",
        ("interactive", 0): f"Likes {sids([0, 0, 5])}\nThe user searches for: cats\n"
        "Which items will the user choose?",
        ("label_cond", 0): f"Videos the user liked: {sids([0, 1, 2], [0, 0, 5])}\n"
        "Which videos will be liked next?",
        ("video", 3): f"Videos the user watched: {sids([4, 0, 0])}\n"
        "Which videos will the user watch next?",
        ("product", 3): f"Products the user clicked: {sids([0, 1, 3])}\n"
        "Which products will the user click next?",
    }
    targets = rows.targets.take(rows.tasks.new_tensor(range(len(rows.tasks))))
    assert targets.tolist() == [[5], [5], [0], [2], [5], [3], [0]]
    assert load_facts(tmp_path / "out")["dropped"] == {
        "targets that their row names twice": 9,
        "ad: users without a history": 1,
        "label_cond: users without a history": 1,
    }


def test_an_answer_names_what_stands_behind_its_thought(tmp_path: Path) -> None:
    folder = maps(tmp_path / "release")
    answer = f"<think>Not {sids([0, 0, 5])} again</think>\n{sids([4, 0, 0])}"
    same = [("RecIF_VideoRec", messages("Q", answer), {"uid": user}) for user in (1, 2)]
    rows_of(folder / "train.parquet", *same)
    rows = prepared(tmp_path, folder, valid_frac=0.0)
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")["item_id"]
    assert [items[item] for item in rows.targets.values.tolist()] == ["video_ad:20"] * 2


def test_a_sid_is_found_in_its_own_map_alone(tmp_path: Path) -> None:
    products, videos = read_domains(sorted(maps(tmp_path / "release").iterdir()))
    text = sids([0, 1, 2], [4, 0, 0], [0, 1, 3])
    assert products.by_sid(text) == ([0, -1, 1], 0)
    assert videos.by_sid(f"so: {text} and <s_a_4><s_b_0>") == ([2, 3, -1], 1)
    assert videos.by_pid(np.array([21, 7])).tolist() == [4, -1]
    assert videos.spell(np.array([5, 2])) == sids([0, 0, 5], [0, 1, 2])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"pid": [1, 1, 2], "sid": [[1], [2], [3]]}, r"pid 1 has two SIDs, \[1\] and \[2\]: keep"),
        ({"pid": [1, 2], "sid": [[1, 2], [3]]}, r"row 2, column 'sid' is \[3\] of pid 2, the f"),
        ({"pid": [1, 2], "sid": [[1], None]}, "row 2, column 'sid' is None of pid 2"),
        ({"pid": [1], "sid": ["1"]}, "and sid String, no whole numbers and lists of them"),
        ({"pid": [1], "sid": [[2**31 - 1] * 3]}, "are too many to tell apart"),
    ],
)
def test_a_map_that_does_not_tell_items_apart_is_one_line(
    tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    file = tmp_path / "video_ad_pid2sid.parquet"
    pl.DataFrame(columns, strict=False).write_parquet(file)
    with pytest.raises(RecastError, match=said):
        Domain(file, 0)


def test_rows_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    folder = maps(tmp_path / "release")
    (folder / "product_pid2sid.parquet").unlink()
    train = folder / "train.parquet"
    fitting = ("RecIF_VideoRec", messages("Q", sids([0, 1, 2])), {"uid": 1})
    for row, said in (
        (("RecIF_VideoRec", messages("Q", None), {}), "row 2.*end without an answer, and metadata"),
        (("RecIF_AdRec", messages("Q", "a"), {}), "task 'ad' has no row .dropped: rows without a"),
        (("RecIF_VideoRec", messages("Q", "a"), {"answer": 7}), "row 2.*answer in metadata is 7"),
        (("RecIF_VideoRec", messages("Q", "a"), {"uid": "\ud83d"}), "row 2.*half a character"),
    ):
        rows_of(train, fitting, row)
        with pytest.raises(RecastError, match=said):
            prepared(tmp_path, folder)
    # Null, or an empty list, is no statement: the message is the answer.
    stated = {"uid": 2, "answer": None, "answer_pid": []}
    rows_of(train, fitting, ("RecIF_VideoRec", messages("Q", sids([0, 1, 2])), stated))
    rows = prepared(tmp_path / "stated", folder, valid_frac=0.0)
    assert rows.targets.lengths.tolist() == [1, 1]
    whole = train.read_bytes()
    train.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecastError, match=r"train\.parquet cannot be read"):
        prepared(tmp_path, folder)
    rows_of(train, (None, messages("Q", "a"), {}))
    with pytest.raises(RecastError, match="has no column 'source' as OpenOneRec's rows have"):
        prepared(tmp_path, folder)
    with pytest.raises(RecastError, match=r"user is 'uid': the format of .* is known by its files"):
        prepared(tmp_path, folder, user="uid")
    train.unlink()
    with pytest.raises(RecastError, match=r"maps of pids and no rows: add train\.parquet and"):
        prepared(tmp_path, folder)
    assert not (tmp_path / "out").exists()
