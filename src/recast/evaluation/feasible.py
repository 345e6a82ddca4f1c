"""Can a table be? HR and NDCG of methods with one target per row in, what is impossible out.

`recast feasible` reads them from a file. With one target per row, h_r the share of rows whose
target stands at place r and n rows:

    HR@k = sum of h_r over r <= k,   NDCG@k = sum of h_r / log2(r + 1) over r <= k

so HR@k is a multiple of 1 / n, neither falls as k grows, and NDCG gains from a cut to the next one
between 1 / log2(b + 1) and 1 / log2(a + 2) of what HR gains between a and b.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recast.config import FeasibleConfig
from recast.run.reading import reading
from recast.types import Metrics, RecastError, require

_EXACT = 1e-9
"""Half of the last digit of numbers that nobody rounded."""

Box = tuple[float, float]
"""The least and the most that a rounded number may have been."""

_HEAD = re.compile(r"(hr|hit|recall|ndcg)@([1-9]\d{0,4})", re.IGNORECASE)
_NUMBER = re.compile(r"[01]?\.(\d{1,12})(?!\d)")


class TableRow(NamedTuple):
    """HR and NDCG of one method, as printed."""

    place: str
    """Its line and its first cell."""
    cells: dict[str, float]
    decimals: int
    """Digits behind the point of the cell that has fewest."""


def check_tables(config: FeasibleConfig) -> str:
    """What cannot be in the tables of a file, a line each, and how many rows were looked at.

    Raises `RecastError` where there is no row with two metrics or more.
    """
    with reading(config.tables, "give tables in Markdown or CSV, as text"):
        rows = list(table_rows(Path(config.tables).read_text(encoding="utf-8")))
    if not rows:
        raise RecastError(
            f"{config.tables} has no line with two of HR@k (Hit@k, Recall@k) and NDCG@k: give a "
            "table in Markdown or CSV with such heads, of shares such as 0.0927, no percent"
        )
    lines, wrong = [], 0
    for row in rows:
        problems = impossible(row.cells, decimals=row.decimals, num_rows=config.num_rows)
        wrong += bool(problems)
        lines += [f"{row.place}: {problem}" for problem in problems]
    return "\n".join([*lines, f"{len(rows)} rows, {wrong} of which cannot be"])


def table_rows(text: str) -> Iterator[TableRow]:
    """The rows of all tables, Markdown's or CSV, whose heads name HR@k (Hit@k, Recall@k) or NDCG@k.
    What else the columns hold, such as a -, is left out.

    >>> list(table_rows("method,HR@1,NDCG@5\\nours,.25,0.300"))
    [TableRow(place='line 2, ours', cells={'hr@1': 0.25, 'ndcg@5': 0.3}, decimals=2)]
    """
    heads: list[re.Match[str] | None] = []
    for number, line in enumerate(text.splitlines(), 1):
        is_markdown = line.strip().startswith("|")
        parts = line.strip().strip("|").split("|") if is_markdown else next(csv.reader([line]), [])
        row = [part.strip(" *_`") for part in parts]
        if any(map(_HEAD.fullmatch, row)):
            heads = list(map(_HEAD.fullmatch, row))
        elif len(row) != len(heads):
            heads = []
        else:
            found = {
                f"{'ndcg' if head[1].lower() == 'ndcg' else 'hr'}@{head[2]}": value
                for head, cell in zip(heads, row, strict=True)
                if head and (value := _NUMBER.match(cell))
            }
            if len(found) > 1:
                cells = {name: float(value[0]) for name, value in found.items()}
                decimals = min(len(value[1]) for value in found.values())
                yield TableRow(f"line {number}, {row[0]}", cells, decimals)


def check_means(means: Metrics) -> None:
    """Hold means of ours, `LEVEL/hr@k` and `LEVEL/ndcg@k`, to what ranks of one target can give."""
    for level in dict.fromkeys(name.partition("/")[0] for name in means):
        named = {name.removeprefix(f"{level}/"): min(v, 1.0) for name, v in means.items()}
        problems = impossible({name: v for name, v in named.items() if _HEAD.fullmatch(name)})
        assert not problems, f"{level}: {problems}"


def impossible(
    cells: Mapping[str, float], *, decimals: int | None = None, num_rows: int | None = None
) -> list[str]:
    """What cannot be among `hr@k` and `ndcg@k` of one method, in words; nothing if all can.

    `decimals` say how the cells were rounded; unset: not at all. `num_rows` holds for tables that
    count places: an expectation over items that share a semantic ID, or a mean over seeds, is no
    multiple of 1 / n. What is left in doubt by rounding passes. Raises `RecastError` for another
    name and for a cell that is no number from 0 to 1.

    A row of MiniOneRec's Table 1 (2510.24431), whose NDCG would have to gain .0043 to .0047:

    >>> impossible({"hr@3": 0.0927, "ndcg@3": 0.0885, "hr@5": 0.1037, "ndcg@5": 0.0918}, decimals=4)
    ['ndcg@5 - ndcg@3 is 0.0033: hr@5 - hr@3 = 0.0110 allows 0.0043 to 0.0047']
    >>> impossible({"hr@1": 0.25, "hr@5": 0.5}, num_rows=10)
    ['hr@1 is 0.25, no multiple of 1 / 10']
    """
    values: dict[str, dict[int, float]] = {"hr": {}, "ndcg": {}}
    for name, value in cells.items():
        metric, _, cut = name.partition("@")
        fits = metric in values and cut.isascii() and cut.isdecimal() and 0 < int(cut) < 10**6
        require(fits, "cell", name, "name hr@k and ndcg@k alone, such as ndcg@10")
        is_share = isinstance(value, int | float) and 0 <= value <= 1
        require(is_share, name, value, "give a number from 0 to 1, no percent")
        values[metric][int(cut)] = float(value)
    remedy = "give how many digits stand behind the point, from 1 to 12"
    require(decimals is None or 1 <= decimals <= 12, "decimals", decimals, remedy)
    require(num_rows is None or num_rows >= 1, "num_rows", num_rows, "give 1 or more")
    half = _EXACT if decimals is None else 0.5 * 10.0**-decimals + _EXACT
    boxes = {
        metric: {k: (found[k] - half, found[k] + half) for k in sorted(found)}
        for metric, found in values.items()
    }
    problems = []
    if num_rows is not None:
        for k, box in boxes["hr"].items():
            least, most = math.ceil(box[0] * num_rows), math.floor(box[1] * num_rows)
            if least > most:
                problems.append(f"hr@{k} is {values['hr'][k]:g}, no multiple of 1 / {num_rows}")
            else:
                boxes["hr"][k] = (least / num_rows, most / num_rows)
    for metric, some in boxes.items():
        cuts = list(some)
        for a, b in itertools.pairwise(cuts):
            if some[b][1] < some[a][0]:
                problems.append(
                    f"{metric}@{b} is {values[metric][b]:g}, below {metric}@{a}, "
                    f"{values[metric][a]:g}"
                )
    return problems or list(_gains(values, boxes, 4 if decimals is None else decimals))


def _gains(
    values: dict[str, dict[int, float]], boxes: dict[str, dict[int, Box]], decimals: int
) -> Iterator[str]:
    """NDCG that gains too much or too little, from one cut that both have to the next."""
    hr, ndcg = ({0: (0.0, 0.0)} | boxes[metric] for metric in ("hr", "ndcg"))
    both = [k for k in ndcg if k in hr]
    for a, b in itertools.pairwise(both):
        within = [k for k in hr if a <= k <= b]
        least, most = _allowed(within, hr)
        low, high = ndcg[b][0] - ndcg[a][1], ndcg[b][1] - ndcg[a][0]
        if low > most or high < least:
            exact = {k: (v, v) for k, v in ({0: 0.0} | values["hr"]).items()}
            nominal = [f"{bound:.{decimals}f}" for bound in _allowed(within, exact)]
            names = [" - ".join(f"{m}@{k}" for k in (b, a) if k) for m in ("ndcg", "hr")]
            gain, hits = (values[m][b] - (values[m][a] if a else 0.0) for m in ("ndcg", "hr"))
            yield (
                f"{names[0]} is {gain:.{decimals}f}: {names[1]} = {hits:.{decimals}f} allows "
                f"{nominal[0]} to {nominal[1]}"
            )


def _allowed(cuts: Sequence[int], hr: Mapping[int, Box]) -> Box:
    """Least and most that NDCG gains from the first cut to the last one.

    Of the hits between two cuts all may stand at the last place, or all at the first. A hit more
    before an inner cut, with those at the ends as they are, is worth more.
    """
    least = most = 0.0
    for number, (a, b) in enumerate(itertools.pairwise(cuts)):
        worst, best = 1 / math.log2(b + 1), 1 / math.log2(a + 2)
        low_a, high_a = hr[a]
        low_b, high_b = hr[b]
        # The first cut pulls the sum down, all others up: their bounds are taken so.
        least += worst * (low_b - (high_a if number == 0 else low_a))
        most += best * (high_b - (low_a if number == 0 else high_a))
    return max(least, 0.0), most
