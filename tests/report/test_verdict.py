"""A comparison in words: a win, none, a loss with its reasons and one without; the tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_ranks import FACTS

from recast.evaluation.comparison import compare_seeds
from recast.evaluation.curves import Budget, Point
from recast.evaluation.ranks import Ranks
from recast.evaluation.seed_results import Comparison, MethodRow, Trial
from recast.report.comparison import markdown, plain
from recast.report.verdict import verdict

ROWS = 400


def ranked(shift: float, seed: int = 0, rows: int = ROWS, users: int = ROWS) -> Ranks:
    """Places by how easy a row is, moved by `shift`: below 0 more are hit."""
    easy = np.random.default_rng(9).normal(8, 6, rows)
    place = np.round(easy + shift + np.random.default_rng(seed).normal(0, 0.3, rows)).astype(int)
    places = torch.tensor(np.where(place > 50, 0, place.clip(1)))[:, None]
    mask = torch.ones_like(places, dtype=torch.bool)
    return Ranks(
        row_ids=torch.arange(rows),
        users=torch.arange(rows) % users,
        sid_rank=places,
        items_before=(places - 1).clamp(min=0),
        num_sharing=torch.ones_like(places),
        item_mask=mask,
        sid_mask=mask,
        num_shown=7,
        facts=FACTS,
    )


def compared(
    methods: dict[str, list[Ranks]], training: Any = None, rise: float = -0.01
) -> Comparison:
    found = compare_seeds(methods, ["start", "sft_continued", "recast"])
    rows = {
        name: MethodRow(
            method=None if name == "start" else name,
            group_size=16 if name == "recast" else None,
            lr=None if name == "start" else 1e-5,
            compared=row,
            trials=[Trial(lr=1e-5, value=0.1), Trial(lr=1e-4, value=0.05)],
            training=(training or {}) if name == "recast" else {},
            curve={
                "ndcg@10": [
                    Point(step=0, mean=0.1, spread=0.0, seeds=3),
                    Point(step=50, mean=0.1 + rise, spread=0.01, seeds=3),
                ]
            },
            budget={"recast": Budget(ratio=None, reached=0, seeds=3)},
        )
        for name, row in found.items()
    }
    results = Comparison(
        split="test",
        split_name="by time",
        num_candidates=30,
        exclude_seen=True,
        beam_width=50,
        rows=ROWS,
        users=len(methods["start"][0].users.unique()),
        seeds=len(methods["recast"]),
        reseeded="RL",
        steps=50,
        prompts_per_step=32,
        mini_batch_rows=None,
        settings={},
        against=["start", "sft_continued", "recast"],
        test_reads=[{"when": "2026-11-26 13:46", "choices": {}}],
        methods=rows,
        verdict=[],
    )
    return replace(results, verdict=verdict(results))


def three(shift: float, first: int) -> list[Ranks]:
    return [ranked(shift, seed) for seed in range(first, first + 3)]


def test_a_win_is_over_the_start_and_over_its_control() -> None:
    won = compared({"start": [ranked(0)], "recast": three(-1, 1), "sft_continued": three(0, 4)})
    assert won.verdict[0].startswith("recast wins: +0.0")
    assert " over start, +0.0" in won.verdict[0]
    assert won.verdict[0].endswith("after Holm) over sft_continued.")
    methods = {"start": [ranked(0)], "recast": three(-1, 1), "sft_continued": three(-1, 1)}
    control = compared(methods)
    assert control.verdict[0].startswith("Nobody wins: the best, recast, is not")
    assert "It does beat start." in control.verdict[0]
    assert "may be there and not be found" in control.verdict[0]
    assert "recast and sft_continued ranked every row alike" in control.verdict[1]
    more = compared(methods | {"sft_continued": three(-2, 1)}).verdict[0]
    assert more.startswith("More training without rollouts wins: sft_continued, +0.")


def test_a_loss_has_its_reasons_and_one_without_has_none() -> None:
    methods = {"start": [ranked(0)], "recast": three(1, 1), "sft_continued": three(0, 4)}
    (line,) = [line for line in compared(methods).verdict if line.startswith("recast made")]
    assert line.endswith("; nothing measured here says why.")
    told = {"valid/kl": 0.2, "valid/kl_tail_frac": 0.8, "group/all_zero_frac": 0.95}
    (line,) = [
        line for line in compared(methods, told, 0.02).verdict if line.startswith("recast made")
    ]
    assert "a tenth of the validation rows hold 80% of it, mean 0.20" in line
    assert "95% of its groups held no hit" in line
    assert "validation rose (+0.0200) while test fell" in line
    assert "narrowed" not in line
    assert "converged" not in line


def test_more_training_alone_helped_and_lists_narrowed() -> None:
    """Every row that the start has in the middle leaves; half of its second places come first."""
    start = ranked(0)
    place = start.sid_rank.clone()
    place[(place > 2) & (place < 40)] = 0
    narrow = replace(start, sid_rank=place.where(place != 2, 1))
    narrow = replace(narrow, items_before=(narrow.sid_rank - 1).clamp(min=0))
    methods = {
        "start": [start],
        "recast": [narrow] * 2,
        "sft_continued": [ranked(-2), ranked(-2, 1)],
    }
    (line,) = [line for line in compared(methods).verdict if line.startswith("recast made")]
    assert "the start had not converged, more of its own training adds +0." in line
    assert "HR@50 fell (-0." in line
    assert "while HR@1 rose (+0." in line


def test_what_nothing_can_be_concluded_from_is_said() -> None:
    one = {"start": [ranked(0, users=1)], "recast": [ranked(-1, users=1)]}
    lines = compared(one | {"sft_continued": [ranked(0, users=1)]}).verdict
    assert lines[0].startswith("Nobody wins")
    assert "sft_continued ranks every row as the start does: it moved nothing." in lines
    assert lines[-2].startswith("There is one user")
    assert lines[-1].startswith("There is one seed")
    again = compared(one | {"sft_continued": [ranked(0, users=1)]})
    reads = [*again.test_reads, {"when": "2026-11-27 08:00", "choices": {"seeds": 2}}]
    twice = replace(again, test_reads=reads)
    assert verdict(twice)[-1].startswith("Test rows were ranked with 2 sets of choices")
    assert "ranked 2 times, with other choices each time" in markdown(twice)


@pytest.mark.parametrize("form", [plain, markdown])
def test_the_tables(form: Any) -> None:
    results = compared(
        {"start": [ranked(0)], "recast": three(-1, 1), "sft_continued": three(0, 4)},
        {"group/all_zero_frac": 0.5, "rollouts": 76_800.0},
    )
    text = form(results)
    assert text.index("recast wins") < text.index("NDCG@10 over seeds")
    mean = results.methods["recast"].compared.metrics["item/ndcg@10"]
    assert f"{mean.mean:.4f}".lstrip("0") in text
    assert "76,800" in text
    assert "> 1 (0 of 3)" in text
    assert ".1000 .0000" in text
    assert "23.3" in text  # 7 of 30 items
    assert "nan" not in text
