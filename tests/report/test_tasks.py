"""Tables of several tasks: worked numbers, and what cannot stand side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_ranks import FACTS

from recast.evaluation.disk import write_evaluation
from recast.evaluation.metrics import Ranks
from recast.report.tasks import task_table
from recast.types import RecastError

TASKS = {
    "video": torch.tensor([True, True, False]),
    "ad": torch.tensor([False, False, True]),
}


def ranks(places: list[list[int]]) -> Ranks:
    """Rows whose targets stand at these places of 32 beams, 0 for one that is not listed."""
    place = torch.tensor(places)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    return Ranks(
        row_ids=torch.arange(3),
        users=torch.arange(3),
        sid_rank=place,
        items_before=(place - 1).clamp(min=0),
        num_sharing=torch.ones_like(place),
        item_mask=mask,
        sid_mask=mask,
        facts=replace(FACTS, beam_width=32, num_candidates=40),
    )


def judged(folder: Path, places: list[list[int]], tasks: dict | None = None, k: int = 32) -> Path:
    chosen = TASKS if tasks is None else tasks
    write_evaluation(ranks(places), folder, {}, at=(1, k), tasks=chosen)
    return folder


def test_every_method_has_a_line_under_its_task(tmp_path: Path) -> None:
    """SFT's two videos rows find one of two targets at place 1 and none; its ad is second."""
    sft = judged(tmp_path / "sft", [[1, 0], [0, 0], [2, 0]])
    recast = judged(tmp_path / "recast", [[1, 2], [32, 0], [1, 0]])
    assert task_table({"SFT": sft, "ReCast": recast}).splitlines() == [
        "| task | rows | method | pass@1 | pass@32 | recall@32 |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
        "| video | 2 | SFT | .5000 | .5000 | .2500 |",
        "|  |  | ReCast | .5000 | 1.0000 | .7500 |",
        "| ad | 1 | SFT | .0000 | 1.0000 | 1.0000 |",
        "|  |  | ReCast | 1.0000 | 1.0000 | 1.0000 |",
    ]
    assert task_table({"SFT": sft}, ["sid/ndcg@1"]).splitlines()[2] == "| video | 2 | SFT | .5000 |"


def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path) -> None:
    places = [[1, 0], [0, 0], [2, 0]]
    sft = judged(tmp_path / "sft", places)
    for folders, words in (
        ({}, "folders is {}"),
        ({"SFT": tmp_path}, "is no evaluation"),
        ({"SFT": judged(tmp_path / "whole", places, tasks={})}, "is an evaluation of one task"),
        ({"SFT": judged(tmp_path / "ten", places, k=10)}, "holds no item/pass@32"),
        (
            {"SFT": sft, "GRPO": judged(tmp_path / "ad", places, tasks={"ad": TASKS["ad"]})},
            r"GRPO was judged on \{'ad': 1\}, SFT on \{'video': 2, 'ad': 1\}",
        ),
    ):
        with pytest.raises(RecastError, match=words):
            task_table(folders)
