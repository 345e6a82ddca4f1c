"""Results as a table: the content of `results.json` (`recast.evaluation.compare`) in, text out.

One description of the columns serves the screen, plain text and Markdown alike.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import Box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

Results = Mapping[str, Any]
Column = tuple[str, Callable[[Mapping[str, Any]], str]]
"""Heading (a line break where it may be narrowed) and the cell of one method."""

# Only a rule under the heading: the same characters on every terminal and in a file.
_RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def results_table(results: Results, title: str = "", width: int = 120) -> Group:
    """A rich renderable: one table, or two stacked ones where `width` columns do not hold it,
    with what the numbers are underneath."""
    columns = _quality(results), _cost(results)
    whole = _table(results, [*columns[0], *columns[1]], title)
    fits = Console(width=10_000).measure(whole).maximum <= width
    tables = [whole] if fits else [_table(results, columns[0], title), _table(results, columns[1])]
    spaced = [part for table in tables for part in (table, Text())]
    return Group(*spaced, *map(Text, caption(results)))


def plain(results: Results, title: str = "", width: int = 120) -> str:
    """The same as aligned text without colours."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False)
    console.print(results_table(results, title, width), highlight=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def markdown(results: Results) -> str:
    """The same as a Markdown table, for the README and the log."""
    columns = [*_quality(results), *_cost(results)]
    heads = ["Method", *(head.replace("\n", " ") for head, _ in columns)]
    lines = [heads, ["---", *["---:"] * len(columns)]]
    lines += [
        [name, *(cell(method) for _, cell in columns)]
        for name, method in results["methods"].items()
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return table + "\n\n" + "\n".join(caption(results)) + "\n"


def caption(results: Results) -> list[str]:
    """What the numbers are, one sentence per line."""
    seeds = ", ".join(map(str, results["training_seeds"]))
    plural = "s" * (len(results["training_seeds"]) > 1)
    lines = [
        f"{results['split']} split ({results['split_name']}): {results['rows']:,} rows of "
        f"{results['users']:,} users; item level unless it says SID. "
        f"Training seed{plural} {seeds}.",
        f"95 % intervals and two-sided paired p-values resample users, not rows "
        f"({results['draws']:,} draws, seed {results['seed']}); they do not cover training seeds. "
        f"With one target per row HR@k is Recall@k and Pass@k.",
    ]
    if results["users"] == 1:
        lines.append("There is one user: nothing can be resampled, every interval is a point.")
    if results["sid_equals_item"]:
        lines.append("No SID is shared in these rows: SID level and item level are equal.")
    return lines


def _quality(results: Results) -> list[Column]:
    primary = results["primary"]
    columns: list[Column] = [
        (_name(primary), _value(primary)),
        ("95 %\ninterval", lambda method: _interval(method["metrics"][primary])),
    ]
    columns += [(f"p vs\n{other}", _p_value(primary, other)) for other in results["against"]]
    return columns + [
        (_name(key), _value(key))
        for key in ("item/hr@1", "item/hr@5", "item/hr@10", "item/hr@32", "item/ndcg@5")
    ]


def _cost(results: Results) -> list[Column]:
    return [
        *((f"SID\n{_name(key)}", _value(key)) for key in ("sid/ndcg@10", "sid/hr@10")),
        ("invalid\n%", _extra("invalid_frac", lambda frac: f"{100 * frac:.2f}")),
        ("rollouts", _extra("rollouts", lambda number: f"{number:,.0f}")),
        ("CPU s", _extra("cpu_s", lambda seconds: f"{seconds:,.0f}")),
    ]


def _table(results: Results, columns: Sequence[Column], title: str = "") -> Table:
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=_RULED,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    table.add_column("Method", vertical="bottom", no_wrap=True)
    for head, _ in columns:
        table.add_column(head, justify="right", vertical="bottom", no_wrap=True)
    for name, method in results["methods"].items():
        table.add_row(Text(name), *(cell(method) for _, cell in columns))
    return table


def _name(key: str) -> str:
    return key.split("/")[1].upper()


def _value(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda method: _number(method["metrics"][key]["value"])


def _interval(metric: Mapping[str, float]) -> str:
    return f"{_number(metric['low'])}-{_number(metric['high'])}"


def _p_value(key: str, other: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(method: Mapping[str, Any]) -> str:
        versus = method["metrics"][key]["against"].get(other)
        return _number(versus["p"]) if versus else "-"

    return cell


def _extra(name: str, form: Callable[[float], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda method: form(method["extras"][name]) if name in method["extras"] else "-"


def _number(value: float) -> str:
    """Four digits behind the point, no zero before it.

    >>> _number(0.12345), _number(1.0)
    ('.1235', '1.0000')
    """
    return f"{value:.4f}".removeprefix("0")
