"""Numbers that two public evaluators gave for one seeded input (docs/log.md says which)."""

from __future__ import annotations

import pytest
import tiny
import torch

from recast.evaluation.metrics import SEVERAL_TARGETS, Ranks, row_metrics
from recast.evaluation.places import FIELDS, distinct, places_in_beams
from recast.items.catalog import build_catalog

BEAMS = [
    [9, 4, 5, 8, 0, 6],
    [7, 3, 0, 2, 1, 8],
    [7, 3, 6, 8, 1, 4],
    [3, 0, 11, 6, 4, 1],
    [6, 2, 1, 10, 7, 9],
    [2, 0, 10, 3, 8, 1],
    [2, 4, 5, 3, 8, 1],
    [11, 3, 6, 4, 0, 2],
]
TARGETS = [[2, 2, 4, 1], [4, 9, 9], [9], [1, 4, 5], [7, 11, 5], [7, 7], [0, 4], [11]]
OPENONEREC = {
    "pass@1": [0, 0, 0, 0, 0, 0, 0, 1],
    "pass@3": [1, 0, 0, 0, 0, 0, 1, 1],
    "pass@6": [1, 0, 0, 1, 1, 0, 1, 1],
    "first_pass@1": [0, 0, 0, 0, 0, 0, 0, 1],
    "first_pass@3": [0, 0, 0, 0, 0, 0, 0, 1],
    "first_pass@6": [0, 0, 0, 1, 1, 0, 0, 1],
    "recall@1": [0, 0, 0, 0, 0, 0, 0, 1],
    "recall@3": [1 / 3, 0, 0, 0, 0, 0, 1 / 2, 1],
    "recall@6": [1 / 3, 0, 0, 2 / 3, 1 / 3, 0, 1 / 2, 1],
}
# Means, the first target of every row alone.
MINIONEREC = {
    **{"ndcg@1": 0.125, "ndcg@3": 0.125, "ndcg@5": 0.17335660090431768},
    **{"hr@1": 0.125, "hr@3": 0.125, "hr@5": 0.25},
}


def ranks_of(targets: list[list[int]]) -> Ranks:
    width = max(map(len, targets))
    items = torch.tensor([row + [-1] * (width - len(row)) for row in targets])
    catalog = build_catalog(torch.arange(12)[:, None], (12,))
    prompts = tiny.make_prompts(catalog, [[0]] * 8, [[0]] * 8)
    prompts = tiny.with_targets(catalog, prompts, items)
    found = places_in_beams(torch.tensor(BEAMS), prompts.seen, catalog, distinct(items), None)
    places = dict(zip(FIELDS, found, strict=True))
    masks = {name: places.pop(name).bool() for name in ("item_mask", "sid_mask")}
    rows = torch.arange(8)
    return Ranks(row_ids=rows, users=rows, **masks, **places)


@pytest.mark.parametrize("level", ["item", "sid"])  # no SID is shared
def test_openonerec_s_evaluator(level: str) -> None:
    found = row_metrics(ranks_of(TARGETS), (1, 3, 6))
    for name, values in OPENONEREC.items():
        assert found[f"{level}/{name}"].tolist() == values


@pytest.mark.parametrize("level", ["item", "sid"])
def test_minionerec_s_evaluator(level: str) -> None:
    ranks = ranks_of([row[:1] for row in TARGETS])
    found = row_metrics(ranks, (1, 3, 5), names=SEVERAL_TARGETS)
    for name, value in MINIONEREC.items():
        assert float(found[f"{level}/{name}"].mean()) == pytest.approx(value, abs=1e-15)
