"""Results as a table: `recast.evaluation.results.Results` in, text out.

One description of the columns serves the screen, plain text and Markdown alike.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from rich.box import Box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from recast.evaluation.facts import Facts
from recast.evaluation.results import Measured, MethodResults, Results

Column = tuple[str, Callable[[MethodResults], str]]
"""Heading (a line break where it may be narrowed) and the cell of one method."""

_SHOWN = {
    False: ("item/hr@1", "item/hr@10", "item/hr@32", "item/hr@50", "item/ndcg@5"),
    True: (
        "item/pass@1",
        *(f"item/{name}@{k}" for k in (32, 50) for name in ("pass", "first_pass", "recall")),
        "item/ndcg@5",
    ),
}
"""Columns beside the primary metric, by whether a row has several targets; those at 32 are of
evaluations by 32 beams."""

_KEPT = {"best": "of the best validation", "last": "of the last step"}

_VALIDATED = "item/ndcg@10"
_DRIFT = 0.2
"""Of the larger of both: more is said."""

# Only a rule under the heading: the same characters on every terminal and in a file.
RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


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
        [name, *(cell(method) for _, cell in columns)] for name, method in results.methods.items()
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return table + "\n\n" + "\n".join(caption(results)) + "\n"


def caption(results: Results) -> list[str]:
    """What the numbers are, one sentence per line."""
    seeds = ", ".join(map(str, results.training_seeds))
    plural = "s" * (len(results.training_seeds) > 1)
    targets = "With one target per row HR@k is Recall@k and Pass@k."
    if results.several_targets:
        targets = "Rows have several targets: PASS@k asks for any of them, FIRST PASS@k the first."
    where = f"{results.split} split ({results.split_name})" if results.split else "Some rows"
    lines = [
        f"{where}: {results.rows:,} rows of "
        f"{results.users:,} users; item level unless it says SID. "
        f"Training seed{plural} {seeds}.",
        f"95 % intervals and two-sided paired p-values resample users, not rows "
        f"({results.draws:,} draws, seed {results.seed}); they do not cover training seeds. "
        f"{targets}",
        *_facts({name: method.facts for name, method in results.methods.items()}),
    ]
    if drift := _drift(results):
        lines.append(drift)
    if results.users == 1:
        lines.append("There is one user: nothing can be resampled, every interval is a point.")
    if results.sid_equals_item:
        lines.append("No SID is shared in these rows: SID level and item level are equal.")
    return lines


def _facts(methods: dict[str, Facts]) -> list[str]:
    """Candidates, lists and what each method was fitted on; nothing where nothing is known."""
    lines = []
    known = [facts for facts in methods.values() if facts.num_candidates is not None]
    if known:
        seen = "without" if known[0].exclude_seen else "with"
        lists = _by_value({name: _list_of(facts) for name, facts in methods.items()})
        lines.append(
            f"Candidates: {known[0].num_candidates:,} items, {seen} those of the row's own "
            f"history. Listed: {lists}."
        )
    if any(facts.events_seen for facts in methods.values()):
        events = {name: _events(facts.events_seen) for name, facts in methods.items()}
        lines.append(f"Events seen in training: {_by_value(events)}.")
    if guided := {name: facts for name, facts in methods.items() if facts.guide}:
        words = [f"{name} by {_guide_of(facts)}" for name, facts in guided.items()]
        lines.append(f"Mixed with a guide: {'; '.join(words)}.")
    if kept := {name: facts.kept for name, facts in methods.items() if facts.kept}:
        weights = {name: _KEPT[which] for name, which in kept.items()}
        lines.append(f"Weights: {_by_value(weights)}.")
    return lines


def _events(seen: tuple[str, ...] | None) -> str:
    return "not known" if seen is None else " + ".join(seen) or "none"


def _drift(results: Results) -> str:
    """Methods that were a fifth or more better, or worse, on validation than on test."""
    said = []
    for name, method in results.methods.items():
        valid, measured = method.facts.valid_ndcg, method.metrics.get(_VALIDATED)
        if valid is None or measured is None or method.facts.split != "test":
            continue
        if abs(valid - measured.value) > _DRIFT * max(valid, measured.value):
            said.append(f"{name} validation {_number(valid)}, test {_number(measured.value)}")
    return f"Validation and test differ in NDCG@10: {'; '.join(said)}." if said else ""


def _guide_of(facts: Facts) -> str:
    chosen = facts.alpha_chosen_on
    return f"{facts.guide}{f' (alpha chosen on {chosen} rows)' if chosen else ''}"


def _list_of(facts: Facts) -> str:
    if facts.beam_width is not None:
        behind = f" behind {facts.thoughts} thoughts" if facts.thoughts else ""
        return f"{facts.beam_width} SIDs{behind}"
    return "not known" if facts.num_candidates is None else "the whole catalogue"


def _by_value(values: dict[str, str]) -> str:
    """Names behind the value that they share; the value alone where all do.

    >>> _by_value({"SFT": "train", "kNN": "train + rl", "GRPO": "train + rl"})
    'train (SFT); train + rl (kNN, GRPO)'
    """
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


def _quality(results: Results) -> list[Column]:
    primary = results.primary
    columns: list[Column] = [
        (_name(primary), _value(primary)),
        ("95 %\ninterval", lambda method: _interval(method.metrics[primary])),
    ]
    columns += [(f"p vs\n{_broken(other)}", _p_value(primary, other)) for other in results.against]
    shown = [key for key in _SHOWN[results.several_targets] if key in results.metrics]
    return columns + [(_name(key), _value(key)) for key in shown]


def _cost(results: Results) -> list[Column]:
    hits = "sid/pass@10" if results.several_targets else "sid/hr@10"
    keys = () if results.sid_equals_item else ("sid/ndcg@10", hits)
    levels = [key for key in keys if key in results.metrics]
    return [
        *((f"SID\n{_name(key)}", _value(key)) for key in levels),
        ("cover\n%", _extra("coverage", lambda share: f"{100 * share:.1f}")),
        ("invalid\n%", _extra("invalid_frac", lambda frac: f"{100 * frac:.2f}")),
        ("rollouts", _extra("rollouts", lambda number: f"{number:,.0f}")),
        ("CPU s", _extra("cpu_s", lambda seconds: f"{seconds:,.0f}")),
    ]


def _table(results: Results, columns: Sequence[Column], title: str = "") -> Table:
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=RULED,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    table.add_column("Method", vertical="bottom", no_wrap=True)
    for head, _ in columns:
        table.add_column(head, justify="right", vertical="bottom", no_wrap=True)
    for name, method in results.methods.items():
        table.add_row(Text(name), *(cell(method) for _, cell in columns))
    return table


def _name(key: str) -> str:
    """`FIRST PASS@32`, in two lines where that is narrower."""
    name, cut = key.split("/")[1].upper().split("@")
    return f"{name}@{cut}".replace("_", "\n")


def _broken(method: str) -> str:
    """The name in lines, `SFT`, `(train` and `+ rl)`, above a narrow column."""
    return method.replace(" (", "\n(").replace(" + ", "\n+ ")


def _value(key: str) -> Callable[[MethodResults], str]:
    return lambda method: _number(method.metrics[key].value)


def _interval(metric: Measured) -> str:
    return f"{_number(metric.low)}-{_number(metric.high)}"


def _p_value(key: str, other: str) -> Callable[[MethodResults], str]:
    def cell(method: MethodResults) -> str:
        versus = method.metrics[key].against.get(other)
        return _number(versus.p) if versus else "-"

    return cell


def _extra(name: str, form: Callable[[float], str]) -> Callable[[MethodResults], str]:
    return lambda method: form(method.extras[name]) if name in method.extras else "-"


def _number(value: float) -> str:
    """Four digits behind the point, no zero before it.

    >>> _number(0.12345), _number(1.0)
    ('.1235', '1.0000')
    """
    return f"{value:.4f}".removeprefix("0")
