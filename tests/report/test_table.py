from __future__ import annotations

from dataclasses import replace

import torch
from small_ranks import FACTS, compared, ranks_of

from recast.evaluation.facts import Facts
from recast.evaluation.results import Results
from recast.report.table import markdown, plain

NAMES = ["popularity", "item-kNN", "SFT", "SFT continued", "GRPO", "ReCast"]
EXTRAS = {"ReCast": {"rollouts": 76800, "cpu_s": 1234.4, "invalid_frac": 0.0321}}


def six(**changes: object) -> Results:
    methods = {name: ranks_of(seed) for seed, name in enumerate(NAMES)}
    methods["ReCast"] = replace(methods["ReCast"], num_shown=10)
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
        *(values[f"item/hr@{k}"] for k in (1, 10, 50)),
        values["item/ndcg@5"],
        *(["33.3", "3.21", "76,800", "1,234"] if name == "ReCast" else ["-"] * 4),
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
    assert lines[1].count("---:") == 12
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
    results = compared(methods={"[bold]x": alone}, against=[], extras={})
    text = plain(results)
    assert "| NDCG@5 | SID NDCG@10 | SID HR@10 | cover % |" in markdown(results)
    assert "SID" not in plain(six()).partition("\n\n")[0]
    assert "There is one user: nothing can be resampled" in text
    assert "No SID is shared" not in text
    assert "[bold]x" in text  # a name is no markup
    assert "p vs" not in text
    named = {"kNN (train + rl)": ranks_of(0), "b": ranks_of(1)}
    lines = plain(compared(methods=named, against=["kNN (train + rl)"], extras={})).splitlines()
    assert [line.split()[:1] for line in lines[:3]] == [["p"], ["kNN"], ["95"]]


def test_the_caption_says_what_was_ranked_and_what_was_seen() -> None:
    seen = {"SFT": ("train",), "GRPO": ("train", "rl"), "kNN": ("train", "rl"), "mine": None}
    methods = {}
    for seed, (name, events) in enumerate(seen.items()):
        width = None if name == "kNN" else 11
        kept = {"SFT": "best", "GRPO": "last"}.get(name)
        facts = replace(FACTS, events_seen=events, beam_width=width, kept=kept)
        methods[name] = replace(ranks_of(seed), facts=facts)
    text = " ".join(plain(compared(methods=methods, extras={})).split())
    for words in (
        "Candidates: 30 items, without those of the row's own history. "
        "Listed: 11 SIDs (SFT, GRPO, mine); the whole catalogue (kNN).",
        "Events seen in training: train (SFT); train + rl (GRPO, kNN); not known (mine).",
        "Weights: of the best validation (SFT); of the last step (GRPO).",
    ):
        assert words in text
    facts = replace(FACTS, guide="mixture, alpha 0.3, with item_knn", alpha_chosen_on="valid")
    value = compared().methods["SFT"].metrics["item/ndcg@10"].value
    methods = {
        "SFT": replace(ranks_of(0), facts=replace(FACTS, valid_ndcg=value / 0.79)),
        "GRPO": replace(ranks_of(0), facts=replace(FACTS, valid_ndcg=value / 0.81)),
        "both": replace(ranks_of(0), facts=facts),
    }
    text = " ".join(plain(compared(methods=methods, extras={})).split())
    drift = f"SFT validation {short(value / 0.79)}, test {short(value)}."
    assert f"Validation and test differ in NDCG@10: {drift}" in text
    guide = "both by mixture, alpha 0.3, with item_knn (alpha chosen on valid rows)."
    assert f"Mixed with a guide: {guide}" in text
    unknown = {"a": replace(ranks_of(0), facts=Facts())}
    text = plain(compared(methods=unknown, against=[], extras={}))
    assert "Some rows: 20 rows of 6 users" in text
    assert "Candidates" not in text
    assert "Events" not in text
    assert "Weights" not in text


def test_several_targets_get_columns_of_their_own() -> None:
    mask = torch.ones(20, 2, dtype=torch.bool)
    methods = {}
    for name, seed in (("SFT", 0), ("GRPO", 1)):
        one, two = ranks_of(seed), ranks_of(seed + 2)
        places = {
            field: torch.cat([getattr(one, field), getattr(two, field)], 1)
            for field in ("sid_rank", "items_before", "num_sharing")
        }
        methods[name] = replace(one, **places, item_mask=mask, sid_mask=mask)
    results = compared(methods=methods, extras={})
    lines = markdown(results).splitlines()
    assert "| PASS@1 | PASS@50 | FIRST PASS@50 | RECALL@50 | NDCG@5 | cover % |" in lines[0]
    shown = ("pass@1", "pass@50", "first_pass@50", "recall@50", "ndcg@5")
    values = [short(results.methods["SFT"].metrics[f"item/{key}"].value) for key in shown]
    assert " | ".join(values) in lines[2]
    assert "HR@" not in lines[0]
    assert "Rows have several targets: PASS@k asks for any of them" in lines[6]


def test_other_cuts_show_what_there_is() -> None:
    lines = markdown(compared(at=(1, 10), levels=("item",))).splitlines()
    assert lines[0].startswith("| Method | NDCG@10 | 95 % interval | p vs SFT | p vs GRPO | HR@1 |")
    assert "HR@50" not in lines[0]
    assert "SID" not in lines[0]
