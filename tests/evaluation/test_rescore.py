"""Published lists in two formats against rows written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recast import cli
from recast.config import EvaluateConfig, PrepareConfig, TokenizeConfig
from recast.data.prepare_rows import prepare_rows
from recast.evaluation.disk import read_ranks
from recast.evaluation.evaluate import evaluate_policy
from recast.items.catalog import build_catalog
from recast.items.tokenize import tokenize
from recast.types import RecastError

A, B, C, D = "<a_0><b_0>", "<a_0><b_1>", "<a_1><b_0>", "<a_1><b_1>"  # of i0 and i2, i1, i3, i4
CODES = [[0, 0], [0, 1], [0, 0], [1, 0], [1, 1]]
ROWS = [("i1", "i3"), ("i1 i3", "i0"), ("i3", "i1"), ("i3 i1", "i4"), ("i4", "i3")]


def entry(past: list[str], target: str, lists: list[str]) -> dict[str, Any]:
    return {"input": f"After {', '.join(past)}?", "output": f"{target}\n", "predict": lists}


ENTRIES = [
    entry([B], C, ["<a_7><b_0>", A, C]),  # 3rd SID; as an item behind a place for nothing and 2
    entry([C, B], D, [D]),
    entry([B, C], A, [B, B, A]),  # 3rd SID, one of two items at the places 3 and 4
    entry([C], B, []),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows of `test` and one of `train`."""
    root = tmp_path_factory.mktemp("published")
    rows = {
        "user": ["u0", "u1", "u2", "u2", "u3"],
        "prompt": [past.split() for past, _ in ROWS],
        "targets": [[target] for _, target in ROWS],
        "split": ["test"] * 4 + ["train"],
    }
    pl.DataFrame(rows).write_parquet(root / "rows.parquet")
    pl.DataFrame({"item": [f"i{n}" for n in range(5)]}).write_parquet(root / "items.parquet")
    prepare_rows(
        PrepareConfig(
            output=str(root / "data"),
            rows=str(root / "rows.parquet"),
            items=str(root / "items.parquet"),
            items_id="item",
            text=["item"],
            exclude_seen=False,
            valid_frac=0.0,
        )
    )
    build_catalog(CODES, (8, 2), item_ids=[f"i{n}" for n in range(5)]).save(root / "catalog")
    return root


def config_of(root: Path, content: Any, tmp_path: Path, **more: Any) -> EvaluateConfig:
    file = tmp_path / "lists.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return EvaluateConfig(
        data=str(root / "data"),
        catalog=str(root / "catalog"),
        predictions=str(file),
        output=str(tmp_path / "eval"),
        **more,
    )


def test_lists_of_minionerec_by_hand(root: Path, tmp_path: Path) -> None:
    levels = ["item", "sid", "popular_item"]
    means = evaluate_policy(config_of(root, ENTRIES, tmp_path, at=[1, 3], levels=levels))
    assert {name: means[name] for name in means if "@3" in name} == {
        "item/hr@3": 1.5 / 4,
        "item/ndcg@3": (0.25 + 1) / 4,
        "sid/hr@3": 3 / 4,
        "sid/ndcg@3": pytest.approx((0.5 + 1 + 0.5) / 4),
        "popular_item/hr@3": means["popular_item/hr@3"],  # of i0 and i2 by chance
        "popular_item/ndcg@3": means["popular_item/ndcg@3"],
    }
    ranks = read_ranks(tmp_path / "eval")
    assert ranks.sid_rank[:, 0].tolist() == [3, 3, 0, 1]  # by row, not by place in the file
    assert ranks.items_before[:2, 0].tolist() == [3, 2]
    content = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert content["lists"] == {
        **{"predictions": 7, "unknown": 1, "repeated": 1, "seen": 0, "short": 2},
        "left_out": 0,
    }
    assert content["facts"]["beam_width"] == 3
    assert content["facts"]["events_seen"] is None
    assert content["invalid_frac"] == 1 / 7
    (own,) = content["own_numbers"].values()
    assert own == {"hr@1": 0.25, "ndcg@1": 0.25, "hr@3": 0.75, "ndcg@3": 0.5}
    assert (content["rows"], content["users"]) == (4, 3)


def test_longer_lists_are_cut_and_said(root: Path, tmp_path: Path) -> None:
    means = evaluate_policy(config_of(root, ENTRIES, tmp_path, at=[2], beam_width=2))
    assert means["sid/hr@2"] == 1 / 4
    content = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert content["facts"]["beam_width"] == 2
    assert content["lists"]["predictions"] == 5


def test_no_list_reaches_the_cut(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RecastError, match=r"at is \[4\]: a list holds 3 predictions at most"):
        evaluate_policy(config_of(root, ENTRIES, tmp_path, at=[4]))


Change = Callable[[list[dict[str, Any]]], Any]


def changed(place: int, **cells: Any) -> Change:
    return lambda entries: [e | cells if n == place else e for n, e in enumerate(entries)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entries: entries[:3], "no predictions for row 2 .1 such of 4 in test of"),
        (lambda entries: [*entries, entries[0]], "row 4, of the targets .* more often than .* .1."),
        (changed(1, output=A), "row 1, of the targets '<a_0><b_0>', is of no row in test of"),
        (changed(2, input=f"After {C}?"), "row 2, of the targets .* is of no row"),
        (changed(0, predict=[A, 7]), r"row 0: predict is .*7.*, no list of texts"),
        (changed(0, predict=A), "row 0: predict is '<a_0><b_0>', no list of texts"),
        (changed(0, output=None), "row 0: output is None, no text"),
        (lambda entries: [7, *entries], "row 0 is 7, no object"),
        (lambda entries: [{"input": "", "predict": []}], "row 0 has no 'output'"),
        (
            lambda entries: [e | {"predict": ["x"]} for e in entries],
            "none of its 4 predictions names",
        ),
        (lambda entries: [e | {"predict": []} for e in entries], "none of its 0 predictions"),
        (lambda entries: [], "holds no row"),
        (lambda entries: "[{", "lists.json cannot be read"),
        (lambda entries: {"predict": []}, "without samples"),
        (lambda entries: [entry([], "<s_a_1>", [])], "no item of the catalogue has a target of"),
    ],
)
def test_other_files_are_one_line(root: Path, tmp_path: Path, change: Change, words: str) -> None:
    with pytest.raises(RecastError, match=words):
        evaluate_policy(config_of(root, change(ENTRIES), tmp_path))
    assert not (tmp_path / "eval").exists()


def test_settings_of_a_policy_are_refused(root: Path, tmp_path: Path) -> None:
    config = vars(config_of(root, ENTRIES, tmp_path))
    for more, words in (
        ({"catalog": None}, "catalog is None: published lists need"),
        ({"policy": "p"}, "policy is 'p': published lists are judged without"),
        ({"exact_rows": 3}, "exact_rows is 3"),
        ({"predictions": None}, "policy is None: give the folder"),
    ):
        with pytest.raises(RecastError, match=words):
            EvaluateConfig(**config | more)


# RecIF-Bench: the tasks' items are of different maps that hold the same SIDs; 20 and 21 share one.
MAPS = {"video_ad": {10: [0, 1], 20: [2, 0], 21: [2, 0], 30: [0, 0]}, "product": {7: [0, 1]}}
TESTS = {
    "video": [("Q0", [[2, 0], [0, 1]], [21, 10]), ("Q1", [[0, 0]], None), ("Q2", [[0, 0]], None)],
    "product": [("Q3", [[0, 1]], [7]), ("Q4", [[3, 3]], [99])],  # no item has it: no row
}


def sid(codes: list[int]) -> str:
    return "<|sid_begin|>" + "<s_a_{}><s_b_{}>".format(*codes) + "<|sid_end|>"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    (root / "rows").mkdir()
    for name, items in MAPS.items():
        table = pl.DataFrame({"pid": list(items), "sid": list(items.values())})
        table.write_parquet(root / "rows" / f"{name}_pid2sid.parquet")
    for task, rows in TESTS.items():
        (root / "rows" / task).mkdir()
        table = pl.DataFrame(
            {
                "messages": [json.dumps([{"role": "user", "content": q}]) for q, _, _ in rows],
                "metadata": [
                    json.dumps({"answer": "".join(map(sid, answer)), "answer_pid": pids})
                    for _, answer, pids in rows
                ],
            }
        )
        table.write_parquet(root / "rows" / task / f"{task}_test.parquet")
    prepare_rows(PrepareConfig(output=str(root / "data"), rows=str(root / "rows")))
    tokenize(TokenizeConfig(data=str(root / "data"), output=str(root / "catalog")))
    return root


def write_bench(folder: Path, lists: dict[str, list[list[str]]], **more: Any) -> Path:
    """As the benchmark writes them, last rows first."""
    for task, rows in TESTS.items():
        samples = {}
        for number, (question, answer, pids) in enumerate(rows):
            samples[str(number)] = {
                "prompt": f"<|im_start|>user\n{question}/no_think<|im_end|>\n",
                "generations": lists[task][number],
                "ground_truth": "".join(map(sid, answer)),
                "metadata": {"row_index": number} | ({"answer_pid": pids} if pids else {}),
            } | more
        content = {
            "task_name": task,
            "split": "test",
            "samples": dict(reversed(samples.items())),
        }
        (folder / task).mkdir(parents=True)
        (folder / task / "test_generated.json").write_text(json.dumps(content))
    return folder


LISTS = {
    "video": [
        # A thought does not count, nor what follows the first one.
        [f"<think>{sid([0, 1])}</think>\n{sid([2, 0])}", "<s_a_0><s_b_0>"],
        ["<s_a_0><s_b_1>", sid([0, 0])],
        ["junk", sid([0, 1]) + sid([0, 0])],
    ],
    "product": [[sid([2, 0]), sid([0, 1])], [sid([3, 3])]],  # (2, 0) is no product
}


def config_of_bench(bench: Path, folder: Path, tmp_path: Path, **more: Any) -> EvaluateConfig:
    return EvaluateConfig(
        data=str(bench / "data"),
        catalog=str(bench / "catalog"),
        predictions=str(folder),
        output=str(tmp_path / "eval"),
        **more,
    )


def test_lists_of_openonerec_by_hand(bench: Path, tmp_path: Path) -> None:
    folder = write_bench(tmp_path / "results", LISTS)
    means = evaluate_policy(config_of_bench(bench, folder, tmp_path, at=[1, 2]))
    assert {name: value for name, value in means.items() if name.startswith("video/sid")} == {
        **{"video/sid/hr@1": 1 / 3, "video/sid/hr@2": 2 / 3},
        **{"video/sid/pass@1": 1 / 3, "video/sid/pass@2": 2 / 3},
        **{"video/sid/first_pass@1": 1 / 3, "video/sid/first_pass@2": 2 / 3},
        **{"video/sid/recall@1": 0.5 / 3, "video/sid/recall@2": pytest.approx(1.5 / 3)},
        **{name: means[name] for name in ("video/sid/ndcg@1", "video/sid/ndcg@2")},
    }
    assert means["video/item/hr@1"] == pytest.approx(0.5 / 3)  # 21 or 20
    assert (means["product/item/hr@1"], means["product/item/hr@2"]) == (0, 1)
    content = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert content["lists"]["left_out"] == 1
    assert content["lists"]["unknown"] == 2
    video = content["own_numbers"][str(folder / "video" / "test_generated.json")]
    assert video["pass@1"] == 1 / 3
    assert video["recall@32"] == pytest.approx((0.5 + 1) / 3)
    product = content["own_numbers"][str(folder / "product" / "test_generated.json")]
    assert product["pass@1"] == 1 / 2  # the row that no item answers counts there


def test_one_task_is_judged_by_itself(bench: Path, tmp_path: Path) -> None:
    folder = write_bench(tmp_path / "results", LISTS)
    file = folder / "video" / "test_generated.json"
    means = evaluate_policy(config_of_bench(bench, file, tmp_path, at=[2]))
    assert means["rows"] == 3
    assert means["sid/hr@2"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"logprobs": [float("nan"), 0.0]}, "logprobs are .*nan.*: give 2 finite numbers"),
        ({"logprobs": [0.0, -1.0, -2.0]}, "logprobs are .*: give 2 finite numbers"),
        ({"prompt": "Q9"}, "is of no row in test of"),
        ({"metadata": {"answer_pid": "x"}}, "answer_pid is .*'x'.*: give a list of whole numbers"),
    ],
)
def test_other_samples_are_one_line(
    bench: Path, tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    file = write_bench(tmp_path / "results", LISTS, **more) / "video" / "test_generated.json"
    with pytest.raises(RecastError, match=words):
        evaluate_policy(config_of_bench(bench, file, tmp_path))


def test_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lists.json").write_text(json.dumps(ENTRIES))
    args = ["evaluate", "--data", root / "data", "--catalog", root / "catalog", "--at", "3"]
    args += ["--predictions", tmp_path / "lists.json", "--output", tmp_path / "eval"]
    cli.main([str(arg) for arg in args])
    shown = capsys.readouterr().out
    assert "by MiniOneRec's calc.py, semantic IDs of 4 rows: hr@1 0.2500" in shown
    assert "1 that name no item, 1 named by their list before" in shown
