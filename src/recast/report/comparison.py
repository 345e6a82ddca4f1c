"""A comparison as text: `recast.evaluation.seed_results.Comparison` in, verdict and tables out.

One description of the tables serves the screen and Markdown alike.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recast.evaluation.comparison import Estimate, Versus
from recast.evaluation.curves import Budget
from recast.evaluation.metrics import PRIMARY
from recast.evaluation.seed_results import Comparison, MethodRow
from recast.report.table import RULED

_WIDTH = 120


class Grid(NamedTuple):
    """A table: what it is, its heads and its lines, the first cell of each a name."""

    title: str
    heads: list[str]
    lines: list[list[str]]


def plain(results: Comparison) -> str:
    """The verdict, then the tables, aligned, for a screen."""
    file = io.StringIO()
    console = Console(file=file, width=_WIDTH, color_system=None, force_terminal=False)
    for sentence in results.verdict:
        console.print(Text(sentence), highlight=False)
    for grid in grids(results):
        console.print()
        table = Table(
            title=Text(grid.title),
            title_justify="left",
            box=RULED,
            show_edge=False,
            pad_edge=False,
            padding=0,
        )
        table.add_column(grid.heads[0], vertical="bottom", no_wrap=True)
        for head in grid.heads[1:]:
            table.add_column(head, justify="right", vertical="bottom", no_wrap=True)
        for line in grid.lines:
            table.add_row(*map(Text, line))
        console.print(table, highlight=False)
    console.print()
    for sentence in caption(results):
        console.print(Text(sentence), highlight=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def markdown(results: Comparison) -> str:
    """The same for a file."""
    parts = ["\n".join(f"- {line}" for line in results.verdict)]
    for grid in grids(results):
        heads = [head.replace("\n", " ") for head in grid.heads]
        rules = ["---", *["---:"] * (len(heads) - 1)]
        lines = [f"| {' | '.join(line)} |" for line in (heads, rules, *grid.lines)]
        parts += [f"## {grid.title}", "\n".join(lines)]
    return "\n\n".join([*parts, "\n".join(caption(results))]) + "\n"


def caption(results: Comparison) -> list[str]:
    """What the numbers are, one sentence per line."""
    seen = "without" if results.exclude_seen else "with"
    reads, control = results.test_reads, results.against[1]
    step = "one optimizer step per rollout batch"
    if results.mini_batch_rows:
        step = (
            f"an optimizer step per {results.mini_batch_rows} kept rollouts, {control}'s per batch"
        )
    when = ", ".join(read["when"] for read in reads)
    once = "once" if len(reads) == 1 else f"{len(reads)} times, with other choices each time"
    return [
        f"{results.split} split ({results.split_name}): {results.rows:,} rows of {results.users:,} "
        f"users, item level, {results.beam_width} beams; {results.num_candidates:,} candidates, "
        f"{seen} those of the row's own history.",
        f"{results.seeds} seed{'s, which draw' if results.seeds > 1 else ', which draws'} "
        f"{results.reseeded} anew. Per seed all methods read the "
        f"same prompts in the same order: {results.steps} steps of {results.prompts_per_step} "
        f"prompts, {step}.",
        *(
            f"{name} with {', '.join(f'{key} {value}' for key, value in own.items())}."
            for name, own in results.settings.items()
        ),
        "Each row tried the same learning rates with seed 0; the best by validation NDCG@10 went "
        f"into the table. Test rows were ranked {once} ({when}).",
        "Differences are paired by user and seed. Intervals and p cover users and seeds, with one "
        "seed users alone; results.json has those over users and over seeds too. p holds for the "
        f"whole family of differences from {', '.join(results.against)} (Holm).",
    ]


def grids(results: Comparison) -> list[Grid]:
    rows = results.methods
    quality = Grid(
        "NDCG@10 over seeds",
        ["", "mean", "spread", "n", "95 %", *_gap_heads(results), "smallest\nfound"],
        [[name, *_quality(results, row)] for name, row in rows.items()],
    )
    lists = Grid(
        "Short and long lists",
        ["", "HR@1", "HR@10", "HR@50", "NDCG@10", "cover %"],
        [[name, *_lists(row)] for name, row in rows.items()],
    )
    trained = {name: row for name, row in rows.items() if row.lr is not None}
    made = []
    for title, every in _TRAINING.items():
        columns = [c for c in every if any(c[1] in row.training for row in trained.values())]
        rates = {n: [f"{row.lr:g}"] if title == "Training" else [] for n, row in trained.items()}
        heads = ["", *(["lr"] if title == "Training" else []), *(head for head, *_ in columns)]
        lines = [[n, *rates[n], *_cells(columns, row)] for n, row in trained.items()]
        made.append(Grid(title, heads, lines))
    search = Grid(
        "Search on validation, seed 0: NDCG@10 by learning rate",
        ["", *(f"{trial.lr:g}" for trial in next(iter(trained.values())).trials)],
        [[n, *(_number(trial.value) for trial in row.trials)] for n, row in trained.items()],
    )
    steps = sorted({p.step for row in trained.values() for p in row.curve["ndcg@10"]})
    kept = steps if len(steps) <= 8 else [steps[round(i * (len(steps) - 1) / 7)] for i in range(8)]
    curves = Grid(
        f"Validation NDCG@10 by step, mean and spread, n = {results.seeds}",
        ["", *map(str, kept)],
        [[name, *_curve(row, kept)] for name, row in trained.items()],
    )
    ratios = Grid(
        "Share of the other's steps to its final validation NDCG@10 (seeds that got there)",
        ["", *(f"{name}" for name in trained)],
        [[n, *(_budget(row.budget.get(o)) for o in trained)] for n, row in trained.items()],
    )
    return [quality, lists, *_slices(results), *made, search, curves, ratios]


_PHASES = [
    *(("rollout", "rollout"), ("reference", "reference"), ("old", "old_logprobs")),
    *(("update", "update"), ("valid", "valid")),
]
_Columns = Sequence[tuple[str, str, Callable[[float], str]]]

_TRAINING: dict[str, _Columns] = {
    "Training": [
        ("all-\nzero", "group/all_zero_frac", lambda x: f"{x:.2f}"),
        ("one\nhit", "group/single_hit_frac", lambda x: f"{x:.2f}"),
        ("train-\nable", "group/trainable_frac", lambda x: f"{x:.2f}"),
        ("KL on\nvalid", "valid/kl", lambda x: f"{x:.2g}"),
        ("its\ntail", "valid/kl_tail_frac", lambda x: f"{x:.2f}"),
        ("KL", "actor/kl", lambda x: f"{x:.2g}"),
        ("PPO-KL", "actor/ppo_kl", lambda x: f"{x:.2g}"),
        ("grad", "actor/grad_norm", lambda x: f"{x:.2f}"),
        ("entropy", "actor/entropy", lambda x: f"{x:.2f}"),
    ],
    "Cost per run": [
        ("rollouts", "rollouts", lambda x: f"{x:,.0f}"),
        ("opt.\nsteps", "optimizer_steps", lambda x: f"{x:,.0f}"),
        ("CPU s", "cpu_s", lambda x: f"{x:,.0f}"),
        *((f"{name}\ns", f"time/{key}_s", lambda x: f"{x:,.1f}") for name, key in _PHASES),
        ("peak\nGB", "memory/peak_gb", lambda x: f"{x:.2f}"),
    ],
    "Tokens through the models and most memory, by phase of a run": [
        *((f"{name}\ntokens", f"tokens/{key}", lambda x: f"{x:,.0f}") for name, key in _PHASES),
        *((f"{name}\nGB", f"memory/{key}_gb", lambda x: f"{x:.2f}") for name, key in _PHASES),
    ],
}
"""By table: head, metric, how it is written."""


def _cells(columns: _Columns, row: MethodRow) -> list[str]:
    return [form(row.training[key]) if key in row.training else "-" for _, key, form in columns]


def _gap_heads(results: Comparison) -> list[str]:
    return [head for other in results.against for head in (f"vs\n{other}", "p")]


def _quality(results: Comparison, row: MethodRow) -> list[str]:
    mean = row.compared.metrics[PRIMARY]
    cells = [
        _number(mean.mean),
        "-" if mean.spread is None else _number(mean.spread),
        str(row.compared.seeds),
        _interval(mean),
    ]
    gaps = row.compared.against
    for other in results.against:
        gap = gaps[other][PRIMARY] if other in gaps else None
        cells += ["-", "-"] if gap is None else [_signed(gap.mean), _p(gap)]
    first = next(iter(gaps.values()), {}).get(PRIMARY)
    return [*cells, "-" if first is None or first.smallest is None else _number(first.smallest)]


def _lists(row: MethodRow) -> list[str]:
    keys = ("item/hr@1", "item/hr@10", "item/hr@50", PRIMARY)
    metrics = row.compared.metrics
    cells = [_number(metrics[key].mean) if key in metrics else "-" for key in keys]
    covered = row.compared.coverage
    return [*cells, "-" if covered is None else f"{100 * covered:.1f}"]


def _slices(results: Comparison) -> list[Grid]:
    """Of each kind the start's HR@10 by group, and what each method adds."""
    start = results.against[0]
    made = []
    for kind, groups in results.methods[start].compared.slices.items():
        lines = [
            ["rows", *(f"{group.rows:,}" for group in groups)],
            [start, *(_number(group.metrics["item/hr@10"].mean) for group in groups)],
        ]
        for name, row in results.methods.items():
            if name != start:
                own = [group.against[start]["item/hr@10"] for group in row.compared.slices[kind]]
                lines.append([name, *(f"{_signed(gap.mean)}{_mark(gap)}" for gap in own)])
        title = f"HR@10 by {kind}: the start's, then differences from it (* 95 % without 0)"
        made.append(Grid(title, ["", *(group.group for group in groups)], lines))
    return made


def _mark(gap: Versus) -> str:
    ends = gap.over_both
    return "*" if ends and (ends[0] > 0 or ends[1] < 0) else " "


def _curve(row: MethodRow, steps: Sequence[int]) -> list[str]:
    points = {point.step: point for point in row.curve["ndcg@10"]}
    cells = []
    for step in steps:
        point = points.get(step)
        spread = "" if point is None or point.spread is None else f" {_number(point.spread)}"
        cells.append("-" if point is None else f"{_number(point.mean)}{spread}")
    return cells


def _budget(found: Budget | None) -> str:
    if found is None:
        return "-"
    value = "> 1" if found.ratio is None else f"{found.ratio:.2f}"
    return f"{value} ({found.reached} of {found.seeds})"


def _interval(estimate: Estimate) -> str:
    ends = estimate.over_both
    return "-" if ends is None else f"{_number(ends[0])}-{_number(ends[1])}"


def _p(gap: Versus) -> str:
    p = gap.p if gap.p_holm is None else gap.p_holm
    return "<.0001" if p < 0.0001 else _number(p)


def _number(value: float) -> str:
    """Four digits, no zero before the point.

    >>> _number(0.12345), _number(-0.5)
    ('.1235', '-.5000')
    """
    return f"{value:.4f}".replace("0.", ".", 1)


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)
