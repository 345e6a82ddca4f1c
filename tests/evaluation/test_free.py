"""Beams without the trie, counted one by one."""

from __future__ import annotations

import tiny
import torch
from small_events import small_events

from recast.evaluation.free import free_metrics
from recast.items.catalog import build_catalog
from recast.rollout.beam import beam_search
from recast.rollout.decoder import Decoder


def test_free_beams_are_counted() -> None:
    """Six of nine semantic IDs are items, two of them of the same one. Seen items are none of the
    invalid beams, also where they are no candidates: they belong to the catalogue."""
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 2], [2, 1], [2, 2], [2, 2]])
    catalog = build_catalog(codes, (3, 3))
    policy = tiny.tiny_policy("llama", catalog)
    draw = torch.Generator().manual_seed(1)
    sequences = [torch.randperm(7, generator=draw)[: 2 + user % 5].tolist() for user in range(30)]
    task, free = (
        tiny.task_of(small_events(sequences, num_items=7, exclude_seen=exclude), policy)
        for exclude in (True, False)
    )
    rows = task.rows("test")
    written = {tuple(row) for row in catalog.tokens.tolist()}
    first, second = (range(*catalog.level_tokens(level)) for level in range(2))
    invalid = malformed = left_out = total = 0
    hits = dict.fromkeys((1, 3, 5), 0)
    decoder = Decoder(constrained=False)
    every = beam_search(policy, free.prompts(rows), 6, decoder=decoder).tokens.tolist()
    prompts = task.prompts(rows)
    for row, beams in enumerate(every):
        total += len(beams)
        invalid += sum(tuple(beam) not in written for beam in beams)
        malformed += sum(beam[0] not in first or beam[1] not in second for beam in beams)
        gone = set(prompts.seen[row].tolist())
        if len(gone & {5, 6}) == 1:  # the other item of that semantic ID is left
            gone -= {5, 6}
        seen = {tuple(catalog.tokens[item].tolist()) for item in gone if item >= 0}
        left = [tuple(beam) for beam in beams if tuple(beam) not in seen]
        left_out += len(beams) - len(left)
        target = tuple(catalog.tokens_of(prompts.target_items[row, 0]).tolist())
        for k in hits:
            hits[k] += target in left[:k]
    assert 0 < malformed < invalid < total
    assert left_out > 0
    assert hits[1] < hits[3] < hits[5] < len(rows)
    assert free_metrics(policy, task, rows, 9, [1, 3, 5]) == {
        **{f"free_hr@{k}": count / len(rows) for k, count in hits.items()},
        "invalid_frac": invalid / total,
        "malformed_frac": malformed / total,
    }
