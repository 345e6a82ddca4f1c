from __future__ import annotations

from dataclasses import replace

import torch
from small_ranks import compared, ranks_of

from recast.evaluation.results import Results
from recast.report.table import markdown, plain

NAMES = ["popularity", "item-kNN", "SFT", "SFT continued", "GRPO", "ReCast"]
EXTRAS = {"ReCast": {"rollouts": 76800, "cpu_s": 1234.4, "invalid_frac": 0.0321}}


def six(**changes: object) -> Results:
    methods = {name: ranks_of(seed) for seed, name in enumerate(NAMES)}
    return compared(**({"methods": methods, "extras": EXTRAS} | changes))


def short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def expected_cells(results: Results, name: str) -> list[str]:
    method = results.methods[name]
    main = method.metrics["item/ndcg@10"]
    p = {other: short(versus.p) for other, versus in main.against.items()}
    values = {key: short(metric.value) for key, metric in method.metrics.items()}
    return [
        values["item/ndcg@10"],
        f"{short(main.low)}-{short(main.high)}",
        p.get("SFT", "-"),
        p.get("GRPO", "-"),
        *(values[f"item/hr@{k}"] for k in (1, 5, 10, 32)),
        values["item/ndcg@5"],
        values["sid/ndcg@10"],
        values["sid/hr@10"],
        *(["3.21", "76,800", "1,234"] if name == "ReCast" else ["-"] * 3),
    ]


def test_every_number_is_in_one_table_of_120_columns() -> None:
    results = six()
    lines = plain(results, "Rollouts by beam search").splitlines()
    assert lines[0] == "Rollouts by beam search"
    assert max(map(len, lines)) <= 120
    for name in NAMES:
        (line,) = (line for line in lines if line.startswith(name.ljust(13) + " "))
        assert line.removeprefix(name).split() == expected_cells(results, name)


def test_a_narrow_screen_gets_two_stacked_tables() -> None:
    results = six()
    text = plain(results, width=80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for name in NAMES:
        first, second = (line for line in lines if line.startswith(name.ljust(13) + " "))
        cells = [*first.removeprefix(name).split(), *second.removeprefix(name).split()]
        assert cells == expected_cells(results, name)


def test_markdown_holds_the_same_cells() -> None:
    results = six()
    lines = markdown(results).splitlines()
    assert lines[0].startswith("| Method | NDCG@10 | 95 % interval | p vs SFT | p vs GRPO | HR@1 |")
    assert lines[1].count("---:") == 14
    for name, line in zip(NAMES, lines[2:], strict=False):
        assert line == "| " + " | ".join([name, *expected_cells(results, name)]) + " |"


def test_the_caption_says_what_the_numbers_are() -> None:
    text = " ".join(plain(six(training_seeds=[3, 4])).split())
    for words in (
        "test split (by time): 20 rows of 6 users",
        "Training seeds 3, 4.",
        "resample users, not rows (200 draws, seed 0); they do not cover training seeds",
        "No SID is shared in these rows: SID level and item level are equal.",
    ):
        assert words in text
    assert "one user" not in text


def test_shared_sids_and_a_single_user() -> None:
    alone = replace(ranks_of(1, sharing=2), users=torch.zeros(20, dtype=torch.long))
    text = plain(compared(methods={"[bold]x": alone}, against=[], extras={}))
    assert "There is one user: nothing can be resampled" in text
    assert "No SID is shared" not in text
    assert "[bold]x" in text  # a name is no markup
    assert "p vs" not in text
