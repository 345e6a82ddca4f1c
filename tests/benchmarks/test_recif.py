"""The generator of RecIF-Bench's files: their columns, what they say, and what can be reached."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import polars as pl
import pytest

from benchmarks.recif import World, main, reachable, write
from benchmarks.recif_world import Sizes, best_policy, make_users, most_popular, of_list

SMALL = {"videos": 36, "ads": 9, "products": 9, "tastes": 2, "keywords": 2, "labels": 3}
SID = re.compile(r"<\|sid_begin\|><s_a_(\d+)><s_b_(\d+)><s_c_(\d+)><\|sid_end\|>")


@pytest.fixture(scope="module")
def world() -> World:
    return World(Sizes(users=40, history=12, targets=5, **SMALL))


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recif")
    write(world, folder, raw=False)
    write(world, folder, raw=True)
    return folder


def sids_in(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, found)) for found in SID.findall(text)]


def test_the_best_policy_is_what_all_sets_of_targets_give() -> None:
    names = [3, 0]  # any two of the pool 0 .. 4
    for count in (1, 2, 4):
        drawn = [of_list(names, targets) for targets in combinations(range(5), count)]
        for key in ("pass@1", "recall@1", "pass@32", "recall@32"):
            expected = best_policy(5, count, cuts=(1, 2))[key.replace("32", "2")]
            assert sum(row[key] for row in drawn) / len(drawn) == pytest.approx(expected)
    assert best_policy(3, 2)["pass@32"] == best_policy(3, 2)["recall@32"] == 1.0


def test_no_list_of_the_most_popular_is_better(world: World) -> None:
    assert most_popular([[2, 1], [1, 3], [3]]) == [1, 3, 2]
    for facts in reachable(world).values():
        assert facts["rows"] >= 8  # a fifth of 40 users
        assert facts["popularity"]["recall@32"] <= facts["best"]["recall@32"]
    video = reachable(world)["video"]["best"]
    assert video["recall@32"] == 1.0  # all 12 of the pool
    assert video["recall@1"] == pytest.approx(1 / 12)


def test_targets_are_of_the_pool_that_the_prompt_tells(world: World) -> None:
    """36 videos in 3 categories: taste t watches t and 2; number 7 of 12 has label 1, keyword 0."""
    for row in world.rows:
        taste = row.user.taste
        history = [item // 12 for item in row.user.history["video"]]
        assert set(history) <= {taste, 2}
        assert history[-1] == taste
        numbers = [item % world.items[row.kind].per_category for item in row.targets]
        categories = {item // world.items[row.kind].per_category for item in row.targets}
        assert categories == {(taste + 1) % 2 if row.task == "product" else taste}
        assert len(set(numbers)) == len(numbers) <= 5
        if row.task == "label_cond":
            label = ("longview", "like", "follow").index(row.metadata["target_interaction"])
            assert {number % 3 for number in numbers} == {label}
            assert row.pool == 4
        if row.task == "interactive":
            keyword = ("cooking", "travel").index(row.metadata["keyword"])
            assert {number // 3 % 2 for number in numbers} == {keyword}
            assert row.pool == 6


def test_the_files_have_the_columns_of_the_release(world: World, folder: Path) -> None:
    maps = {}
    for name in ("video_ad_pid2sid", "product_pid2sid"):
        frame = pl.read_parquet(folder / f"{name}.parquet")
        assert dict(frame.schema) == {"pid": pl.Int64, "sid": pl.List(pl.Int64)}
        maps[name] = {tuple(sid): pid for pid, sid in frame.iter_rows()}
        assert len(maps[name]) == len(frame) == frame["pid"].n_unique()
    assert set(maps["product_pid2sid"]) <= set(maps["video_ad_pid2sid"])  # the same tokens
    assert not set(maps["product_pid2sid"].values()) & set(maps["video_ad_pid2sid"].values())
    captions = pl.read_parquet(folder / "pid2caption.parquet")
    assert dict(captions.schema) == {"pid": pl.Int64, "dense_caption": pl.String}
    assert len(captions) == 36 + 9 + 9

    train = pl.read_parquet(folder / "sft_product_rec.parquet")
    assert train.columns == ["source", "uuid", "messages", "metadata"]
    assert set(train["source"]) == {"RecIF_ProductRec"}
    messages = json.loads(train["messages"][0])
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant"]
    assert 2 <= len(sids_in(messages[-1]["content"][0]["text"])) <= 3  # the pool holds three

    test = pl.read_parquet(folder / "benchmark_data" / "product" / "product_test.parquet")
    assert test.columns == ["messages", "metadata"]
    facts = json.loads(test["metadata"][0])
    answer = [maps["product_pid2sid"][sid] for sid in sids_in(facts["answer"])]
    assert answer == facts["answer_pid"]
    assert [turn["role"] for turn in json.loads(test["messages"][0])] == ["system", "user"]
    assert len(train) + len(test) == 40


def test_the_table_of_users_says_the_same(world: World, folder: Path) -> None:
    users = pl.read_parquet(folder / "onerec_bench_release.parquet").filter(pl.col("split") == 1)
    pids = world.items["video"].pids
    for task in ("video", "interactive", "label_cond"):
        test = pl.read_parquet(folder / "benchmark_data" / task / f"{task}_test.parquet")
        for text in test["metadata"]:
            facts = json.loads(text)
            user = users.row(by_predicate=pl.col("uid") == facts["uid"], named=True)
            answer = user["target_video_pid"]
            if task == "interactive":
                answer = json.loads(user["inter_keyword_to_items"])[facts["keyword"]]
            if task == "label_cond":
                flags = user[f"target_video_{facts['target_interaction']}"]
                answer = [pid for pid, flag in zip(answer, flags, strict=True) if flag]
            assert answer == facts["answer_pid"]
            assert set(answer) <= set(pids)
            assert len(user["hist_video_pid"]) == len(user["hist_video_like"]) <= 12


def test_the_same_seed_makes_the_same_users(world: World) -> None:
    again = World(world.sizes)
    assert again.users == world.users
    other = World(Sizes(users=40, history=12, targets=5, seed=1, **SMALL))
    assert make_users(other.sizes, other.items, other.rng) != world.users


def test_the_command_refuses_sizes_and_folders_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for more, words in (
        ([str(tmp_path / "new"), "--ads", "19"], "ads is 19: give 20 or more"),
        ([str(tmp_path / "full")], "already holds something"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["--users", "4", "--output", *more])
        told = f"{stopped.value.code}{capsys.readouterr().err}"
        assert words in told.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
