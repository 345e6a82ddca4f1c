from __future__ import annotations

import hashlib
import json
import resource
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from data_folder import forget_hashes
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recast.config import PrepareConfig
from recast.data.folder import (
    data_hash,
    describe,
    load_categories,
    load_data,
    load_facts,
    load_items,
)
from recast.data.history import history
from recast.data.prepare import prepare
from recast.data.windows import user_windows
from recast.types import SPLITS, RecastError

# Two users take turns, one event per time 0..19, over 20 items: no repeats.
TURNS = [("ab"[t % 2], f"i{t:02}", t) for t in range(20)]
ITEMS = [(f"i{t:02}", f"title {t}") for t in range(20)]


def write(folder: Path, rows: list[tuple[Any, ...]], name: str = "events.csv", **more: Any) -> Any:
    """Settings for `PrepareConfig`: the rows written to a file, an output beside it."""
    columns = ["user", "item", "time"]
    pl.DataFrame(rows, schema=columns, orient="row").write_csv(folder / name)
    return {"output": str(folder / "out"), "interactions": str(folder / name), **more}


def write_items(folder: Path, rows: list[tuple[str, str]]) -> dict[str, Any]:
    frame = pl.DataFrame(rows, schema=["item", "title"], orient="row")
    frame.write_csv(folder / "items.csv")
    return {"items": str(folder / "items.csv"), "text": ["title"]}


def test_the_whole_walk_by_hand(tmp_path: Path) -> None:
    settings = write(tmp_path, TURNS, rl_frac=0.25, **write_items(tmp_path, ITEMS))
    data = prepare(PrepareConfig(**settings))
    assert data.users.tolist() == [0] * 10 + [1] * 10
    assert data.times.tolist() == [*range(0, 20, 2), *range(1, 20, 2)]
    assert data.items.tolist() == data.times.tolist()
    assert data.starts.tolist() == [0] * 10 + [10] * 10
    # Training: times 0 to 15, of which rl takes those from position 12 on.
    assert data.splits.tolist() == [0] * 6 + [1, 1, 2, 3] + [0] * 6 + [1, 1, 2, 3]
    assert (data.num_users, data.num_items, data.exclude_seen) == (2, 20, True)
    assert data.split_name == "global time 80/10/10"
    facts = load_facts(tmp_path / "out")
    files = [tmp_path / "events.csv", tmp_path / "items.csv"]
    parts = ("interactions", "users", "items")
    written = {name: (tmp_path / "out" / f"{name}.parquet").read_bytes() for name in parts}
    assert len(facts.pop("digest")) == 64
    assert facts == {
        "source": str(files[0]),
        "sha256": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
        "split_name": "global time 80/10/10",
        "cuts": {"rl": 12, "valid": 16, "test": 18},
        "exclude_seen": True,
        "seed": 0,
        "events": 20,
        "users": 2,
        "items": 20,
        "splits": {
            "train": {"events": 12, "rows": 10, "users": 2},
            "rl": {"events": 4, "rows": 4, "users": 2},
            "valid": {"events": 2, "rows": 2, "users": 2},
            "test": {"events": 2, "rows": 2, "users": 2},
        },
        "new_test_users": 0,
        "empty_texts": 0,
        "items_without_row": 0,
        "notes": ["times from 0 to 19"],
        "ties": 0,
        "copies": 0,
        "dropped_copies": 0,
        "repeats": 0,
        "users_below_k_core": 0,
        "dropped_repeats": 0,
        "dropped_k_core": 0,
        "files": {
            f"{name}.parquet": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in written.items()
        },
    }
    assert load_items(tmp_path / "out").rows() == ITEMS
    users = pl.read_parquet(tmp_path / "out" / "users.parquet")
    assert users["user_id"].to_list() == ["a", "b"]
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["rl_frac"] == 0.25
    assert "warning" not in describe(tmp_path / "out")


def test_nothing_leaks(tmp_path: Path) -> None:
    """Splits follow one another in time; a history holds what came before its row, no more."""
    draws = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 400, (3_000, 3), generator=draws) % torch.tensor([40, 90, 400])
    data = prepare(PrepareConfig(**write(tmp_path, [tuple(r) for r in raw.tolist()])))
    assert not data.exclude_seen
    spans = [data.times[data.splits == s] for s in range(len(SPLITS))]
    for earlier, later in pairwise(spans):
        assert earlier.max() < later.min()
    uses_test_period = 0
    for row in data.rows("test").tolist():
        before = range(int(data.starts[row]), row)
        assert all(data.users[e] == data.users[row] for e in before)
        assert all(data.times[e] <= data.times[row] for e in before)
        expected = [int(data.items[e]) for e in before]
        found = history(data, torch.tensor([row]), len(expected) + 1)[0].tolist()
        assert found == [*expected, -1]
        # Complete: every earlier event of the user is there, test-period ones included.
        own = (data.users == data.users[row]) & (data.times < data.times[row])
        assert len(expected) >= int(own.sum())
        uses_test_period += any(data.splits[e] == SPLITS.index("test") for e in before)
    assert uses_test_period > 100


def test_leave_one_out_by_hand(tmp_path: Path) -> None:
    """Positions as times: users of 5, 3 and 2 events; SFT reads the training events alone."""
    walks = {"a": "pqrst", "b": "qrp", "c": "ts"}
    rows = [(user, item, place) for user, walk in walks.items() for place, item in enumerate(walk)]
    data = prepare(PrepareConfig(**write(tmp_path, rows[::-1], split="leave_one_out")))
    assert data.users.tolist() == [0] * 5 + [1] * 3 + [2] * 2
    assert data.items.tolist() == [0, 1, 2, 3, 4, 1, 2, 0, 4, 3]
    assert data.splits.tolist() == [0, 0, 1, 2, 3, 0, 2, 3, 0, 0]
    assert data.rows("rl").tolist() == [2]
    assert data.rows("test").tolist() == [7, 4]  # by position
    # What comes before a row, the rl and validation events included, is its history.
    assert history(data, torch.tensor([4, 7]), 9)[:, :4].tolist() == [[0, 1, 2, 3], [1, 2, -1, -1]]
    for epoch in range(5):
        windows = user_windows(data, data.rows("train"), width=4, seed=0, epoch=epoch)
        assert sorted(windows.tolist()) == [[0, 1, -1, -1], [4, 3, -1, -1]]
    facts = load_facts(tmp_path / "out")
    assert facts["splits"] == {
        "train": {"events": 5, "rows": 2, "users": 2},
        "rl": {"events": 1, "rows": 1, "users": 1},
        "valid": {"events": 2, "rows": 2, "users": 2},
        "test": {"events": 2, "rows": 2, "users": 2},
    }
    assert (data.split_name, facts["new_test_users"]) == ("leave one out", 0)
    words = "split leave one out at the last event but one and the last of every user; rl from the"
    assert words in describe(tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (config["split"], config["rl_frac"]) == ("leave_one_out", None)


def test_rl_frac_belongs_to_global_time(tmp_path: Path) -> None:
    prepare(PrepareConfig(**write(tmp_path, TURNS)))
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (config["split"], config["rl_frac"]) == ("global_time", 0.1)
    # Of the 16 training events, from position floor(14.4) on.
    assert load_facts(tmp_path / "out")["cuts"]["rl"] == 14
    with pytest.raises(RecastError) as caught:
        PrepareConfig(output="o", split="leave_one_out", rl_frac=0.1)
    assert str(caught.value) == (
        "rl_frac is 0.1: split leave_one_out keeps one event per user for RL, leave it out"
    )
    for value in (0.0, 1.0):
        with pytest.raises(RecastError, match=rf"rl_frac is {value}: give a part between 0 and 1"):
            PrepareConfig(output="o", rl_frac=value)


def test_the_order_of_the_rows_in_the_file_has_no_influence(tmp_path: Path) -> None:
    rows = [(str(e % 7), str(e % 11), e // 15) for e in range(600)]
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    written = []
    for name, seed in (("one", None), ("two", 1), ("three", 2)):
        (tmp_path / name).mkdir()
        some = frame if seed is None else frame.sample(fraction=1, shuffle=True, seed=seed)
        prepare(PrepareConfig(**write(tmp_path / name, some.rows())))
        written.append(pl.read_parquet(tmp_path / name / "out" / "interactions.parquet"))
    assert written[0].equals(written[1])
    assert written[0].equals(written[2])
    prepare(PrepareConfig(**write(tmp_path, rows, seed=1)))
    other = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert not other.equals(written[0])
    assert other.select("user", "time", "split").equals(written[0].select("user", "time", "split"))


def test_repeats_decide_exclude_seen_unless_it_is_set(tmp_path: Path) -> None:
    rows = [*TURNS, ("a", "i00", 7)]
    data = prepare(PrepareConfig(**write(tmp_path, rows)))
    assert not data.exclude_seen
    assert len(data.items) == 21
    text = describe(tmp_path / "out")
    assert "like any other (exclude_seen); events that repeat an item of their user: 1" in text
    settings = write(tmp_path, rows, exclude_seen=True) | {"output": str(tmp_path / "other")}
    data = prepare(PrepareConfig(**settings))
    assert data.exclude_seen
    assert data.times.tolist() == [*range(0, 20, 2), *range(1, 20, 2)]
    assert "repeats of a user's item, dropped: 1" in describe(tmp_path / "other")


def test_copies_are_dropped_before_they_decide_anything(tmp_path: Path) -> None:
    rows = [*TURNS, TURNS[3], TURNS[3], *[("copy", f"i{n:02}", n) for n in (1, 2, 1, 2)]]
    data = prepare(PrepareConfig(**write(tmp_path, rows, k_core=1)))
    assert data.exclude_seen
    assert len(data.items) == 22
    text = describe(tmp_path / "out")
    assert "duplicate events (same user, item and time), dropped: 4" in text
    assert "repeats of a user's item, dropped" not in text


def test_copies_do_not_pass_a_k_core(tmp_path: Path) -> None:
    rows = [("abc"[t % 3], f"i{t // 3}", t) for t in range(18)]
    rows += [("copy", f"i{t}", t) for t in (1, 2, 1, 2)]
    data = prepare(PrepareConfig(**write(tmp_path, rows, k_core=3)))
    assert (data.num_users, len(data.items), data.exclude_seen) == (3, 18, True)
    kept = write(tmp_path, rows, k_core=3, keep_copies=True) | {"output": str(tmp_path / "kept")}
    data = prepare(PrepareConfig(**kept))
    assert (data.num_users, len(data.items), data.exclude_seen) == (4, 22, False)
    text = describe(tmp_path / "kept")
    assert "duplicate events (same user, item and time), kept: 2" in text
    assert "warning: users of fewer different items than k_core: 1" in text


def test_ties_are_counted(tmp_path: Path) -> None:
    prepare(
        PrepareConfig(
            **write(tmp_path, [(u, i, t // 4) for u, i, t in TURNS], split="leave_one_out")
        )
    )
    assert "warning: events that share user and time, in random order: 20" in describe(
        tmp_path / "out"
    )
    rows = [(u, i, max(t, 2)) for u, i, t in TURNS]  # the first two of user a
    prepare(PrepareConfig(**write(tmp_path, rows) | {"output": str(tmp_path / "two")}))
    assert "\nevents that share user and time, in random order: 2" in describe(tmp_path / "two")


def test_k_core_shrinks_the_catalogue_and_k_1_keeps_everything(tmp_path: Path) -> None:
    rows = [("abc"[t % 3], f"i{t % 5}", t) for t in range(30)] + [("d", "i0", 5), ("a", "rare", 6)]
    items = write_items(tmp_path, [("i0", "zero"), ("none", "never bought")])
    prepare(PrepareConfig(**write(tmp_path, rows, **items)))
    expected = [("i0", "zero"), *((f"i{k}", "") for k in range(1, 5))]
    kept = load_items(tmp_path / "out").rows()
    assert kept == [*expected, ("none", "never bought"), ("rare", "")]
    text = describe(tmp_path / "out")
    assert "warning: items of the events without a row in the items file: 5" in text
    assert "warning: items without text: 5" in text
    settings = write(tmp_path, rows, k_core=2, **items) | {"output": str(tmp_path / "core")}
    data = prepare(PrepareConfig(**settings))
    assert load_items(tmp_path / "core").rows() == expected
    assert (data.num_users, data.num_items, len(data.items)) == (3, 5, 30)
    assert load_facts(tmp_path / "core")["dropped_k_core"] == 2


def test_times_that_are_not_whole_become_ranks(tmp_path: Path) -> None:
    data = prepare(PrepareConfig(**write(tmp_path, [(u, i, t / 4) for u, i, t in TURNS])))
    assert data.times.tolist() == [*range(0, 20, 2), *range(1, 20, 2)]
    assert load_facts(tmp_path / "out")["cuts"]["test"] == 4.5


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([("a", i, t) for _, i, t in TURNS], {}, "holds the one user 'a': give events of two"),
        (
            [(u, "x", t) for u, _, t in TURNS],
            {},
            "holds the one item 'x': give events of two items",
        ),
        (TURNS, {"k_core": 2}, "holds no user after the filter k_core 2: give a lower k_core"),
        (
            [*TURNS, ("a", "i01", 21), ("a", "i01", 22)],
            {"k_core": 11},
            "holds no user after the filter k_core 11",
        ),
        ([(u, i, 5) for u, i, _ in TURNS], {}, "the split 'train' gets none of the 20 events"),
        (
            [*TURNS[:18], ("c", "i18", 18), ("d", "i19", 19)],
            {},
            "the split 'test' has 2 events but none with an earlier event of the same user: give",
        ),
    ],
)
def test_data_too_small(
    tmp_path: Path, rows: list[Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecastError) as caught:
        prepare(PrepareConfig(**write(tmp_path, rows, **more)))
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["events.csv"]


def test_an_output_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    settings = write(tmp_path, TURNS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(RecastError, match="out already holds something"):
        prepare(PrepareConfig(**settings))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """A limit on the size of files makes every write fail in the middle, as a full disk does."""
    settings = write(tmp_path, TURNS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(RecastError, match=r"out cannot be written \(.*\): files are limited"):
            prepare(PrepareConfig(**settings))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["events.csv"]


def test_folders_that_are_no_data(tmp_path: Path) -> None:
    for load in (load_data, load_items, describe):
        with pytest.raises(RecastError, match=r"is no data folder .*: make one with `recast prep"):
            load(tmp_path / "none")
    prepare(PrepareConfig(**write(tmp_path, TURNS)))
    forget_hashes(tmp_path / "out", events=21)
    with pytest.raises(RecastError, match=r"holds 20 events, data\.json says 21: make it again"):
        load_data(tmp_path / "out")
    (tmp_path / "out" / "items.parquet").unlink()
    with pytest.raises(RecastError, match=r"no items\.parquet"):
        load_items(tmp_path / "out")


def test_what_was_edited_is_found_by_its_hash(tmp_path: Path) -> None:
    prepare(PrepareConfig(**write(tmp_path, TURNS)))
    folder = tmp_path / "out"
    for name in ("interactions.parquet", "users.parquet", "items.parquet"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
        with pytest.raises(RecastError, match=rf"out is damaged \({name} was changed since it was"):
            load_data(folder)
        (folder / name).write_bytes(content)
    with (folder / "items.parquet").open("r+b") as stream:
        stream.truncate(2**42)  # sparse: its size tells before it is read
    with pytest.raises(RecastError, match=r"items.parquet was changed since it was written"):
        load_items(folder)
    facts = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(facts | {"exclude_seen": False}))
    with pytest.raises(RecastError, match=r"data.json is damaged \(it was changed since it was"):
        data_hash(folder)
    with (folder / "data.json").open("r+b") as stream:
        stream.truncate(2**40)
    with pytest.raises(RecastError, match=r"data.json is damaged \(more than 1,048,576 bytes"):
        load_facts(folder)


@given(
    st.sampled_from(["interactions.parquet", "users.parquet", "items.parquet", "data.json"]),
    st.integers(0, 4000),
    st.binary(max_size=3),
    st.booleans(),
)
@examples(max_examples=60, deadline=None)
def test_a_changed_folder_ends_in_one_line(
    small_folder: Path, name: str, place: int, patch: bytes, is_cut: bool
) -> None:
    content = (small_folder / name).read_bytes()
    place %= len(content)
    changed = content[:place] + patch + (b"" if is_cut else content[place + len(patch) :])
    (small_folder / name).write_bytes(changed)
    try:
        # White space and the order of the keys say nothing.
        if changed != content and (name != "data.json" or not same_json(changed, content)):
            with pytest.raises(RecastError):
                load_data(small_folder)
    finally:
        (small_folder / name).write_bytes(content)


def same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    prepare(PrepareConfig(**write(folder, TURNS)))
    return folder / "out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": 3}, "users.parquet does not hold 3 users"),
        ({"items": 10**12}, "items.parquet does not hold 1000000000000 items"),
        ({"users": True}, "users.parquet does not hold True users"),
        ({"exclude_seen": "no"}, "exclude_seen is 'no'"),
        ({"files": ["x"]}, "out is damaged ("),
    ],
)
def test_facts_that_fit_no_table(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    prepare(PrepareConfig(**write(tmp_path, TURNS)))
    forget_hashes(tmp_path / "out", **changes)
    with pytest.raises(RecastError) as caught:
        load_data(tmp_path / "out")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "load", "message"),
    [
        ("data.json", "{", load_facts, "data.json is damaged (Expecting property name"),
        ("data.json", "[" * 100_000, load_facts, "data.json is damaged (maximum recursion depth"),
        ("data.json", "[]", load_data, "data.json is damaged (it holds a list, no dict)"),
        ("data.json", "{}", load_data, "out is damaged (no 'events')"),
        ("data.json", "{}", describe, "data.json is damaged (no 'source')"),
        ("interactions.parquet", "no", load_data, "out is damaged ("),
        ("items.parquet", "no", load_items, "out is damaged ("),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str, load: Any, message: str) -> None:
    prepare(PrepareConfig(**write(tmp_path, TURNS)))
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(RecastError) as caught:
        load(tmp_path / "out")
    assert message in str(caught.value)
    assert str(caught.value).endswith("): make it again with `recast prepare`")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("interactions", pl.col("item") + 1, "column 'item' is not all numbers from 0 to 19"),
        ("interactions", pl.col("user").reverse(), "column 'user' is not sorted"),
        ("interactions", pl.col("split").cast(pl.String), "column 'split' holds String"),
        ("interactions", pl.col("time").cast(pl.String), "column 'time' holds String"),
        ("interactions", -pl.col("time"), "column 'time' goes backwards within a user"),
        ("interactions", pl.col("split").reverse(), "column 'split' goes backwards within a user"),
        (
            "interactions",
            pl.when(pl.col("time") == 17).then(15).otherwise(pl.col("time")).alias("time"),
            "the splits overlap in time",
        ),
        (
            "interactions",
            pl.when(pl.col("time") == 18).then(4).otherwise(pl.col("item")).alias("item"),
            "a user's item repeats, though seen items are no candidates",
        ),
        ("interactions", pl.col("time").shift(), "interactions.parquet, row 0 has no time"),
        ("items", pl.lit(None).alias("text"), "items.parquet, row 0 has no text"),
        ("items", pl.lit(1).alias("text"), "items.parquet holds {'item_id': String, 'text': Int32"),
        ("items", pl.all(), None),  # one row less
    ],
)
def test_edited_tables(tmp_path: Path, name: str, change: pl.Expr, message: str | None) -> None:
    prepare(PrepareConfig(**write(tmp_path, TURNS)))
    file = tmp_path / "out" / f"{name}.parquet"
    table = pl.read_parquet(file)
    if message is None:
        table, message = table[:19], "out is damaged (19 items, data.json says 20)"
    else:
        table = table.with_columns(change)
    table.write_parquet(file)
    forget_hashes(tmp_path / "out")
    with pytest.raises(RecastError) as caught:
        (load_data if name == "interactions" else load_items)(tmp_path / "out")
    assert message in str(caught.value)


def test_brackets_and_a_tilde_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is a pattern: each file and folder is the one that is named."""
    monkeypatch.chdir(tmp_path)
    folder = Path("~") / "a[1]"
    folder.mkdir(parents=True)
    write(folder.absolute(), TURNS[:3], "q1.csv")
    write(folder.absolute(), TURNS, "q[1].csv")
    output, events = str(folder / "out"), str(folder / "q[1].csv")
    data = prepare(PrepareConfig(interactions=events, output=output))
    assert len(data.users) == 20
    assert len(load_items(folder / "out")) == 20
    assert sorted(p.name for p in (tmp_path / "~" / "a[1]").iterdir()) == [
        "out",
        "q1.csv",
        "q[1].csv",
    ]


def test_the_category_of_an_item_is_kept(tmp_path: Path) -> None:
    """As text without white space around it; "" where the file has none, or a word for that."""
    rows = [f"{u},{(u + t) % 4},{t * 9 + u}" for u in range(9) for t in range(5)]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,time", *rows]))
    items = ["item,title,kind", "0,a, red ", "1,b,NaN", "2,c,", "4,e,blue"]
    (tmp_path / "items.csv").write_text("\n".join(items))
    given = {"interactions": str(tmp_path / "events.csv"), "output": str(tmp_path / "out")}
    with pytest.raises(RecastError, match="category is 'kind' without a file: set items as well"):
        prepare(PrepareConfig(**given, category="kind"))
    given |= {"items": str(tmp_path / "items.csv"), "text": ["title"]}
    prepare(PrepareConfig(**given, category="kind"))
    assert load_items(tmp_path / "out")["item_id"].to_list() == ["0", "1", "2", "3", "4"]
    assert load_categories(tmp_path / "out") == ["red", "", "", "", "blue"]
    prepare(PrepareConfig(**given | {"output": str(tmp_path / "none")}))
    assert load_categories(tmp_path / "none") == []
    with pytest.raises(RecastError, match="has no column 'genre'"):
        prepare(PrepareConfig(**given | {"output": str(tmp_path / "no")}, category="genre"))
