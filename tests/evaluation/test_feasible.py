"""Tables that can be and tables that cannot, by hand, of others and of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_walk import failure

from recast import cli
from recast.evaluation.feasible import check_means, impossible, table_rows
from recast.evaluation.metrics import Ranks, row_metrics
from recast.types import RecastError

COLUMNS = ("hr@3", "ndcg@3", "hr@5", "ndcg@5", "hr@10", "ndcg@10")
# MiniOneRec, 2510.24431, Table 1: 4,533 test rows of Industrial, 4,866 of Office.
INDUSTRIAL = """
GRU4Rec .0638 .0542 .0774 .0598 .0999 .0669
Caser .0618 .0514 .0717 .0555 .0942 .0628
SASRec .0790 .0700 .0909 .0748 .1088 .0806
HSTU .0927 .0885 .1037 .0918 .1163 .0958
TIGER .0852 .0742 .1010 .0807 .1321 .0908
LCRec .0915 .0805 .1057 .0862 .1332 .0952
BIGRec .0931 .0841 .1092 .0907 .1370 .0997
D3 .1024 .0991 .1213 .0989 .1500 .1082
S-DPO .1032 .0906 .1238 .0991 .1524 .1082
MiniOneRec .1143 .1011 .1321 .1084 .1586 .1167
"""
OFFICE = """
GRU4Rec .0629 .0528 .0789 .0595 .1019 .0669
Caser .0748 .0615 .0865 .0664 .1093 .0737
SASRec .0861 .0769 .0949 .0805 .1120 .0858
HSTU .1134 .1031 .1252 .1079 .1400 .1126
TIGER .0986 .0852 .1163 .0960 .1408 .1002
LCRec .0921 .0807 .1048 .0859 .1237 .0920
BIGRec .1069 .0961 .1204 .1017 .1434 .1091
D3 .1204 .1055 .1406 .1139 .1634 .1213
S-DPO .1169 .1033 .1356 .1110 .1587 .1255
MiniOneRec .1217 .1088 .1420 .1172 .1634 .1242
"""


def rows_of(table: str) -> dict[str, dict[str, float]]:
    lines = [line.split() for line in table.split("\n") if line]
    return {name: dict(zip(COLUMNS, map(float, cells), strict=True)) for name, *cells in lines}


@pytest.mark.parametrize(
    ("table", "wrong"), [(INDUSTRIAL, ["HSTU", "D3"]), (OFFICE, ["TIGER", "S-DPO"])]
)
def test_of_a_published_table_four_rows_cannot_be(table: str, wrong: list[str]) -> None:
    found = {name: impossible(cells, decimals=4) for name, cells in rows_of(table).items()}
    assert [name for name in found if found[name]] == wrong


def test_ndcg_that_falls() -> None:
    assert impossible(rows_of(INDUSTRIAL)["D3"], decimals=4) == [
        "ndcg@5 is 0.0989, below ndcg@3, 0.0991"
    ]
    assert impossible({"hr@5": 0.3, "hr@1": 0.4}) == ["hr@5 is 0.3, below hr@1, 0.4"]


def test_an_inner_cut_tells_more() -> None:
    """HR@5 = .5 alone allows NDCG@5 from .5 / log2(6) = .1934 to .5; with HR@1 = .4 from .4 +
    .1 / log2(6) = .4387 to .4 + .1 / log2(3) = .4631."""
    assert impossible({"hr@5": 0.5, "ndcg@5": 0.3}) == []
    assert impossible({"hr@1": 0.4, "hr@5": 0.5, "ndcg@5": 0.3}) == [
        "ndcg@5 is 0.3000: hr@5 = 0.5000 allows 0.4387 to 0.4631"
    ]
    assert impossible({"hr@1": 0.4, "hr@5": 0.5, "ndcg@5": 0.439}) == []
    assert impossible({"hr@1": 0.4, "hr@5": 0.5, "ndcg@5": 0.464}) != []


def test_shares_of_rows() -> None:
    assert impossible({"hr@3": 0.333}, decimals=3, num_rows=3) == []
    assert impossible({"hr@3": 0.334}, decimals=3, num_rows=3) != []
    assert impossible({"hr@1": 0.5, "ndcg@1": 0.5}, num_rows=4) == []
    assert impossible({"hr@1": 0.5, "ndcg@1": 0.4}, num_rows=4) != []


@pytest.mark.parametrize("decimals", [None, 4])
def test_ours_can_always_be(decimals: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    for number in (1, 7, 300):
        rank = torch.randint(0, 60, (number, 1), generator=draw)
        yes = torch.ones(number, 1, dtype=torch.bool)
        sharing = torch.randint(1, 4, (number, 1), generator=draw)
        rows = torch.arange(number)
        ranks = Ranks(
            **{"row_ids": rows, "users": rows, "item_mask": yes, "sid_mask": yes},
            **{"sid_rank": rank, "items_before": rank, "num_sharing": sharing},
        )
        for level in ("item", "sid"):
            found = row_metrics(ranks, (1, 3, 5, 10, 50), (level,))
            cells = {name.split("/")[1]: float(v.mean()) for name, v in found.items()}
            if decimals:
                cells = {name: round(value, decimals) for name, value in cells.items()}
            counted = number if level == "sid" else None  # at item level it is an expectation
            assert impossible(cells, decimals=decimals, num_rows=counted) == []


def test_tables_of_our_pages_can_be() -> None:
    root, checked = Path(__file__).parents[2], 0
    for page in (*root.glob("*.md"), *root.glob("docs/**/*.md")):
        for row in table_rows(page.read_text()):
            checked += 1
            assert impossible(row.cells, decimals=row.decimals) == [], f"{page}, {row.place}"
    assert checked > 10


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_a_file_of_tables_on_the_command_line(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of two tables with other heads, and a name with a comma in it."""
    lines = [["Method", *COLUMNS], *map(str.split, INDUSTRIAL.strip().splitlines())]
    lines = [[cells[0].replace("D3", '"D3, ours"'), *cells[1:]] for cells in lines]
    if form == "markdown":
        lines.insert(1, ["---"] * 7)
        rows = [f"| **{' | '.join(cells)} |".replace('"', "") for cells in lines]
    else:
        rows = [",".join(cells) for cells in lines]
    text = "\n".join(
        [*rows, "", "Method,Recall@5,time", "ours,0.5,3 s", "", "x,HR@1,NDCG@1", "y,.30,.20"]
    )
    (tmp_path / "table").write_text(text)
    cli.main(["feasible", "--tables", str(tmp_path / "table")])
    *said, total, _ = capsys.readouterr().out.splitlines()
    first = 2 + (form == "markdown")
    places = [line.partition(":")[0] for line in said]
    assert places[:2] == [f"line {first + 3}, HSTU", f"line {first + 7}, D3, ours"]
    assert places[2].endswith(", y")
    assert total == "11 rows, 3 of which cannot be"
    cli.main(["feasible", "--tables", str(tmp_path / "table"), "--num_rows=4533"])
    assert f"line {first + 5}, LCRec: hr@3 is 0.0915, no multiple" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("method,hr@5,ndcg@5\nours,9.3,8.8\n", "has no line with two of HR@k"),
        ("| a |\n", "has no line with two of HR@k"),
        ("\xff", "give tables in Markdown or CSV, as text"),
    ],
)
def test_files_without_a_table(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.csv"
    file.write_text(content, encoding="latin-1")
    line, code = failure(capsys, "feasible", "--tables", str(file))
    assert line.startswith(str(file))
    assert said in line
    assert code == 2
    line, _ = failure(capsys, "feasible", f"--tables={tmp_path / 'none'}")
    assert line == f"{tmp_path / 'none'}: no such file: check the path"


def test_means_of_ours_are_held_to_it() -> None:
    check_means({"item/hr@5": 1.0 + 1e-15, "item/ndcg@5": 0.5, "sid/hr@5": 0.9, "sid/mrr@5": 0.0})
    with pytest.raises(AssertionError, match=r"sid: .'ndcg@5 is 0.5000"):
        check_means({"item/hr@5": 1.0, "item/ndcg@5": 0.5, "sid/hr@5": 0.4, "sid/ndcg@5": 0.5})


@pytest.mark.parametrize(
    ("cells", "more", "words"),
    [
        ({"recall@5": 0.1}, {}, "cell is 'recall@5'"),
        ({"hr@x": 0.1}, {}, "cell is 'hr@x'"),
        ({"hr@5": float("nan")}, {}, "hr@5 is nan"),
        ({"hr@5": 11.43}, {}, "hr@5 is 11.43: give a number from 0 to 1, no percent"),
        ({"hr@5": 0.1}, {"decimals": 0}, "decimals is 0"),
        ({"hr@5": 0.1}, {"num_rows": 0}, "num_rows is 0"),
    ],
)
def test_what_is_no_table(cells: dict[str, float], more: dict[str, int], words: str) -> None:
    with pytest.raises(RecastError, match=words):
        impossible(cells, **more)
